"""Distillations of small models, from a training set to a file that the nodes take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file

from clear_core.distill.samples import TrainingSet
from clear_core.weights import read_header, read_weights
from devtools.models import chroma_model, flux2_model, flux_model, inputs, run_forward

from host.distill_jobs import QUICK, Stop, equal, job, run, samples, weights_of
from host.distill_samples import folders, one_thread, training_set

__all__ = ["folders", "job", "one_thread", "samples"]


@pytest.mark.parametrize(
    ("output", "method"),
    [("weights", "layer by layer"), ("weights", "end to end"), ("weights", "both"), ("LoRA", "both")],
)
def test_training_lowers_the_loss_and_its_file_is_applied(
    job: Any, nodes_api: Any, samples: TrainingSet, method: str, output: str
) -> None:
    made = job(method=method, output=output, rank=8, steps=24)
    result = run(made, flux_model(), samples)
    assert [point.step for point in result.history] == list(range(1, 25))
    first, last = (
        [point.losses["loss"] for point in part if point.stage == result.history[-1].stage]
        for part in (result.history[:15], result.history[15:])
    )
    assert sum(last) / len(last) < sum(first) / len(first)
    metadata = (
        read_header(result.file)[1]
        if output == "weights"
        else comfy.utils.load_torch_file(str(result.file), return_metadata=True)[1]
    )
    assert (metadata["clear.radius"], metadata["clear.family"], metadata["clear.method"]) == ("2", "FLUX.1", method)
    assert "licence" in metadata["clear.licence"]
    assert nodes_api.apply(flux_model(), result.weights, radius=0, backend="sdpa") is not None


@pytest.mark.parametrize(
    "options", [{"method": "both"}, {"output": "LoRA", "rank": 4, "method": "end to end"}], ids=str
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(job: Any, samples: TrainingSet, options: Any) -> None:
    whole = run(job("whole", steps=6, **options), flux_model(), samples)
    calls = 0

    def cancel() -> None:
        nonlocal calls
        calls += 1
        if calls in (9, 30):
            raise Stop

    stopped = job("stopped", steps=6, **options)
    done: list[int] = []
    for _ in range(2):
        with pytest.raises(Stop):
            run(stopped, flux_model(), samples, check=cancel, on_step=lambda *at: done.append(at[2].step))
    assert not stopped.file.exists()
    result = run(stopped, flux_model(), samples, on_step=lambda *at: done.append(at[2].step))
    assert done == [1, 2, 3, 4, 5, 6]
    assert result.history == whole.history
    assert equal(weights_of(result), weights_of(whole))


def test_a_finished_run_trains_nothing_again_and_more_steps_go_on(job: Any, samples: TrainingSet) -> None:
    options = {"method": "end to end"}
    run(job(steps=2, **options), flux_model(), samples)
    again: list[int] = []
    run(job(steps=2, **options), flux_model(), samples, on_step=lambda *at: again.append(at[2].step))
    assert again == []
    more = run(job(steps=4, **options), flux_model(), samples, on_step=lambda *at: again.append(at[2].step))
    assert again == [3, 4]
    assert equal(weights_of(more), weights_of(run(job("other", steps=4, **options), flux_model(), samples)))


def test_a_state_of_other_settings_is_refused_until_resume_is_off(job: Any, samples: TrainingSet) -> None:
    run(job(), flux_model(), samples)
    with pytest.raises(
        ValueError, match=r"another run: radius was 2, now 3\. .*choose another name, or turn resume off"
    ):
        run(job(radius=3), flux_model(), samples)
    assert run(job(radius=3, resume=False), flux_model(), samples).history


def test_a_damaged_state_is_named(job: Any, samples: TrainingSet) -> None:
    made = job()
    run(made, flux_model(), samples)
    made.state.write_bytes(made.state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"mine\.pt cannot be read .* Delete it, or turn resume off"):
        run(made, flux_model(), samples)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_done(job: Any, samples: TrainingSet) -> None:
    made = job(steps=4, method="end to end", batch=1)

    def damage(session: Any, trained: Any, point: Any) -> None:
        if point.step == 2:
            session.model.model.diffusion_model.final_layer.linear.weight.data.fill_(torch.nan)

    with pytest.raises(RuntimeError, match=r"not finite at step 3 .*Lower learning_rate"):
        run(made, flux_model(), samples, on_step=damage)
    state = torch.load(made.state, weights_only=True)
    assert len(state["history"]) == 2
    assert all(tensor.isfinite().all() for tensor in state["parameters"].values())


def test_a_full_disk_leaves_the_state_that_was_there(
    job: Any, samples: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(steps=4, save_every=1)
    save = torch.save

    def full(state: Any, path: Path) -> None:
        if len(state["history"]) > 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    with monkeypatch.context() as disk:
        disk.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            run(made, flux_model(), samples)
    assert [path.name for path in made.state.parent.iterdir()] == ["mine.pt"]
    assert len(torch.load(made.state, weights_only=True)["history"]) == 2


def test_no_room_for_the_state_is_told_before_the_first_step(
    job: Any, samples: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    done: list[Any] = []
    with pytest.raises(ValueError, match=r"state needs .* GiB in .*, where 0\.0 GiB are free"):
        run(job(), flux_model(), samples, on_step=lambda *at: done.append(at))
    assert done == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "../mine"}, "allowed are letters, digits"),
        ({"name": ""}, "allowed are letters, digits"),
        ({"radius": 0}, "radius is 0; 1 to 128"),
        ({"steps": 0}, "steps is 0; 1 to"),
        ({"method": "magic"}, "method is 'magic'; choose one of layer by layer"),
        ({"optimizer": "SGD"}, "choose one of AdamW"),
        ({"learning_rate": 0.0}, "must be over 0"),
        ({"save_every": 0}, "save_every is 0"),
    ],
    ids=str,
)
def test_inputs_that_are_not_allowed(job: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        job(**changed)


def test_what_cannot_be_trained_is_refused(job: Any, nodes_api: Any, samples: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        run(job(), flux_model(), TrainingSet(tmp_path, ()))
    with pytest.raises(ValueError, match=r"latents have 16 channels, FLUX\.2 needs 128"):
        run(job(), flux2_model(), samples)
    with pytest.raises(ValueError, match="the teacher needs full attention"):
        run(job(), nodes_api.apply(flux_model(), None, radius=4), samples)
    with pytest.raises(ValueError, match=r"radius 10 covers the whole image of 8 x 8 tokens.* Choose a smaller radius"):
        run(job(radius=10), flux_model(), samples)
    samples.files[1].unlink()
    with pytest.raises(RuntimeError, match="is not there any more"):
        run(job(), flux_model(), samples)


def quantised(model: Any) -> Any:
    """The model with its blocks' weights in 8 bits, computed in float32, as Load Diffusion Model makes it."""
    model.model.manual_cast_dtype = torch.float32
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.comfy_cast_weights = True
    for block in (*model.model.diffusion_model.double_blocks, *model.model.diffusion_model.single_blocks):
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    return model


