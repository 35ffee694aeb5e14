"""Distillation without ComfyUI: pooling with gradients, which blocks are compared, clipping."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clear_core import pooling
from clear_core.distill.attention import StudentAttention, pool
from clear_core.distill.draws import draw
from clear_core.distill.loss import Prediction, compared_blocks, losses
from clear_core.distill.optimizers import adamw, make_optimizer
from clear_core.distill.output import file_metadata, save_weights
from clear_core.distill.recompute import recomputed
from clear_core.distill.run import Run, train
from clear_core.distill.settings import Settings
from clear_core.distill.step import NoGradientError, NotFiniteError, clip
from clear_core.distill.trained import FullWeights
from clear_core.distill.weights import start_from
from clear_core.layout import Grid, TokenLayout
from clear_core.softmax import explicit_attention
from clear_core.weights import BlockId, attention_keys, read_header, read_weights
from clear_core.window import Window


@pytest.mark.parametrize(("height", "width", "factor"), [(4, 6, 2), (5, 7, 2), (3, 4, 4), (9, 5, 4), (1, 1, 2)])
def test_pooling_is_that_of_inference(height: int, width: int, factor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grid, weight = Grid(height, width), torch.randn(factor, factor, generator=generator)
    tokens = torch.randn(2, 3, grid.tokens, 8, generator=generator)
    torch.testing.assert_close(pool(tokens, grid, weight), pooling.pool(tokens, grid, weight))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_poolings_gradients_are_finite_differences(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 2, height * width, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, w: pool(t, Grid(height, width), w), (tokens, weight))


@pytest.mark.parametrize("factor", [1, 2])
def test_the_students_attention_is_the_definition(factor: int) -> None:
    generator = torch.Generator().manual_seed(1)
    layout = TokenLayout(3, Grid(9, 7))
    query, key, value = torch.randn(3, 2, 2, layout.tokens, 8, generator=generator)
    weight = torch.rand(factor, factor, generator=generator) if factor > 1 else None
    student = StudentAttention(layout, Window(4), factor)
    got = student(query, key, value, student.mask(), weight)

    seen = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    seen[:3], seen[:, :3] = True, True
    for i in range(63):
        for j in range(63):
            seen[3 + i, 3 + j] = (i // 7 - j // 7) ** 2 + (i % 7 - j % 7) ** 2 < 16
    if weight is not None:
        cells = pooling.pool_key_value(key[:, :, 3:], value[:, :, 3:], layout.image, weight)
        key, value = torch.cat((cells.key, key), 2), torch.cat((cells.value, value), 2)
        text = torch.arange(layout.tokens)[:, None] < 3
        seen = torch.cat((~text.expand(-1, cells.tokens), seen), dim=1)
    bias = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    expected, _ = explicit_attention(query, key, value, 8**-0.5, bias)
    torch.testing.assert_close(got, expected.transpose(1, 2).flatten(2))


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = attention_keys(1, 1)
    teacher = {key: torch.ones((2, 2) if key.endswith("weight") else (2,)) for key in keys}
    file = tmp_path / "mine.safetensors"
    save_weights(file, start_from(teacher, (1, 1), 2), file_metadata(5, 2, {"clear.base": "tiny"}))
    found = read_weights(file)
    assert (found.variant.radius, found.variant.down_factor, found.blocks) == (5, 2, (1, 1))
    assert found.spatial[BlockId("single", 0)].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert read_header(file)[1]["clear.base"] == "tiny"
    before = file.read_bytes()

    def full(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clear_core.distill.output.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(file, start_from(teacher, (1, 1), 4), file_metadata(8, 4, {}))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_flux_compares_ten_single_blocks() -> None:
    assert compared_blocks(19, 38) == tuple(BlockId("single", i) for i in range(1, 38, 4))
    assert compared_blocks(2, 7) == (BlockId("single", 2), BlockId("single", 6))


def test_the_loss_is_the_weighted_sum() -> None:
    block = BlockId("single", 2)
    zero, one, two = (torch.full((1, 2, 3), float(value)) for value in range(3))
    found = losses(Prediction(one, {block: two}), Prediction(zero, {block: zero}), two)
    assert (float(found.flow), float(found.output), float(found.attention)) == (1, 1, 4)
    assert float(found.total) == 1 + 0.5 + 2
    weights = Settings(flow_weight=0, output_weight=3, attention_weight=0.25).loss_weights
    other = losses(Prediction(one, {block: two}), Prediction(zero, {block: zero}), two, weights)
    assert float(other.total) == float(other.detached().total) == 3 + 1


def test_the_student_starts_as_the_teacher_and_without_a_gradient_it_is_told() -> None:
    teacher = {key: torch.ones(2, 2, dtype=torch.bfloat16) for key in attention_keys(1, 1)}
    weights = FullWeights(start_from(teacher, (1, 1), 2)).parameters
    assert len(weights) == len(teacher) + 2
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in weights.values())
    assert torch.equal(weights["transformer_blocks.0.attn.processor.spatial_weight"], torch.full((2, 2), 0.25))
    first = next(iter(weights))
    sum(weight.sum() for name, weight in weights.items() if name != first).backward()
    with pytest.raises(NoGradientError, match=f"does not depend on 1 weights, the first is {first}"):
        clip(weights)
    weights[first].grad = torch.zeros_like(weights[first])
    before = weights[first].detach().clone()
    assert float(clip(weights)) == pytest.approx((4 * 13 + 8) ** 0.5)
    adamw(weights.values(), 1e-3).step()
    assert torch.equal(weights[first], before * (1 - 1e-3 * 1e-4))  # decay alone


def small_run(folder: Path, gradient: float | None, settings: Settings | None = None) -> Run:
    """Of one weight, whose gradient is always the same; None for none."""
    key = "transformer_blocks.0.attn.to_q.weight"
    trained = FullWeights({key: torch.ones(2, 2)})

    def gradients(stage: str, numbers: Sequence[int], share: float) -> dict[str, float]:
        if gradient is not None:
            trained.parameters[key].grad = torch.full((2, 2), gradient)
        return {"loss": 1.0}

    return Run(trained, settings or Settings(steps=3), gradients, folder / "state.pt", {})


def test_a_first_step_that_would_move_nothing_stops(tmp_path: Path) -> None:
    with pytest.raises(NoGradientError, match="All gradients are zero at the first step"):
        train(small_run(tmp_path, 0.0), 1, lambda point: None)
    with pytest.raises(NoGradientError, match="does not depend on 1 weights"):
        train(small_run(tmp_path, None), 1, lambda point: None)
    with pytest.raises(NotFiniteError, match="norm is nan"):
        train(small_run(tmp_path, torch.nan), 1, lambda point: None)
    assert list(tmp_path.iterdir()) == []


def test_samples_of_a_step_are_given_in_micro_batches(tmp_path: Path) -> None:
    """Losses are means over all of the step's samples, however they are given."""
    given: list[tuple[list[int], float]] = []
    key = "transformer_blocks.0.attn.to_q.weight"
    trained = FullWeights({key: torch.ones(2, 2)})

    def gradients(stage: str, numbers: Sequence[int], share: float) -> dict[str, float]:
        given.append((list(numbers), share))
        trained.parameters[key].grad = torch.ones(2, 2)
        return {"loss": sum(numbers) / len(numbers)}

    settings = Settings(steps=2, batch=5, micro_batch=2)
    run = Run(trained, settings, gradients, tmp_path / "state.pt", {})
    points = [run.advance() for _ in range(2)]
    assert [numbers for numbers, _ in given] == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    assert {share for _, share in given} == {1 / 5}
    assert [point.losses["loss"] for point in points] == [2, 7]
    assert settings.identity() == Settings(steps=2, batch=5).identity()


