"""Every strategy against its formula, query by query; what it costs; and that it learns."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clear_core.attention import local_attention
from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.backends.triton.backend import TritonBackend
from clear_core.call import AttentionCall
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.strategies import (
    STRATEGIES,
    Agent,
    BigBird,
    Circle,
    ClippedNeighbourhood,
    ConvolutionCompression,
    Gated,
    GeneralisedLinear,
    Linear,
    Linformer,
    MeanCompression,
    ShiftedNeighbourhood,
    Sigmoid,
    SlidingTiles,
    SparseLinear,
    Strategy,
    Strided,
    Swin,
    strategy_named,
    strategy_names,
)
from clear_core.strategies.base import image_call
from clear_core.strategies.shapes import ShapedMask

from core import strategy_oracles

HEADS, HEAD_DIM = 2, 8
LAYOUT = TokenLayout(5, Grid(12, 20))
SMALL: tuple[Strategy, ...] = (
    Circle(4),
    ClippedNeighbourhood(4),
    ClippedNeighbourhood(5),
    ShiftedNeighbourhood(4),
    ShiftedNeighbourhood(5),
    ShiftedNeighbourhood(14),
    Swin(4),
    Swin(8),
    Swin(14),
    Strided(3),
    Strided(16),
    BigBird(4, drawn=1),
    BigBird(3),
    SlidingTiles(5, 3),
    SlidingTiles(2, 5),
    ConvolutionCompression(4),
    ConvolutionCompression(5),
    MeanCompression(4),
    MeanCompression(5),
    Linformer(16),
    Linear(),
    GeneralisedLinear(),
    Gated(),
    Gated(chunk=7),
    Sigmoid(),
    Agent(4),
    Agent(5),
    SparseLinear(4, blocks=3),
    SparseLinear(5, blocks=2),
)
"""With numbers that show at 12 x 20 tokens: sizes that divide the grid and sizes that do not, or that exceed it."""
MASKS = [strategy for strategy in SMALL if isinstance(strategy, ShapedMask)]
LAYERS = [(strategy, layer) for strategy in SMALL for layer in ((0, 1) if isinstance(strategy, Swin) else (1,))]


def tokens(layout: TokenLayout = LAYOUT, *, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, batch, HEADS, layout.tokens, HEAD_DIM, generator=generator)
    return query, key, value


def trained(strategy: Strategy, grid: Grid = LAYOUT.image) -> dict[str, Tensor]:
    """Its parameters as after some training: none is zero or one."""
    generator = torch.Generator().manual_seed(1)
    initial = strategy.parameters(HEADS, HEAD_DIM, grid)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in initial.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def ids(strategy: Strategy | int) -> str:
    if isinstance(strategy, int):
        return f"layer{strategy}"
    numbers = (str(getattr(strategy, field.name)) for field in fields(strategy))  # type: ignore[arg-type]
    return "-".join((strategy.name, *numbers))


@pytest.mark.parametrize(("strategy", "layer"), LAYERS, ids=ids)
def test_output_and_gradients_are_those_of_the_formula(strategy: Strategy, layer: int) -> None:
    given = [x.requires_grad_() for x in tokens()]
    parameters = {name: value.requires_grad_() for name, value in trained(strategy).items()}
    query, key, value = given
    out = strategy.attend(query, key, value, LAYOUT, parameters, layer)
    expected = strategy_oracles.output(
        strategy,
        *(x[0].double() for x in given),
        LAYOUT,
        parameters,
        layer,  # type: ignore[arg-type]
    )[None]
    assert out.shape == query.shape and out.dtype == query.dtype
    assert relative(out, expected) < 1e-6
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    learned = [*given, *parameters.values()]
    found = torch.autograd.grad((out * direction).sum(), learned)
    wanted = torch.autograd.grad((expected * direction).sum(), learned)
    for one, other in zip(found, wanted, strict=True):
        assert float(other.norm()) > 1e-3
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize("strategy", SMALL, ids=ids)
def test_weights_times_values_are_the_output(strategy: Strategy) -> None:
    """After training where that holds then, else before; the LayerNorm of the convolution is in no matrix."""
    if isinstance(strategy, ConvolutionCompression):
        norm_only = {"norm_weight": torch.zeros(HEADS, HEAD_DIM), "norm_bias": torch.zeros(HEADS, HEAD_DIM)}
        parameters = {**strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image), **norm_only}
        query, key, _ = tokens()
        weights = strategy.weights(query, key, LAYOUT, parameters)
        mean = MeanCompression(strategy.side).weights(query, torch.zeros_like(key), LAYOUT, {})
        # Every merged key is 0: each cell gets what it gets where all keys are equal, but for the text.
        cells = weights[:, :, LAYOUT.text :, LAYOUT.text :]
        expected = mean[:, :, LAYOUT.text :, LAYOUT.text :]
        share = cells.sum(-1, keepdim=True) / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(cells, expected * share)
        return
    parts_left_out = isinstance(strategy, Agent | SparseLinear)
    initial = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
    parameters = initial if parts_left_out else trained(strategy)
    query, key, value = tokens(batch=2)
    weights = strategy.weights(query, key, LAYOUT, parameters, 1)
    assert weights.dtype == torch.float32
    assert relative(weights @ value, strategy.attend(query, key, value, LAYOUT, parameters, 1)) < 1e-5


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("strategy", SMALL, ids=ids)
def test_items_of_a_batch_are_apart_and_text_may_be_absent(strategy: Strategy, text: int) -> None:
    layout = TokenLayout(text, LAYOUT.image)
    query, key, value = tokens(layout, batch=2)
    parameters = trained(strategy)
    out = strategy.attend(query, key, value, layout, parameters)
    assert out.isfinite().all()
    alone = strategy.attend(query[1:], key[1:], value[1:], layout, parameters)
    assert relative(out[1:], alone) < 1e-5


@pytest.mark.parametrize("strategy", SMALL, ids=ids)
def test_half_precision_stays_half_precision(strategy: Strategy) -> None:
    query, key, value = tokens()
    parameters = trained(strategy)
    half = strategy.attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), LAYOUT, parameters)
    rounded = (x.bfloat16().float() for x in (query, key, value))
    assert half.dtype == torch.bfloat16
    assert relative(half, strategy.attend(*rounded, LAYOUT, parameters)) < 0.03


@pytest.mark.parametrize(("strategy", "layer"), [each for each in LAYERS if each[0] in MASKS], ids=ids)
def test_a_shape_runs_through_the_tiles_of_the_window(strategy: ShapedMask, layer: int) -> None:
    """On more than one tile of sdpa an axis, whose keys are gathered, against the mask written out."""
    layout = TokenLayout(3, Grid(35, 50))
    query, key, value = tokens(layout)
    pattern = strategy.pattern(layout, layer)
    tiled = local_attention(query, key, value, pattern, backend="sdpa", return_lse=True)
    defined = local_attention(query, key, value, pattern, backend="reference", return_lse=True)
    assert relative(tiled.out, defined.out) < 1e-6
    assert tiled.lse is not None and defined.lse is not None and relative(tiled.lse, defined.lse) < 1e-6
    call = AttentionCall(query, key, value, pattern, scale=1.0)
    assert SdpaBackend().executed_pairs(call) < 0.75 * layout.tokens**2
    assert pattern.pairs() == int(pattern.mask().sum())


def test_kernels_and_bands_refuse_what_is_no_circle() -> None:
    layout = TokenLayout(3, Grid(35, 50))
    shape = ShiftedNeighbourhood(5).shape(0)
    with pytest.raises(ValueError, match="is not a circle: it needs all rows of the image"):
        LocalPattern(layout, shape, Band(0, 4), Band(0, 8))
    pattern = LocalPattern.whole(layout, shape)
    with pytest.raises(TypeError, match="is not a circle"):
        _ = pattern.circle
    # A choice of a backend asks each one what it would execute before it asks whether it can.
    call = AttentionCall(*tokens(layout), pattern, scale=1.0)
    assert TritonBackend().executed_pairs(call) == layout.tokens**2


def test_big_bird_sees_its_neighbours_the_ends_and_drawn_blocks() -> None:
    strategy, grid = BigBird(4, drawn=3), Grid(22, 30)
    rows, columns = 6, 8
    chosen = strategy.chosen(grid, 3, layer=2)
    assert chosen.shape == (1, 3, rows * columns, 14)
    for head in range(3):
        for block, seen in enumerate(chosen[0, head].tolist()):
            row, column = divmod(block, columns)
            near = {
                y * columns + x
                for y in range(max(0, row - 1), min(rows, row + 2))
                for x in range(max(0, column - 1), min(columns, column + 2))
            }
            assert len(set(seen)) == 14 and near | {0, rows * columns - 1} <= set(seen)
    assert torch.equal(chosen, strategy.chosen(grid, 3, layer=2))
    assert not torch.equal(chosen, strategy.chosen(grid, 3, layer=3))
    assert not torch.equal(chosen[0, 0], chosen[0, 1])


def test_both_scans_reach_every_token() -> None:
    """A single scan would leave the first token's output, or the last one's, as it is."""
    strategy = Gated(chunk=16)
    parameters = trained(strategy)
    query, key, value = tokens()
    out = strategy.attend(query, key, value, LAYOUT, parameters)
    for changed in (LAYOUT.text, LAYOUT.text + 100, LAYOUT.tokens - 1):
        other = value.clone()
        other[:, :, changed] += 1
        moved = (strategy.attend(query, key, other, LAYOUT, parameters) - out).abs().amax((0, 1, 3))
        assert float(moved.min()) > 1e-6


def test_text_does_not_fade_in_the_scans() -> None:
    strategy, closed = Gated(), torch.full((HEADS,), -160.0)
    parameters = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
    parameters |= {"forward_gate_bias": closed, "backward_gate_bias": closed}  # gates of e^-10
    query, key, _ = tokens()
    weights = strategy.weights(query, key, LAYOUT, parameters)[:, :, LAYOUT.text :]
    scores = query[:, :, LAYOUT.text :] @ key.transpose(2, 3) / HEAD_DIM**0.5
    torch.testing.assert_close(weights[..., : LAYOUT.text], scores[..., : LAYOUT.text])
    image, own = weights[..., LAYOUT.text :], torch.eye(LAYOUT.image.tokens)
    torch.testing.assert_close(image * own, scores[..., LAYOUT.text :] * own)
    assert float((image * (1 - own)).abs().max()) < 1e-3


EXACT = 4 * 24 * 128 * (512 * 4608 + 4096 * (512 + 256))
"""Operations of text rows, and of 4096 image queries with 512 text and 256 image keys each: 67.65 GFLOP."""


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_costs_match_256_image_keys_for_each_query(strategy: Strategy) -> None:
    """Masks and cells within 5%; what makes slots, and a linear part beside, at most 20% above. The rest has no choice:

    head_dim sets the cost of linear attention, and sigmoid attention costs what dense attention does.
    """
    layout = TokenLayout(512, Grid(64, 64))
    for layer in (0, 1):
        ratio = strategy.flops(layout, 24, 128, layer) / EXACT
        if isinstance(strategy, Sigmoid):
            assert ratio * EXACT == 4 * 24 * 128 * 4608**2
        elif isinstance(strategy, Linear | Gated):
            assert 0.5 < ratio < 0.8
        elif isinstance(strategy, Linformer | Agent | SparseLinear):
            assert 1.1 < ratio < 1.2
        else:
            assert abs(ratio - 1) < 0.05


@pytest.mark.parametrize(
    ("strategy", "layer"), [each for each in LAYERS if isinstance(each[0], ShapedMask | Strided | BigBird)], ids=ids
)
def test_the_cost_of_a_mask_is_its_visible_pairs(strategy: Strategy, layer: int) -> None:
    query, key, _ = tokens()
    weights = strategy.weights(query, key, LAYOUT, {}, layer)
    assert strategy.flops(LAYOUT, HEADS, HEAD_DIM, layer) == 4 * HEAD_DIM * int((weights != 0).sum())


@pytest.mark.parametrize("strategy", [Linear(), GeneralisedLinear(), Gated(chunk=16), Sigmoid()], ids=ids)
def test_the_cost_of_a_formula_is_that_of_its_matrix_products(strategy: Linear | Gated | Sigmoid) -> None:
    """As PyTorch counts them while they run; 16 divides the image's tokens, so that no chunk is padded."""
    call, parameters = image_call(*tokens(), LAYOUT), trained(strategy)
    with FlopCounterMode(display=False) as counter:
        strategy.image_output(call, parameters, 0)
    assert counter.get_total_flops() == strategy.image_flops(LAYOUT, HEADS, HEAD_DIM, 0)


