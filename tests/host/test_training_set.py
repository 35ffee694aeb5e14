"""CLEAR Training Set with the host's own FLUX, autoencoder and text encoders: what it makes, keeps and refuses."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from devtools.checkpoints import AUTOENCODER, random_like
from devtools.models import chroma_model, flux_model

IMAGES, GENERATE = "images in a folder", "generate from prompts"
SIZE = {"width": 80, "height": 64}


@pytest.fixture(scope="module")
def clip(host: Any) -> Any:
    """FLUX's text encoders with the widths of the tiny FLUX, and the real tokenizers."""
    import comfy.sd
    from comfy.text_encoders.flux import FluxTokenizer, flux_clip

    class Target:
        clip, tokenizer, params = flux_clip(dtype_t5=torch.float32), FluxTokenizer, {}

    small = {
        "clip_l_model_config": {
            "hidden_size": 12,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        "t5xxl_model_config": {"d_ff": 32, "d_kv": 12, "d_model": 24, "num_heads": 2, "num_layers": 1},
    }
    made = comfy.sd.CLIP(Target, model_options={**small, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.cond_stage_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def vae(host: Any) -> Any:
    """FLUX's autoencoder, random, with few layers and channels."""
    return small_vae(16)


def small_vae(channels: int) -> Any:
    import comfy.ldm.models.autoencoder
    import comfy.sd

    config = {**AUTOENCODER, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": channels}
    engine = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
        decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": config},
    )
    engine.load_state_dict(random_like(engine.state_dict()))
    made: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    made.first_stage_model = engine.float().eval()
    made.downscale_ratio = made.upscale_ratio = 8
    made.latent_channels = channels
    made.process_input = lambda image: image * 2.0 - 1.0
    made.patcher = type(made.patcher)(engine, made.device, made.device)
    return made


@pytest.fixture(scope="module")
def flux(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is encoded or sampled."""
    import comfy.sample
    import comfy.sd

    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, as_: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[as_] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(comfy.sd.CLIP, "encode_from_tokens_scheduled", "text")
    counted(comfy.sd.VAE, "encode", "image")
    counted(comfy.sample, "sample", "sampled")
    return counts


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's output folder."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def run(nodes_api: Any, clip: Any, vae: Any, output: Path, shown: Any) -> Callable[..., tuple[Any, str]]:
    """The node: the set and its report."""

    def execute(source: str = IMAGES, **inputs: Any) -> tuple[Any, str]:
        asked = {
            "name": "a set",
            "source": source,
            "clip": clip,
            "folder": "",
            "prompts": "",
            **SIZE,
            "steps": 2,
            "seed": 7,
        }
        with torch.inference_mode():
            return nodes_api.execute("CLEARTrainingSet", **{**asked, "vae": vae, **inputs})

    return execute


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


def picture(path: Path, width: int = 80, height: int = 64, **options: Any) -> Path:
    pixels = np.random.default_rng(len(path.stem)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def captioned(path: Path, prompt: str, width: int = 80, height: int = 64) -> Path:
    path.with_suffix(".txt").write_text(prompt, encoding="utf-8")
    return picture(path, width, height)


def saved_by_comfyui(path: Path, graph: Any) -> Path:
    """With a workflow's metadata, as Save Image writes it."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    return picture(path, pnginfo=metadata)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": {key: list(v) if isinstance(v, tuple) else v for key, v in inputs.items()}}


KSAMPLER = {
    "1": node("CLIPTextEncode", clip=("9", 1), text="a hill"),
    "2": node("CLIPTextEncode", clip=("9", 1), text="blurry"),
    "3": node("KSampler", positive=("1", 0), negative=("2", 0), seed=1),
    "4": node("VAEDecode", samples=("3", 0)),
    "5": node("SaveImage", images=("4", 0), filename_prefix="x"),
}
GUIDER = {
    "1": node("CLIPTextEncode", text=("8", 0)),
    "2": node("FluxGuidance", conditioning=("1", 0), guidance=3.5),
    "3": node("BasicGuider", model=("9", 0), conditioning=("2", 0)),
    "4": node("SamplerCustomAdvanced", noise=("7", 0), guider=("3", 0)),
    "5": node("VAEDecode", samples=("4", 0)),
    "6": node("SaveImage", images=("5", 0)),
    "8": node("PrimitiveStringMultiline", value="a hill"),
}
TWO_STAGES = {
    # The first stage comes first in the file; the image is of the second.
    "1": node("CLIPTextEncode", text="a sketch"),
    "2": node("KSampler", positive=("1", 0), negative=("1", 0)),
    "3": node("CLIPTextEncodeFlux", clip_l="hill", t5xxl="a hill", guidance=3.5),
    "4": node("ControlNetApplyAdvanced", positive=("3", 0), negative=("1", 0)),
    "5": node("KSampler", positive=("4", 0), negative=("4", 1), latent_image=("2", 0)),
    "6": node("VAEDecode", samples=("5", 0)),
    "7": node("SaveImage", images=("6", 0)),
}


# ---- images of a folder --------------------------------------------------------------------------------------


def test_images_with_texts_beside_them(run: Any, folder: Path, clip: Any, vae: Any, output: Path) -> None:
    for name in ("img10.png", "img9.jpg", "img2.webp", "B.JPEG"):
        captioned(folder / name, f"prompt of {name}")
    (folder / "notes.md").write_text("no image", encoding="utf-8")
    (folder / "deeper").mkdir()
    captioned(folder / "deeper" / "c.png", "not looked at")
    samples, report = run(folder=str(folder))
    assert report == f"4 samples of 80 x 64 in {output / 'clear_training_sets' / 'a set'}: 4 made, 0 there before"
    prompts = [samples.read(n).prompt for n in range(len(samples))]
    assert prompts == [f"prompt of {name}" for name in ("B.JPEG", "img2.webp", "img9.jpg", "img10.png")]
    assert [path.name[:6] for path in samples.files] == ["00000_", "00001_", "00002_", "00003_"]

    sample = samples.read(3)
    pixels = torch.tensor(np.asarray(Image.open(folder / "img10.png"))).float()[None] / 255
    with torch.inference_mode():
        moments = vae.first_stage_model.encode(pixels.movedim(-1, 1) * 2 - 1, unregularized=True)[0]
        ((tokens, others),) = clip.encode_from_tokens_scheduled(clip.tokenize("prompt of img10.png"))
    mean, logvar = moments[0].chunk(2)
    assert torch.equal(sample.mean, mean)
    assert torch.allclose(sample.std, (0.5 * logvar).exp()) and sample.std.min() > 0
    assert sample.conditioning.keys() == {"cross_attn", "pooled_output"}
    assert sample.conditioning["cross_attn"].shape == (256, 24)
    assert torch.equal(sample.conditioning["cross_attn"], tokens[0])
    assert torch.equal(sample.conditioning["pooled_output"], others["pooled_output"][0])


@pytest.mark.parametrize("graph", [KSAMPLER, GUIDER, TWO_STAGES], ids=["KSampler", "guider", "two stages"])
def test_the_prompt_of_an_image_that_comfyui_saved(run: Any, folder: Path, graph: Any) -> None:
    saved_by_comfyui(folder / "a.png", graph)
    samples, _ = run(folder=str(folder))
    assert [samples.read(n).prompt for n in range(len(samples))] == ["a hill"]


def test_the_text_beside_an_image_is_before_its_metadata(run: Any, folder: Path) -> None:
    saved_by_comfyui(folder / "a.png", KSAMPLER).with_suffix(".txt").write_text("mine\n", encoding="utf-8-sig")
    assert run(folder=str(folder))[0].read(0).prompt == "mine"


LOOP = {"1": node("KSampler", positive=("2", 0)), "2": node("FluxGuidance", conditioning=("2", 0), text=("3", 0))}
LOOP["3"] = node("Text", value=("3", 0))
CHAIN = {str(n): node("FluxGuidance", positive=(str(n + 1), 0)) for n in range(5000)}


@pytest.mark.parametrize(
    "graph",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        {"1": 3, "2": {"inputs": []}},
        LOOP,
        CHAIN,
        {"1": node("KSampler", positive=("7", 0))},
    ],
    ids=["no JSON", "a list", "null", "deep JSON", "no nodes", "a loop", "a long chain", "a link to nothing"],
)
def test_metadata_without_a_prompt(run: Any, folder: Path, graph: Any) -> None:
    captioned(folder / "a.png", "a")
    saved_by_comfyui(folder / "b.png", graph)
    samples, report = run(folder=str(folder))
    assert len(samples) == 1
    assert report.split("\n")[1] == "1 left out:"
    assert report.split("\n")[2].startswith("b.png: ")


def test_what_is_left_out_is_named_with_its_reason(run: Any, folder: Path) -> None:
    captioned(folder / "good.png", "a")
    captioned(folder / "no_image.png", "a").write_bytes(b"not an image")
    damaged = captioned(folder / "damaged.png", "a")
    damaged.write_bytes(damaged.read_bytes()[:3000])
    picture(folder / "no_prompt.jpg")
    captioned(folder / "empty.png", " \n")
    captioned(folder / "tiny.png", "a", 39, 31)
    captioned(folder / "narrow.png", "a", 39, 32)  # one side is half of what is asked: good enough
    captioned(folder / "latin.png", "a").with_suffix(".txt").write_bytes(b"H\xfcgel")
    (folder / "a_folder.png").mkdir()
    samples, report = run(folder=str(folder))
    assert [samples.read(n).prompt for n in range(len(samples))] == ["a", "a"]
    first, second, *lines = report.split("\n")
    assert "2 samples" in first and second == "7 left out:"
    said = dict(line.split(": ", 1) for line in lines)
    assert said.keys() == {f"{n}.png" for n in ("no_image", "damaged", "empty", "tiny", "latin", "a_folder")} | {
        "no_prompt.jpg"
    }
    assert said["no_image.png"].startswith("cannot be read (UnidentifiedImageError")
    assert said["damaged.png"].startswith("cannot be read (")
    assert said["no_prompt.jpg"] == "no prompt, neither in no_prompt.txt nor in the image's metadata"
    assert said["empty.png"] == "no prompt, neither in empty.txt nor in the image's metadata"
    assert said["tiny.png"] == "too small, 39 x 31 pixels for 80 x 64"
    assert said["latin.png"].startswith("latin.txt cannot be read as UTF-8")


def test_images_are_scaled_to_cover_the_size_and_cut_in_the_middle(nodes_api: Any, folder: Path) -> None:
    images = nodes_api.module("nodes.host.training_images")
    stripes = np.zeros((128, 320, 3), dtype=np.uint8)
    stripes[:, 80:240] = 255  # the middle half, which is what 80 x 64 shows of 320 x 128
    Image.fromarray(stripes).save(folder / "wide.png")
    (folder / "wide.txt").write_text("a", encoding="utf-8")
    # A camera's image on its side.
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(stripes.swapaxes(0, 1)[:, ::-1]).save(folder / "turned.png", exif=turned)
    (folder / "turned.txt").write_text("a", encoding="utf-8")
    grey = Image.fromarray(np.full((64, 80), 51, dtype=np.uint8))
    grey.save(folder / "grey.png")
    (folder / "grey.txt").write_text("a", encoding="utf-8")
    found, left_out = images.images_in(folder, 80, 64)
    assert [image.path.name for image in found] == ["grey.png", "turned.png", "wide.png"] and not left_out
    grey, turned, wide = (images.pixels_of(image, 80, 64) for image in found)
    assert wide.shape == turned.shape == grey.shape == (1, 64, 80, 3)
    assert wide.dtype == torch.float32 and wide[:, :, 4:-4].min() > 0.99
    assert torch.equal(grey, torch.full((1, 64, 80, 3), 0.2))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], r"There is no image in .*images; allowed are \.jpeg, \.jpg, \.png, \.webp\. Choose another folder\."),
        (["a.png", "b.png"], r"No image of .*images can be used\. Of 2: a\.png: no prompt, .*; b\.png: no prompt"),
    ],
)
def test_a_folder_without_usable_images(run: Any, folder: Path, names: list[str], said: str) -> None:
    for name in names:
        picture(folder / name)
    with pytest.raises(ValueError, match=said):
        run(folder=str(folder))