def dequantised(model: Any) -> Any:
    """`quantised`, with the same values in 32 bits."""
    for tensor in quantised(model).model.diffusion_model.parameters():
        tensor.data = tensor.data.float()
    return model


@pytest.mark.parametrize("method", ["layer by layer", "end to end"])
@pytest.mark.parametrize("output", ["weights", "LoRA"])
def test_8_bit_and_inference_mode_bases_give_the_same(job: Any, samples: TrainingSet, method: str, output: str) -> None:
    options = {"method": method, "output": output, "rank": 4, "steps": 2}
    expected = weights_of(run(job("plain", **options), dequantised(flux_model()), samples))
    # A node runs in inference mode, and so does the loader whose model it is given.
    with torch.inference_mode():
        got = weights_of(run(job("eight", **options), quantised(flux_model()), samples))
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-5, atol=1e-6)


def test_the_models_loras_belong_to_the_teacher(job: Any, samples: TrainingSet) -> None:
    model = flux_model()
    name = "diffusion_model.single_blocks.0.linear1.weight"
    change = torch.full_like(model.model.diffusion_model.single_blocks[0].linear1.weight, 0.01)
    patched = model.clone()
    patched.add_patches({name: ("diff", (change,))}, 1.0)
    merged = flux_model()
    merged.model.diffusion_model.single_blocks[0].linear1.weight.data += change
    one, other = (run(job(key, method="end to end"), m, samples) for key, m in (("one", patched), ("two", merged)))
    for key, tensor in weights_of(one).items():
        torch.testing.assert_close(tensor, weights_of(other)[key], rtol=1e-5, atol=1e-6)


