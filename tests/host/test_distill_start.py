"""What a distillation starts from: the model's own weights, given ones, or given ones re-based on the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from safetensors.torch import save_file

from clear_core.distill.rebase import rebased
from clear_core.distill.samples import TrainingSet
from devtools.models import chroma_model, clear_tensors, flux2_model, flux_model

from host.distill_jobs import Stop, equal, job, run, samples, student_of, weights_of
from host.distill_samples import folders, one_thread
from host.distill_worker import SCALED, model_of

__all__ = ["folders", "job", "one_thread", "samples"]


@pytest.fixture
def clear(job: Any, nodes_api: Any, samples: TrainingSet) -> Any:
    """Weights that were trained for `flux_model()`."""
    return nodes_api.weights(run(job("clear", steps=40, method="layer by layer"), flux_model(), samples).file)


@pytest.fixture
def random(nodes_api: Any, tmp_path: Path) -> Any:
    save_file(clear_tensors(flux_model()), tmp_path / "random.safetensors")
    return nodes_api.weights(tmp_path / "random.safetensors")


def fine_tune() -> Any:
    """`flux_model()` with other attention projections."""
    model, generator = flux_model(), torch.Generator().manual_seed(7)
    transformer = model.model.diffusion_model
    layers = [layer for b in transformer.double_blocks for layer in (b.img_attn.qkv, b.img_attn.proj)]
    with torch.no_grad():
        for layer in [*layers, *(block.linear1 for block in transformer.single_blocks)]:
            layer.weight += 0.05 * torch.randn(layer.weight.shape, generator=generator)
    return model


def with_lora(model: Any, strength: float = 0.01) -> Any:
    """A clone of the MODEL with patches of attention layers."""
    patched, transformer = model.clone(), model.model.diffusion_model
    layers = {
        "double_blocks.0.img_attn.qkv": transformer.double_blocks[0].img_attn.qkv,
        "single_blocks.1.linear1": transformer.single_blocks[1].linear1,
    }
    patches = {f"diffusion_model.{n}.weight": ("diff", (torch.ones_like(at.weight),)) for n, at in layers.items()}
    assert len(patched.add_patches(patches, strength)) == len(layers)
    return patched


def test_a_run_starts_from_the_better_of_two(job: Any, clear: Any, random: Any, samples: TrainingSet) -> None:
    better = run(job("second", steps=1), flux_model(), samples, start=clear)
    assert better.note.startswith("clear.safetensors (error ")
    worse = run(job("third", steps=1), flux_model(), samples, start=random)
    assert worse.note.startswith("the model's own weights (error ")
    assert "better than random.safetensors (error " in worse.note


def test_a_lora_starts_at_zero(job: Any, random: Any, samples: TrainingSet) -> None:
    for options in ({}, {"start_base": flux_model()}):
        with pytest.raises(ValueError, match="a LoRA starts at zero"):
            run(job("lora", output="LoRA"), flux_model(), samples, start=random, **options)


@pytest.mark.parametrize(
    ("stored", "rounding"), [("float32", 0.0), ("bfloat16", 0.0), ("float8_e4m3fn", 0.0), (SCALED, 1e-6)]
)
def test_re_based_on_their_own_model_weights_are_what_they_were(
    nodes_api: Any, random: Any, stored: str, rounding: float
) -> None:
    """Bit for bit; but for weights with a scale, of which the host's layer gives weight + bias."""
    read = nodes_api.module("nodes.host.distill.stored_weights").StoredWeights(model_of(2, stored), "start_base")
    student = student_of(nodes_api, model_of(2, stored).model.diffusion_model)
    own = dict(student.own_weights(torch.float32, torch.device("cpu")))
    assert set(read.names) == own.keys()
    made = rebased(random.attention, own.items(), read)
    assert made.keys() == random.attention.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(read(name), own[name], rtol=0, atol=rounding)
        torch.testing.assert_close(tensor, random.attention[name], rtol=0, atol=rounding)


def test_patches_of_the_model_are_read_and_those_of_another_are_not(nodes_api: Any) -> None:
    """Both share their weights, and the other one is loaded, its patches merged into them."""
    read = nodes_api.module("nodes.host.distill.stored_weights").StoredWeights
    plain, key = flux_model(), "transformer_blocks.0.attn.to_k.weight"
    before = {name: read(plain, "")(name).clone() for name in read(plain, "").names}
    comfy.model_management.load_models_gpu([with_lora(plain, 0.5)])
    weight = plain.model.diffusion_model.double_blocks[0].img_attn.qkv.weight[32:64]
    torch.testing.assert_close(weight, before[key] + 0.5)
    changed = {name: read(with_lora(plain, 0.25), "")(name).clone() for name in before}
    assert equal(before, {name: read(plain, "")(name).clone() for name in before})
    torch.testing.assert_close(changed[key], before[key] + 0.25, rtol=0, atol=1e-7)
    assert torch.equal(
        changed["single_transformer_blocks.0.attn.to_q.weight"], before["single_transformer_blocks.0.attn.to_q.weight"]
    )


