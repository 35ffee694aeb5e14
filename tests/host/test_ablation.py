"""Students of every strategy: their gradients, the MODEL that samples with them, and the command that compares them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from devtools import checkpoints
from devtools.ablate import QUICK_NAMES
from devtools.ablation import report, sizes, student
from devtools.inprocess import pack_module
from devtools.models import flux_model, run_forward
from devtools.proof.rows import identity
from devtools.small_flux import files

TINY: dict[str, dict[str, int]] = {
    name: {"circle": {"radius": 2}, "linformer": {"length": 6}, "bigbird": {"side": 1, "drawn": 3}}.get(name, size)
    for name, size in sizes.SIZES.items()
}
"""With numbers that show at 6 x 8 tokens."""
ROWS, COLUMNS, TEXT = 6, 8, 5


def attention_of(model: Any, name: str, **numbers: int) -> Any:
    strategy = replace(pack_module("clear_core.strategies").strategy_named(name), **{**TINY[name], **numbers})
    return student.attention_of(model, strategy, pack_module("clear_core.layout").Grid(ROWS, COLUMNS))


def distilled_model(model: Any, attention: Any) -> Any:
    return pack_module("nodes.host.distill.model").DistilledModel(model.model.diffusion_model, attention)


def perturbed(distilled: Any, attention: Any) -> Any:
    """Projections and the strategy's parameters as after some training."""
    own = dict(distilled.own_weights(torch.float32, torch.device("cpu")))
    values = pack_module("clear_core.distill.trained").FullWeights({**own, **attention.start()})
    generator = torch.Generator().manual_seed(2)
    for tensor in values.parameters.values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    return values


def given(batch: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "context": torch.randn(batch, TEXT, 24, generator=generator),
        "y": torch.randn(batch, 12, generator=generator),
        "guidance": torch.full((batch,), 3.5),
    }


def inputs_of(batch: int = 1) -> Any:
    latent = torch.randn(batch, 16, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(3))
    return pack_module("nodes.host.distill.model").Inputs(latent, torch.full((batch,), 0.5), given(batch))


@pytest.mark.parametrize("name", sizes.SIZES)
def test_gradients_through_the_hosts_blocks_are_those_of_finite_differences(name: str, host: Any) -> None:
    """Of both stages, for the strategy's own parameters and for projections."""
    model = flux_model()
    # All blocks: the choice of some has no gradient, and a finite difference may change it.
    attention = attention_of(model, name, **({"blocks": 12} if name == "sla" else {}))
    distilled = distilled_model(model, attention)
    values, inputs = perturbed(distilled, attention), inputs_of()
    target = torch.randn(inputs.latent.shape, generator=torch.Generator().manual_seed(4))
    own = [key for key in values.parameters if ".processor." in key]
    assert len(own) == 3 * len(attention.strategy.parameters(2, 16, attention.grid))

    def end_to_end() -> float:
        return float(distilled.end_to_end(values, inputs, target).total)

    def layer_by_layer() -> float:
        return sum(float(error) for error in distilled.layer_by_layer(values, inputs).values())

    for loss in (end_to_end, layer_by_layer):
        for tensor in values.parameters.values():
            tensor.grad = None
        loss()
        gradients = {key: tensor.grad.clone() for key, tensor in values.parameters.items() if tensor.grad is not None}
        assert gradients.keys() == values.parameters.keys()
        for key, gradient in gradients.items():
            assert gradient.isfinite().all() and gradient.any(), key
        for key in ("single_transformer_blocks.0.attn.to_k.weight", *own[:1]):
            weight, gradient = values.parameters[key], gradients[key]
            # Along the gradient: of one number alone the loss moves by little more than its own rounding.
            along, step, before, ends = gradient / gradient.norm(), 1e-2, weight.detach().clone(), []
            for sign in (1, -1):
                weight.data.copy_(before + sign * step * along)
                ends.append(loss())
            weight.data.copy_(before)
            rounding = 4 * torch.finfo(torch.float32).eps * max(map(abs, ends)) / (2 * step)
            expected = pytest.approx(float(gradient.norm()), rel=0.03, abs=rounding)
            assert (ends[0] - ends[1]) / (2 * step) == expected, key
            assert rounding < 0.2 * float(gradient.norm()), key


