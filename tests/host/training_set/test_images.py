"""Samples of the images of a folder: which are taken, how they are cut, what the autoencoder makes of them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from host.training_set.made import captioned, picture, small_vae


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


def test_a_folder_that_may_not_be_read(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(ValueError, match=r"images cannot be read \(Permission denied\)\. Allow it, or choose another"):
        run(folder=str(folder))


def test_a_folder_below_the_input_folder_and_one_in_quotes(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned(folder / "a.png", "a")
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: str(folder.parent))
    assert len(run(folder="images")[0]) == len(run(folder=f'"{folder}" ')[0]) == 1


def test_an_autoencoder_without_a_distribution(run: Any, folder: Path) -> None:
    captioned(folder / "a.png", "a")
    plain = small_vae(16)
    moments = plain.first_stage_model

    class Plain(torch.nn.Module):
        def encode(self, pixels: Tensor) -> Tensor:
            return moments.encode(pixels)

    plain.first_stage_model = Plain()
    samples, report = run(folder=str(folder), vae=plain)
    assert samples.read(0).std.abs().max() == 0 < samples.read(0).mean.abs().max()
    assert report.endswith("\n1 without deviation, std is 0: the VAE gave a latent only, or encoded in tiles")


def test_the_autoencoder_of_flux_2(run: Any, folder: Path) -> None:
    """It normalises what its distribution's mean is: the latent alone is known."""
    captioned(folder / "a.png", "a")
    other = small_vae(32, flux_2=True)
    samples, report = run(folder=str(folder), vae=other)
    pixels = torch.tensor(np.asarray(Image.open(folder / "a.png"))).float()[None] / 255
    with torch.inference_mode():
        assert torch.equal(samples.read(0).mean, other.encode(pixels)[0])
    assert samples.read(0).mean.shape == (128, 4, 5)
    assert samples.read(0).std.abs().max() == 0
    assert "without deviation" in report


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


def test_what_it_is_doing_is_on_the_node(run: Any, folder: Path, shown: Any) -> None:
    captioned(folder / "a.png", "a")
    _, report = run(folder=str(folder))
    assert shown["CLEARTrainingSet"] == ["text of a.png", "1 of 1: a.png", report]
    for n in range(13):
        picture(folder / f"no_prompt_{n}.png")
    _, report = run(folder=str(folder))
    lines = report.split("\n")
    assert len(lines) == 15
    assert shown["CLEARTrainingSet"][-1].split("\n") == [*lines[:12], "and 3 more lines in report"]