def test_of_three_starts_the_best_is_taken(job: Any, clear: Any, samples: TrainingSet) -> None:
    note = run(job("second", steps=1), fine_tune(), samples, start=clear, start_base=flux_model()).note
    errors = {name: float(error) for name, error in re.findall(r"(?:^| than | and )(.+?) \(error ([^)]+)\)", note)}
    assert list(errors) == ["clear.safetensors re-based", "the model's own weights", "clear.safetensors"]
    assert errors["clear.safetensors re-based"] < errors["the model's own weights"] < errors["clear.safetensors"]


def test_a_lora_of_the_base_is_a_fine_tune_of_it(job: Any, clear: Any, samples: TrainingSet) -> None:
    """Loaded, with its patches in the weights that it shares with the base."""
    base = flux_model()
    patched = run(job("patched", steps=1), with_lora(base), samples, start=clear, start_base=base)
    merged = run(job("merged", steps=1), merged_lora(), samples, start=clear, start_base=flux_model())
    for key, tensor in weights_of(patched).items():
        torch.testing.assert_close(tensor, weights_of(merged)[key], rtol=1e-5, atol=1e-6)
    assert patched.note == merged.note


def merged_lora() -> Any:
    model = flux_model()
    with torch.no_grad():
        model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight += 0.01
        model.model.diffusion_model.single_blocks[1].linear1.weight += 0.01
    return model


def test_a_re_based_run_that_was_stopped_ends_as_one_that_was_not(job: Any, clear: Any, samples: TrainingSet) -> None:
    def start() -> dict[str, Any]:
        return {"start": clear, "start_base": flux_model()}

    whole = run(job("whole"), fine_tune(), samples, **start())
    assert whole.note.startswith("clear.safetensors re-based (error ")

    def stop(session: Any, trained: Any, point: Any) -> None:
        if point.step == 2:
            raise Stop

    with pytest.raises(Stop):
        run(job("stopped"), fine_tune(), samples, on_step=stop, **start())
    with pytest.raises(ValueError, match=r"another run: start_base was [0-9a-f]{16}, now [0-9a-f]{16}\."):
        run(job("stopped"), fine_tune(), samples, start=clear, start_base=fine_tune())
    done: list[int] = []
    result = run(job("stopped"), fine_tune(), samples, on_step=lambda *at: done.append(at[2].step), **start())
    assert done == [3, 4]
    assert (result.note, result.history) == (whole.note, whole.history)
    assert equal(weights_of(result), weights_of(whole))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (flux2_model, r"start_base is FLUX\.2 with 1 double and 2 single blocks of 32 channels; .* is FLUX\.1 with"),
        (chroma_model, "start_base is Chroma with"),
        (lambda: flux_model(depth_single_blocks=3), "start_base is FLUX.1 with 1 double and 3 single blocks"),
        (lambda: flux_model(hidden_size=64, axes_dim=[8, 12, 12]), "2 single blocks of 64 channels; .* of 32 channels"),
    ],
    ids=["FLUX.2", "Chroma", "blocks", "channels"],
)
def test_a_base_of_another_shape_is_refused(
    job: Any, random: Any, samples: TrainingSet, make: Callable[[], Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(job(), flux_model(), samples, start=random, start_base=make())


def test_a_base_that_cannot_serve_is_refused(job: Any, nodes_api: Any, random: Any, samples: TrainingSet) -> None:
    with pytest.raises(ValueError, match="start_base goes with start_from"):
        run(job(), flux_model(), samples, start_base=flux_model())
    applied = nodes_api.apply(flux_model(), None, radius=4)
    with pytest.raises(ValueError, match="start_base: CLEAR is applied to this model"):
        run(job(), flux_model(), samples, start=random, start_base=applied)
    packed = flux_model()
    layer = packed.model.diffusion_model.double_blocks[0].img_attn.proj
    layer.weight = torch.nn.Parameter(torch.zeros(32, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"start_base: .*img_attn\.proj\.weight is stored in a packed format"):
        run(job(), flux_model(), samples, start=random, start_base=packed)