@pytest.mark.parametrize("name", sizes.SIZES)
def test_the_model_that_samples_computes_what_the_student_does(name: str, host: Any) -> None:
    model = flux_model()
    attention = attention_of(model, name)
    distilled, inputs = distilled_model(model, attention), inputs_of(batch=2)
    own = dict(distilled.own_weights(torch.float32, torch.device("cpu")))
    start = pack_module("clear_core.distill.trained").FullWeights({**own, **attention.start()})
    trained = perturbed(distilled, attention)
    teacher = distilled.teacher(inputs).out
    for values, given_to_it in ((trained, trained), (start, student.untrained(attention))):
        with torch.no_grad():
            expected = distilled.student(values, inputs).out
        converted = student.converted(model, attention, given_to_it)
        found = run_forward(converted, inputs.latent, inputs.sigma, *given(2).values())
        assert (found - expected).norm() < 1e-5 * expected.norm()
        assert (expected - teacher).norm() > 1e-4 * teacher.norm()
    # The MODEL itself is unchanged.
    dense = run_forward(model, inputs.latent, inputs.sigma, *given(2).values())
    assert (dense - teacher).norm() < 1e-5 * teacher.norm()


def test_the_circle_is_trained_as_clears_window_is(host: Any) -> None:
    """Prediction and gradients, against the attention that Distill CLEAR Weights trains with."""
    model = flux_model()
    circle = attention_of(model, "circle")
    window = pack_module("clear_core.distill.attention").WindowAttention(pack_module("clear_core.window").Window(2))
    inputs = inputs_of()
    target = torch.randn(inputs.latent.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for attention in (circle, window):
        distilled = distilled_model(model, attention)
        values = perturbed(distilled, circle)
        losses = distilled.end_to_end(values, inputs, target)
        found.append([losses.total, *(tensor.grad for tensor in values.parameters.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_costs_are_as_equal_as_the_sizes_allow(host: Any) -> None:
    layout = pack_module("clear_core.layout")
    of = layout.TokenLayout(77, layout.Grid(16, 16))
    names = pack_module("clear_core.strategies").strategy_names()
    assert tuple(sizes.SIZES) == names
    for name in names:
        strategy = sizes.strategy(name)
        keys = sizes.image_keys(name, strategy, of)
        assert (keys is None) == (name in sizes.UNMATCHED)
        if keys is None:
            continue
        assert abs(keys - sizes.KEYS) <= (8 if name == "strided" else 4), name
        # What a query reads and nothing else, but for what is made for it.
        least = 4 * 4 * 32 * (77 * 333 + 256 * (77 + keys))
        flops = sum(strategy.flops(of, 4, 32, layer) for layer in (0, 1)) / 2
        assert flops == pytest.approx(least, rel=0.005) or (name in ("agent", "linformer", "sla") and flops > least)


def test_rows_of_another_model_are_not_taken(tmp_path: Path) -> None:
    for name in (files.FLUX, files.VAE):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"one")
    first = identity(tmp_path, ("circle", 4))
    assert identity(tmp_path, ("circle", 4)) == first
    assert identity(tmp_path, ("circle", 3)) != first
    (tmp_path / files.FLUX).write_bytes(b"two")
    assert identity(tmp_path, ("circle", 4)) != first


def test_correlations_of_ranks() -> None:
    assert report.spearman([1, 2, 30], [0.1, 0.5, 0.6]) == pytest.approx(1)
    assert report.spearman([1, 2, 30], [3, 2, 1]) == pytest.approx(-1)
    assert report.spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
    assert report.spearman([1, 2], [1, 2]) is None and report.spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_quick_command_measures_two_strategies_and_goes_on(tmp_path: Path) -> None:
    checkpoints.make_clip_l(tmp_path)
    command = [sys.executable, "-m", "devtools.ablate", "--quick", "--seeds", "1", "--docs", str(tmp_path)]
    command += ["--folder", str(tmp_path / "rows"), "--clip", str(tmp_path / checkpoints.CLIP_L)]

    def run() -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "8 of 8, agent_seed_0: " in run()
    [rows] = (tmp_path / "rows").glob("*/rows")
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in rows.glob("*.json")}
    for name in QUICK_NAMES:
        before, after = found[f"{name}_untrained"], found[f"{name}_seed_0"]
        assert after["pictures"] == 1 and 0 < after["loss"] != before["loss"] and 5 < after["psnr"] < 100
        assert found["times"][name] > 0
    assert found["circle_factors"]["formulation"] < 1e-6 < found["agent_factors"]["formulation"]
    assert found["circle_factors"]["integrity"] == 1 > found["agent_factors"]["integrity"]
    page = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "| `circle` | radius 4 | 36.4 |" in page and "| CLEAR, r = 8 | 15.53 | 86.47 | 74.36 | `circle` |" in page
    for name in ("ablation.png", "ablation_pictures.jpg"):
        assert (tmp_path / "images" / name).is_file()
    # What is there is not measured again.
    (rows / "agent_seed_0.json").write_text(json.dumps({**found["agent_seed_0"], "loss": 0.125}), encoding="utf-8")
    (rows / "agent_untrained.json").unlink()
    said = run()
    assert "agent_untrained: " in said and "agent_seed_0" not in said
    assert "| 0.1250 |" in (tmp_path / "ablation.md").read_text(encoding="utf-8")