def test_a_lora_of_the_core_loader_is_what_the_node_gives(job: Any, nodes_api: Any, samples: TrainingSet) -> None:
    result = run(job(output="LoRA", rank=4, down_factor=2, method="end to end"), flux_model(), samples)
    file = load_file(result.file)
    assert len(file) == 2 * 10
    loaded, _ = comfy.sd.load_lora_for_models(flux_model(), None, file, 1.0, 1.0)
    settings = {"radius": 2, "down_factor": 2, "backend": "sdpa"}
    by_core = run_forward(nodes_api.apply(loaded, None, **settings), **inputs(16, 16))
    by_node = run_forward(nodes_api.apply(flux_model(), result.weights, **settings), **inputs(16, 16))
    untrained = run_forward(nodes_api.apply(flux_model(), None, **settings), **inputs(16, 16))
    torch.testing.assert_close(by_core, by_node, rtol=1e-4, atol=1e-5)
    assert (by_core - untrained).abs().max() > 1e-3


def test_a_file_is_applied_in_bands(
    job: Any, nodes_api: Any, in_bands: Callable[..., Any], samples: TrainingSet
) -> None:
    result = run(job(down_factor=2), flux_model(), samples)
    assert read_weights(result.file).variant.down_factor == 2
    applied = nodes_api.apply(flux_model(), nodes_api.weights(result.file), backend="sdpa")
    expected = run_forward(applied, **inputs(16, 16))
    torch.testing.assert_close(run_forward(in_bands(applied), **inputs(16, 16)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "make", "channels"),
    [("FLUX.2", flux2_model, 128), ("Chroma", chroma_model, 16)],
    ids=["FLUX.2", "Chroma"],
)
def test_other_families_are_distilled_and_take_their_own_files_alone(
    job: Any, nodes_api: Any, tmp_path: Path, family: str, make: Callable[[], Any], channels: int
) -> None:
    samples = training_set(tmp_path, channels=channels, side=8)
    for output in ("weights", "LoRA"):
        result = run(job(output, output=output, rank=4, method="both", steps=6), make(), samples)
        applied = nodes_api.apply(make(), result.weights, radius=2, backend="sdpa")
        latent = inputs(8, 8, channels=channels)
        if family == "FLUX.2":
            latent.pop("pooled_text")
        made = run_forward(applied, **latent)
        untrained = run_forward(nodes_api.apply(make(), None, radius=2, backend="sdpa"), **latent)
        assert (made - untrained).abs().max() > 1e-4
    weights = nodes_api.weights(job("weights").file)
    assert weights.family == family
    with pytest.raises(ValueError, match=rf"distilled for {family} and this model is FLUX\.1"):
        nodes_api.apply(flux_model(), weights)


@pytest.mark.parametrize("channels", [32, 96], ids=["canny", "fill"])
def test_models_with_an_image_to_go_by(job: Any, samples: TrainingSet, channels: int) -> None:
    model = flux_model(in_channels=channels)
    model.model.model_config.unet_config |= {"in_channels": channels, "out_channels": 16}
    assert len(run(job(), model, samples).history) == QUICK["steps"]