def test_learned_parts_change_nothing_before_training() -> None:
    query, key, value = tokens()

    def fresh(strategy: Strategy) -> Tensor:
        return strategy.attend(query, key, value, LAYOUT, strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image))

    assert relative(fresh(GeneralisedLinear()), fresh(Linear())) < 1e-6
    kernel = ConvolutionCompression(4).parameters(HEADS, HEAD_DIM, LAYOUT.image)["kernel"]
    assert torch.equal(kernel, torch.full((HEADS, HEAD_DIM, 4, 4), 1 / 16))
    for strategy in STRATEGIES:
        parameters = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
        assert all(value.dtype == torch.float32 for value in parameters.values())
        again = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
        assert all(torch.equal(parameters[name], again[name]) for name in again)


def test_what_does_not_fit_is_refused() -> None:
    query, key, value = tokens()
    for strategy in STRATEGIES:
        parameters = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
        with pytest.raises(ValueError, match="a strategy has text and one image"):
            strategy.attend(query, key, value, TokenLayout(5, Grid(10, 20), (Grid(2, 20),)), parameters)
        with pytest.raises(ValueError, match=r"query is \(1, 2, 245, 8\); allowed is \[batch, heads, 246, head_dim\]"):
            strategy.attend(query, key, value, TokenLayout(6, LAYOUT.image), parameters)
    other = TokenLayout(45, Grid(10, 20))
    with pytest.raises(ValueError, match="the projection is for 240 image tokens, the image has 200"):
        Linformer().attend(query, key, value, other, Linformer().parameters(HEADS, HEAD_DIM, LAYOUT.image))
    with pytest.raises(ValueError, match="strategy is 'swine'; allowed is one of: circle, clipped_neighbourhood"):
        strategy_named("swine")


def test_the_documentation_lists_every_strategy_with_its_cost() -> None:
    text = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*?arxiv\.org/abs/([\d.]+).*\| ([\d.]+) \|[^|]*\|$", text, re.MULTILINE)
    layout = TokenLayout(512, Grid(64, 64))
    assert [name for name, _, _ in rows] == list(strategy_names()) and len(set(strategy_names())) == len(rows)
    for name, paper, gflop in rows:
        strategy = strategy_named(name)
        assert strategy.name == name and strategy.paper == paper
        cost = sum(strategy.flops(layout, 24, 128, layer) for layer in (0, 1)) / 2e9
        assert float(gflop) == pytest.approx(cost, abs=0.06)
