"""The small FLUX: its autoencoder, its files in ComfyUI's loaders, and its training."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from devtools import checkpoints
from devtools.proof.report import recovered
from devtools.small_flux import files, scenes, text
from devtools.small_flux.autoencoder import Coefficients, set_encoder
from devtools.small_flux.decoder import DecoderTraining
from devtools.small_flux.model import SIZES, new_model
from devtools.small_flux.pool import draw_pool, draw_scene
from devtools.small_flux.train import OutOfPlace, Recipe, Stage, Training, flow_loss, noised, spread
from devtools.train_demo import QUICK, Work, stages_done

TRAINING, _ = scenes.split()
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_heads": 2,
    "axes_dim": [2, 6, 8],
    "depth": 1,
    "depth_single_blocks": 2,
}


@pytest.fixture(scope="module")
def coefficients() -> Coefficients:
    return Coefficients.fit(torch.stack([draw_scene(TRAINING[i], 0, i, 64) for i in range(24)]))


@pytest.fixture(scope="module")
def clip_l(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    checkpoints.make_clip_l(models)
    return models / checkpoints.CLIP_L


@pytest.fixture(scope="module")
def texts() -> text.Texts:
    generator = torch.Generator().manual_seed(0)
    return text.Texts(
        torch.randn(5, 77, text.WIDTH, generator=generator).half(),
        torch.randn(5, text.WIDTH, generator=generator).half(),
    )


class Stopped(Exception):
    """As Ctrl-C would."""


def _stopping(kind: Any, stop: int | None) -> Any:
    """A kind of training that raises before its step number `stop`."""

    class Stopping(kind):
        taken = 0

        def _step(self, *args: Any) -> float:
            if self.taken == stop:
                raise Stopped
            self.taken += 1
            return super()._step(*args)

    return Stopping


def vae(coefficients: Coefficients) -> Any:
    from comfy.taesd.taesd import TAESD

    made = TAESD(latent_channels=SIZES["in_channels"])
    set_encoder(made, coefficients)
    return made.requires_grad_(False)


def test_the_encoder_through_the_hosts_loader_is_the_cosine_transform(
    coefficients: Coefficients, tmp_path: Path, host: Any
) -> None:
    import comfy.sd
    from comfy.latent_formats import Flux

    path = files.save_vae(vae(coefficients), tmp_path, {})
    loaded = comfy.sd.VAE(sd=load_file(path))
    image = draw_scene(TRAINING[0], 1, 1, 128)[None]
    found = Flux().process_in(loaded.encode(image.movedim(1, -1)))
    wanted = coefficients.encode(image)
    assert found.shape == (1, 16, 16, 16)
    # Half precision in the file, float32 or bfloat16 in the host's own choice.
    assert (found - wanted).abs().max() < 0.05
    assert (found - wanted).square().mean().sqrt() < 0.01


def test_coefficients_keep_a_picture(coefficients: Coefficients) -> None:
    images = torch.stack([draw_scene(TRAINING[i], 2, i, 64) for i in range(4)])
    latents = coefficients.encode(images)
    inverse = torch.linalg.pinv(coefficients.weight.reshape(16, -1)).float()
    flat = (latents - coefficients.bias[None, :, None, None]).permute(0, 2, 3, 1) @ inverse.T
    again = flat.reshape(4, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 64, 64)
    assert -10 * (again - images).square().mean().log10() > 24


def test_the_decoder_learns_and_goes_on_bit_for_bit(coefficients: Coefficients, tmp_path: Path) -> None:
    images = torch.stack([draw_scene(TRAINING[i], 2, i, 64) for i in range(2)])

    def train(name: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        model = vae(coefficients)
        training = _stopping(DecoderTraining, stop)(model, coefficients, tmp_path / name, 2)
        training.run(images, print, save_every=1)
        return model.taesd_decoder.state_dict()

    whole = train("whole.pt")
    with pytest.raises(Stopped):
        train("parts.pt", 1)
    parts = train("parts.pt")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_small_flux_loads_through_the_hosts_loader(tmp_path: Path, texts: text.Texts, host: Any) -> None:
    import comfy.sd

    from devtools.small_flux.custom_nodes.small_flux_loader import install

    install()
    install()
    trained = new_model(3)
    with torch.no_grad():
        trained.final_layer.linear.weight.normal_(0, 0.02)
    path = files.save_flux(trained.state_dict(), tmp_path, {})
    loaded = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    inner = loaded.model.diffusion_model
    assert (inner.hidden_size, inner.num_heads, len(inner.double_blocks), len(inner.single_blocks)) == (128, 4, 2, 4)
    latent = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 0.9])
    context, pooled = texts.context[:2].float(), texts.pooled[:2].float()
    guidance = torch.full((2,), 3.5)
    with torch.no_grad():
        own = trained(latent, sigma, context, pooled, guidance)
        wide = torch.nn.functional.pad(context, (0, 4096 - text.WIDTH))
        found = inner(latent, sigma, wide, torch.nn.functional.pad(pooled, (0, 1280)), guidance)
    assert (found - own).abs().max() < 0.02 * own.abs().max()  # bfloat16 in the file


def test_a_checkpoint_of_full_width_is_detected_as_before(host: Any) -> None:
    import comfy.model_detection

    from devtools.small_flux.custom_nodes.small_flux_loader import install

    tensors = checkpoints.flux_shapes()
    before = comfy.model_detection.detect_unet_config(tensors, "")
    install()
    assert comfy.model_detection.detect_unet_config(tensors, "") == before
    assert before["axes_dim"] == [16, 56, 56] and before["num_heads"] == 24


def test_gradients_through_the_hosts_blocks_are_those_of_finite_differences(texts: text.Texts) -> None:
    model = new_model(0, **TINY).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    image = torch.randn(2, 16, 8, 8, generator=generator).double()
    context, pooled = texts.context[:2, :6].double(), texts.pooled[:2].double()

    def loss() -> torch.Tensor:
        with OutOfPlace():
            return flow_loss(model, noised(image, torch.Generator().manual_seed(9)), context, pooled)

    loss().backward()
    for name in ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear2.weight", "txt_in.weight"):
        weight = model.get_parameter(name)
        assert weight.grad is not None
        place = int(weight.grad.abs().argmax())
        step, ends = 1e-3, []  # the host turns positions in float32
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[place] += sign * step
                ends.append(float(loss().detach()))
                weight.view(-1)[place] -= sign * step
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(weight.grad.view(-1)[place]), rel=3e-3)


def test_training_goes_on_bit_for_bit_through_both_stages(
    coefficients: Coefficients, texts: text.Texts, tmp_path: Path
) -> None:
    stages = (Stage(64, 4, 2, 6, 8, optimizer="muon", unconditional=0.5), Stage(128, 4, 2, 6, 12, guidance=2))
    recipe = Recipe(stages=stages, warmup=2, save_every=2)
    pools = {stage.side: draw_pool(TRAINING[:5], coefficients, stage.scenes, stage.side, 0) for stage in stages}

    def run(name: str, stop: int | None = None) -> Training:
        training = _stopping(Training, stop)(new_model(0, **TINY), recipe, tmp_path / name)
        training.run(lambda stage: pools[stage.side], texts, print)
        return training

    whole = run("whole.pt")
    for stop in (3, 3):  # within the first stage; and, after the state of its second step, within the second
        with pytest.raises(Stopped):
            run("parts.pt", stop)
    parts = run("parts.pt")
    assert parts.state.stage == 2
    assert all(torch.equal(whole.averaged[name], parts.averaged[name]) for name in whole.averaged)


def test_training_goes_on_from_a_file(coefficients: Coefficients, texts: text.Texts, tmp_path: Path) -> None:
    """A stage needs nothing but the file that the one before has made."""
    stages = (Stage(64, 3, 2, 6, 8), Stage(64, 3, 2, 6, 8))
    pool = draw_pool(TRAINING[:5], coefficients, 6, 64, 0)
    sizes = {**TINY, "depth_single_blocks": 1}

    def trained(name: str, recipe: Recipe, weights: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        training = Training(new_model(0, **sizes), recipe, tmp_path / name)
        if weights is not None:
            training.go_on_from(weights, 1)
        training.run(lambda _: pool, texts, print)
        return training.averaged

    first = trained("first.pt", Recipe(stages=(replace(stages[0], cooldown=0.3),)))
    files.save_flux(first, tmp_path, {"some": "thing"})
    read, metadata = files.read_flux(tmp_path)
    assert metadata == {"some": "thing"} and set(read) == set(first)
    work = Work(tmp_path / "work", tmp_path, QUICK, print)
    with pytest.raises(
        ValueError, match=r"small_flux\.safetensors does not say how it was trained: train-demo has not"
    ):
        work.flux(tmp_path, bfloat16=False)
    assert all(torch.equal(read[name], tensor.bfloat16().float()) for name, tensor in first.items())
    direct, through_file = (
        trained("direct.pt", Recipe(stages=stages), first),
        trained("file.pt", Recipe(stages=stages), read),
    )
    assert not torch.equal(direct["img_in.weight"], first["img_in.weight"])
    for name, tensor in direct.items():
        assert (through_file[name] - tensor).abs().max() < 0.02


def test_a_file_of_other_stages_is_refused() -> None:
    recipe = Recipe(stages=(Stage(64, 3, 2, 6, 8), Stage(128, 3, 2, 6, 8)))
    done = json.loads(json.dumps(asdict(replace(recipe, stages=recipe.stages[:1]))))
    assert stages_done(done, recipe, Path("models")) == 1
    done["stages"][0]["steps"] = 4
    with pytest.raises(ValueError, match=r"was trained by other stages than this recipe's first 1: .*'steps': 4"):
        stages_done(done, recipe, Path("models"))


def test_guidance_is_distilled_from_the_stages_first_weights(
    coefficients: Coefficients, texts: text.Texts, tmp_path: Path
) -> None:
    """The step learns from v(empty) + g (v(prompt) - v(empty)): of its own weights, in the first step."""
    pool, losses = draw_pool(TRAINING[:5], coefficients, 6, 64, 0), []
    generator = torch.Generator().manual_seed(0)
    model = new_model(0, **TINY)
    weights = {name: one + 0.05 * torch.randn(one.shape, generator=generator) for name, one in model.named_parameters()}
    for guidance in (1.0, 2.0, 3.0):
        recipe = Recipe(stages=(Stage(64, 1, 2, 6, 8), Stage(64, 50, 2, 6, 8, guidance=guidance)), warmup=10**9)
        training = Training(new_model(0, **TINY), recipe, tmp_path / f"{guidance}.pt")
        training.go_on_from(weights, 1)
        training.run(lambda _: pool, texts, print)
        [(_, _, loss)] = training.state.losses
        losses.append(loss)
    assert losses[0] < 1e-9
    assert losses[2] == pytest.approx(4 * losses[1], rel=1e-3)  # (g - 1)^2 of one difference
    assert losses[1] > 1e-4


def test_a_loss_that_is_not_finite_stops(coefficients: Coefficients, texts: text.Texts, tmp_path: Path) -> None:
    recipe = Recipe(stages=(Stage(64, 2, 2, 6, 8),))
    pool = draw_pool(TRAINING[:5], coefficients, 6, 64, 0)
    pool = replace(pool, latents=torch.full_like(pool.latents, float("nan")))
    training = Training(new_model(0, **TINY), recipe, tmp_path / "state.pt")
    with pytest.raises(ArithmeticError, match="The loss is nan at step 0 of 64 px"):
        training.run(lambda _: pool, texts, print)


def test_positions_of_a_small_image_lie_between_those_of_a_large_one(host: Any) -> None:
    model = new_model(0, **TINY)
    _, small = model.process_img(torch.zeros(1, 16, 16, 16), transformer_options=spread(2))
    _, large = model.process_img(torch.zeros(1, 16, 32, 32))
    pairs = large.reshape(16, 16, 3).unfold(0, 2, 2).unfold(1, 2, 2).mean((-1, -2))
    assert torch.equal(small.reshape(8, 8, 3), pairs)


def test_features_of_many_prompts_at_once_are_the_nodes_own(clip_l: Path, host: Any) -> None:
    clip = text.load_clip(clip_l)
    prompts = [one.prompt for one in TRAINING[:3]]
    found = text.encode(clip, prompts, print)
    for index, prompt in enumerate(prompts):
        [[context, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt), show_pbar=False)
        assert (context[0, :, : text.WIDTH] - found.context[index].float()).abs().max() < 0.02
        assert (extra["pooled_output"][0, : text.WIDTH] - found.pooled[index].float()).abs().max() < 0.02
        assert not context[..., text.WIDTH :].any()


def _command(module: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", f"devtools.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_commands_train_a_model_and_measure_a_student(clip_l: Path, tmp_path: Path) -> None:
    """Both commands on a small scale: the second loads what the first writes, distills it, and scores the student."""
    trained, proof = tmp_path / "trained", tmp_path / "proof"
    said = _command("train_demo", "--quick", "--folder", trained, "--clip", clip_l)
    [line] = [line for line in said.splitlines() if line.startswith("loss at the end")]
    assert float(line.split()[-1]) < 0.6  # a model that knows nothing: 1.2
    scores = json.loads((trained / "scores.json").read_text(encoding="utf-8"))
    assert scores["pictures"] == 4 and 0 <= scores["coherence"] <= 1
    assert (trained / "held_out.png").is_file()

    arguments = ("--quick", "--models", trained / "models", "--clip", clip_l, "--folder", proof, "--docs", tmp_path)
    assert "5 of 5" in _command("prove", *arguments)
    (kept,) = proof.iterdir()  # of this model and this amount
    files_of_rows = [kept / "rows" / f"r3_{name}_seed_0.json" for name in ("untrained", "full_both")]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files_of_rows]
    assert all(row["loss"] > 0 and 5 < row["psnr"] < 100 for row in rows)
    assert rows[0]["loss"] != rows[1]["loss"]
    page = (tmp_path / "proof.md").read_text(encoding="utf-8")
    assert "| 3 |  | untrained |" in page and "| 3 |  | both, weights |" in page
    assert "| 3 |  | end to end, weights, velocity alone, 10 times the samples |" in page
    start = "| 3 |  | end to end, weights, velocity alone, 10 times the samples, from 10 % on |  |"
    assert start in page, "no loss: attention was full too"
    assert "| 1 | 2 | end to end, LoRA 128 of all layers, velocity alone, 50 times the samples |" in page
    assert "| 512 | ntk, proportional | 1 |" in page and "| distilled | " in page
    for name in ("proof.png", "proof_pictures.jpg"):
        assert (tmp_path / "images" / name).is_file()
    bands = json.loads((kept / "beyond" / "bands.json").read_text(encoding="utf-8"))
    assert bands["difference"] < 1e-4
    assert (trained / "models" / files.CLEAR).is_file()
    # What is there is not measured again.
    files_of_rows[0].write_text(json.dumps({**rows[0], "loss": 0.125}), encoding="utf-8")
    assert " of 5" not in _command("prove", *arguments)
    assert "| 3 |  | untrained | 0.1250 |" in (tmp_path / "proof.md").read_text(encoding="utf-8")


def test_recovered_is_the_share_of_what_the_window_lost() -> None:
    dense, untrained = {"loss": 0.0, "coherence": 0.9}, {"loss": 0.4, "coherence": 0.5}
    student = {"loss": 0.1, "coherence": 0.8}
    assert recovered(dense, untrained, student, "loss") == pytest.approx(0.75)
    assert recovered(dense, untrained, student, "coherence") == pytest.approx(0.75)
    assert recovered(dense, untrained, untrained, "coherence") == 0