def test_a_folder_of_images_that_break_when_they_are_decoded(run: Any, folder: Path, output: Path) -> None:
    damaged = captioned(folder / "a.png", "a")
    damaged.write_bytes(damaged.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"No image of .* can be used\. Of 1: a\.png: cannot be read"):
        run(folder=str(folder))
    assert not output.exists()


def test_a_folder_below_the_input_folder_and_one_in_quotes(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned(folder / "a.png", "a")
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: str(folder.parent))
    assert len(run(folder="images")[0]) == len(run(folder=f'"{folder}" ')[0]) == 1


def test_an_autoencoder_without_a_distribution(run: Any, folder: Path, host: Any) -> None:
    captioned(folder / "a.png", "a")
    plain = small_vae(16)
    moments = plain.first_stage_model

    class Plain(torch.nn.Module):
        def encode(self, pixels: Tensor) -> Tensor:
            return moments.encode(pixels)

    plain.first_stage_model = Plain()
    samples, report = run(folder=str(folder), vae=plain)
    assert samples.read(0).std.abs().max() == 0 < samples.read(0).mean.abs().max()
    assert report.endswith("\n1 without deviation: the VAE gives a latent only, so std is 0")


def test_in_tiles_the_mean_is_the_tiled_encode_and_the_deviation_is_0(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the host does where memory runs out."""
    import comfy.sd

    captioned(folder / "a.png", "a")

    def encode(self: Any, pixels: Tensor) -> Tensor:
        return self.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=8)

    monkeypatch.setattr(comfy.sd.VAE, "encode", encode)
    samples, report = run(folder=str(folder))
    assert samples.read(0).mean.shape == (16, 8, 10)
    assert samples.read(0).std.abs().max() == 0
    assert "without deviation" in report


# ---- prompts -------------------------------------------------------------------------------------------------


def test_prompts_become_the_latents_of_ksampler(run: Any, host: Any, flux: Any, clip: Any, nodes_api: Any) -> None:
    samples, report = run(GENERATE, prompts="a hill\n\n  a lake \n", model=flux, vae=None)
    assert len(samples) == 2 and "2 made" in report
    for n, prompt in enumerate(("a hill", "a lake")):
        sample = samples.read(n)
        with torch.inference_mode():
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt), add_dict={"guidance": 3.5})
            latent = {"samples": torch.zeros(1, 16, 8, 10)}
            (expected,) = host.common_ksampler(
                flux, 7 + n, 2, 1.0, "euler", "simple", conditioning, conditioning, latent
            )
        assert torch.equal(sample.mean, expected["samples"][0])
        assert sample.std.abs().max() == 0
        assert sample.prompt == prompt
        assert torch.equal(sample.conditioning["cross_attn"], conditioning[0][0][0])


def test_the_last_seed_is_followed_by_the_first(run: Any, flux: Any) -> None:
    samples, _ = run(GENERATE, prompts="a hill\na hill", model=flux, seed=2**64 - 1)
    again, _ = run(GENERATE, prompts="a hill", model=flux, seed=0)
    assert torch.equal(samples.read(1).mean, again.read(0).mean)
    assert not torch.equal(samples.read(0).mean, again.read(0).mean)


# ---- what is there is kept -----------------------------------------------------------------------------------


def test_a_second_run_encodes_nothing(run: Any, folder: Path, flux: Any, calls: Counter[str]) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    first, _ = run(folder=str(folder))
    assert calls == {"text": 2, "image": 2}
    again, report = run(folder=str(folder))
    assert calls == {"text": 2, "image": 2}
    assert again == first and "0 made, 2 there before" in report

    first, _ = run(GENERATE, prompts="a\nb", model=flux)
    again, report = run(GENERATE, prompts="a\nb", model=flux)
    assert calls == {"text": 4, "image": 2, "sampled": 2}
    assert again == first
    assert report.endswith("2 other samples in that folder, of other settings, are not in this set")


def test_only_what_changed_is_made_again(run: Any, folder: Path, calls: Counter[str]) -> None:
    for name in ("a", "b", "c"):
        captioned(folder / f"{name}.png", name)
    first, _ = run(folder=str(folder))
    (folder / "a.txt").write_text("another prompt", encoding="utf-8")
    os.utime(folder / "b.png", ns=(0, 0))  # as if it were another image
    captioned(folder / "aa.png", "new")
    calls.clear()
    again, report = run(folder=str(folder))
    assert calls == {"text": 3, "image": 3} and "3 made, 1 there before" in report
    assert [again.read(n).prompt for n in range(4)] == ["another prompt", "new", "b", "c"]
    assert again.files[3] == first.files[2]


@pytest.mark.parametrize("changed", [{"width": 64}, {"height": 80}, {"steps": 3}, {"seed": 8}, {"prompts": "a lake"}])
def test_other_settings_are_other_samples(run: Any, flux: Any, calls: Counter[str], changed: dict[str, Any]) -> None:
    asked = {"prompts": "a hill", "model": flux}
    first, _ = run(GENERATE, **asked)
    other, _ = run(GENERATE, **{**asked, **changed})
    assert calls["sampled"] == 2
    assert set(first.files).isdisjoint(other.files)


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_broken_file_is_made_again(run: Any, folder: Path, calls: Counter[str], content: bytes | None) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    samples, _ = run(folder=str(folder))
    whole = samples.read(0)
    samples.files[0].write_bytes(samples.files[0].read_bytes()[:-1] if content is None else content)
    again, report = run(folder=str(folder))
    assert calls == {"text": 3, "image": 3} and "1 made, 1 there before" in report
    assert again == samples and torch.equal(again.read(0).mean, whole.mean)


def test_generation_goes_on_after_cancel(
    run: Any, flux: Any, calls: Counter[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    prompts = "a hill\na lake\na wood"
    calls_of_step = Counter[str]()
    real = management.throw_exception_if_processing_interrupted

    def cancelled_in_the_second_image() -> None:
        calls_of_step["all"] += 1
        if calls["sampled"] == 2:
            management.interrupt_current_processing(True)
        real()

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", cancelled_in_the_second_image)
        with pytest.raises(management.InterruptProcessingException):
            run(GENERATE, prompts=prompts, model=flux)
    assert [path.name[:6] for path in (output / "clear_training_sets" / "a set").iterdir()] == ["00000_"]
    calls.clear()
    samples, report = run(GENERATE, prompts=prompts, model=flux)
    assert calls == {"text": 2, "sampled": 2} and "2 made, 1 there before" in report
    assert [samples.read(n).prompt for n in range(3)] == prompts.split("\n")


def test_a_full_disk_is_said_with_the_path(
    run: Any, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.startswith("00000_"):
            return real(path, data)
        real(path, data[:99])
        raise OSError(errno.ENOSPC, "No space left on device")

    made = output / "clear_training_sets" / "a set"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            RuntimeError, match=r"a set.00001_\w+\.safetensors is not saved: the disk is full\. 1 samples"
        ):
            run(folder=str(folder))
    assert [path.name[:6] for path in made.iterdir()] == ["00000_"]
    assert "1 made, 1 there before" in run(folder=str(folder))[1]


def test_an_output_folder_that_cannot_be_made(run: Any, folder: Path, output: Path) -> None:
    captioned(folder / "a.png", "a")
    output.mkdir()
    (output / "clear_training_sets").write_text("a file", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"safetensors is not saved: .+\. 0 samples are there\. Make room, or start"):
        run(folder=str(folder))


# ---- the models are part of what a sample depends on -----------------------------------------------------------


class Graph:
    """As the host's DynamicPrompt."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self._nodes = nodes

    def get_node(self, name: str) -> Any:
        return self._nodes[name]


def graph(lora: str = "a.safetensors", first: str = "4", second: str = "7") -> Graph:
    return Graph(
        {
            first: node("UNETLoader", unet_name="flux1-dev.safetensors"),
            second: node("LoraLoader", model=(first, 0), clip=(first, 0), lora_name=lora),
            "9": node("CLEARTrainingSet", model=(second, 0), clip=("12", 0), name="x"),
            "12": node("DualCLIPLoader", clip_name1="clip_l.safetensors"),
        }
    )


def test_a_model_is_known_by_the_nodes_before_it(nodes_api: Any) -> None:
    upstream = nodes_api.module("nodes.host.upstream").upstream
    known = upstream(graph(), "9", "model")
    assert known == upstream(graph(first="70", second="3"), "9", "model")
    assert known != upstream(graph(lora="b.safetensors"), "9", "model")
    assert upstream(graph(), "9", "clip") == upstream(graph(lora="b.safetensors"), "9", "clip") != known
    assert upstream(graph(), "9", "vae") == upstream(None, "9", "model") == ""


# ---- wrong inputs --------------------------------------------------------------------------------------------

WRONG = [
    ({"name": "../x"}, r"name is '\.\./x'; allowed are letters, digits, spaces and \. _ - within, up to 100 in all"),
    ({"name": ""}, r"name is ''; allowed"),
    ({"name": "x" * 101}, r"name is 'xxx.*; allowed"),
    ({"name": "a/b"}, r"name is 'a/b'; allowed"),
    ({"name": "end."}, r"name is 'end\.'; allowed"),
    ({"source": "video"}, r"source is 'video'; choose one of: images in a folder, generate from prompts"),
    ({"width": 72}, r"width is 72; allowed are multiples of 16\. The nearest is"),
    ({"height": 48}, r"height is 48; allowed is 64 to 4096"),
    ({"steps": 0}, r"steps is 0; allowed is 1 to 1000"),
    ({"seed": -1}, r"seed is -1; allowed is 0"),
    ({"folder": "  "}, r"folder is empty; the source 'images in a folder' needs one\. Write the path"),
    ({"folder": "not there"}, r"folder is 'not there', which is no folder on the machine of ComfyUI\. Write its whole"),
    ({"folder": "\0"}, r"folder is '.x00', which is no folder"),
    ({"source": GENERATE, "prompts": " \n\n"}, r"prompts has no line with text; the source 'generate from prompts'"),
]


@pytest.mark.parametrize(("inputs", "said"), WRONG)
def test_wrong_values_are_said_when_queued_and_when_run(
    pack: dict[str, Any], run: Any, flux: Any, folder: Path, inputs: dict[str, Any], said: str
) -> None:
    captioned(folder / "a.png", "a")
    asked = {"folder": str(folder), "prompts": "a", "model": flux, **inputs}
    with pytest.raises(ValueError, match=said):
        run(**{"source": IMAGES, **asked})
    # When it is queued, a linked input is None.
    values = {"name": "x", "source": IMAGES, **SIZE, "steps": 2, "seed": 0, **asked, "model": None, "vae": None}
    refused = pack["CLEARTrainingSet"].validate_inputs(**values)
    with pytest.raises(ValueError, match=said):
        raise ValueError(refused)


@pytest.mark.parametrize(
    ("source", "need", "said"),
    [
        (IMAGES, "vae", "vae is not connected; the source 'images in a folder' needs it. Connect a VAE."),
        (GENERATE, "model", "model is not connected; the source 'generate from prompts' needs it. Connect a MODEL."),
    ],
)
def test_the_source_has_to_be_connected(
    pack: dict[str, Any], run: Any, folder: Path, source: str, need: str, said: str
) -> None:
    validate = pack["CLEARTrainingSet"].validate_inputs
    given = {"source": source, "folder": str(folder), "prompts": "a"}
    assert validate(**given) == said
    assert validate(**given, **{need: None}) is True
    assert validate(**{**given, "source": None}) is True  # it comes through a link
    with pytest.raises(ValueError, match=said):
        run(**{**given, need: None})


def test_another_model_and_another_autoencoder(run: Any, folder: Path, output: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model is Chroma; training samples are made with FLUX\.1\. Connect a FLUX\.1"
    ):
        run(GENERATE, prompts="a", model=chroma_model())
    captioned(folder / "a.png", "a")
    with pytest.raises(
        ValueError, match=r"latent of a\.png has the shape \(4, 8, 10\); FLUX\.1's is \(16, 8, 10\)\. Conn"
    ):
        run(folder=str(folder), vae=small_vae(4))
    with pytest.raises(ValueError, match=r"clip is None: the checkpoint has no text encoder\. Load one with DualCLIP"):
        run(folder=str(folder), clip=None)
    assert not output.exists()


def test_a_folder_that_changed_is_looked_at_again(pack: dict[str, Any], folder: Path) -> None:
    fingerprint = pack["CLEARTrainingSet"].fingerprint_inputs
    asked = {"name": "x", "source": IMAGES, "folder": str(folder), "clip": None}
    seen = [fingerprint(**asked), fingerprint(**asked)]
    captioned(folder / "a.png", "a")
    seen.append(fingerprint(**asked))
    (folder / "a.txt").write_text("another", encoding="utf-8")
    seen += [
        fingerprint(**asked),
        fingerprint(**{**asked, "folder": "not there"}),
        fingerprint(**{**asked, "folder": None}),
    ]
    assert seen[0] == seen[1] and len(set(seen[1:5])) == 4


def test_what_it_is_doing_is_on_the_node(run: Any, folder: Path, shown: Any) -> None:
    captioned(folder / "a.png", "a")
    _, report = run(folder=str(folder))
    assert shown["CLEARTrainingSet"] == ["text of a.png", "1 of 1: a.png", report]