def test_draws_depend_on_the_sample_alone() -> None:
    epoch = [draw(5, number, 7, (2, 3)).image for number in range(14)]
    assert sorted(epoch[:7]) == sorted(epoch[7:]) == list(range(7))
    assert epoch[:7] != epoch[7:]
    one, again, other = (draw(5, number, 7, (4, 4)) for number in (3, 3, 4))
    assert torch.equal(one.noise, again.noise)
    assert one.sigma == again.sigma
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.noise, one.spread)
    sigmas = [draw(0, number, 1, (1,)).sigma for number in range(2000)]
    assert 0.001 <= min(sigmas) < 0.01
    assert 0.99 < max(sigmas) <= 1
    assert abs(sum(sigmas) / len(sigmas) - 0.5) < 0.02
    shifted = [draw(0, number, 1, (1,), shift=3.0) for number in range(2000)]
    assert [one.sigma for one in shifted] == pytest.approx([3 * sigma / (1 + 2 * sigma) for sigma in sigmas])
    assert torch.equal(shifted[7].noise, draw(0, 7, 1, (1,)).noise)


def test_a_cooldown_lowers_the_rate_of_the_last_steps(tmp_path: Path) -> None:
    """AdamW's step has the size of its rate where the gradient stays the same."""
    settings = Settings(steps=4, cooldown=0.5, learning_rate=0.1)
    assert [settings.rate(step) for step in range(4)] == pytest.approx([0.1, 0.1, 0.1, 0.05])
    run = small_run(tmp_path, 1.0, settings)
    weight = run._trained.parameters["transformer_blocks.0.attn.to_q.weight"]
    values = [float(weight.detach()[0, 0])]
    for _ in range(4):
        run.advance()
        values.append(float(weight.detach()[0, 0]))
    moved = [before - after for before, after in pairwise(values)]
    assert moved == pytest.approx([0.1, 0.1, 0.1, 0.05], rel=1e-3)


def test_more_steps_follow_only_where_none_of_the_former_depends_on_their_number() -> None:
    for options, same in (
        ({"method": "end to end"}, True),
        ({"method": "both"}, False),
        ({"method": "end to end", "cooldown": 0.1}, False),
    ):
        short, longer = (Settings(steps=steps, **options).identity() for steps in (10, 20))
        assert (short == longer) == same


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cooldown": 1.5}, "cooldown is 1.5; 0 to 1 is allowed"),
        ({"timestep_shift": 0.0}, "timestep_shift is 0; 0.01 to 100 is allowed"),
        ({"attention_weight": -1.0}, "attention_weight is -1; 0 to 100 is allowed"),
        ({"flow_weight": float("nan")}, "flow_weight is nan; 0 to 100 is allowed"),
        ({"micro_batch": 0}, "micro_batch is 0; 1 to 1000000 is allowed"),
        ({"flow_weight": 0.0, "output_weight": 0.0}, "both 0, and the last blocks would not be trained"),
    ],
)
def test_a_schedule_or_weights_out_of_range_are_refused(given: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**given)


def test_optimizers_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ValueError, match=r"'Prodigy' needs the package prodigyopt.*or choose 'AdamW'"):
        make_optimizer("Prodigy", [torch.ones(1, requires_grad=True)], 1.0)


def test_a_recomputed_block_has_the_gradients_of_one_that_is_kept() -> None:
    """Its residual is added in place, to what a norm before it has saved."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 8, generator=generator), torch.randn(8, 8, generator=generator).requires_grad_()

    def block(x: Tensor) -> tuple[Tensor, ...]:
        x += torch.nn.functional.layer_norm(x, (8,)) @ w
        return x, x * 2

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        x = x + torch.nn.functional.layer_norm(x, (8,)) @ w
        return x, x * 2

    def gradients(apply: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        start = x.clone().requires_grad_()
        first, _ = apply(start)
        _, last = apply(first)
        return torch.autograd.grad(last.square().sum(), [start, w])

    for got, expected in zip(gradients(lambda x: recomputed(block, [x], [w])), gradients(plain), strict=True):
        torch.testing.assert_close(got, expected)
