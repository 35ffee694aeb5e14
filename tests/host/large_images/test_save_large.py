"""Save Large Image against ComfyUI's Save Image, and what it refuses."""

from __future__ import annotations

import errno
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from host.large_images.images import MIB, PNGINFO, PROMPT, noise


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_the_pixels_are_save_images(
    host: Any, save: Any, folder: Path, channels: int, dtype: torch.dtype, kind: str
) -> None:
    images = noise(2, 37, 41, channels).to(dtype)
    host.SaveImage().save_images(images, "core")
    save(images, kind)
    for number in (1, 2):
        expected = opened(folder / f"core_{number:05}_.png")
        assert expected.shape == (37, 41, channels)
        np.testing.assert_array_equal(opened(folder / f"CLEAR_{number:05}_.{kind}"), expected)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_and_bfloat16(save: Any, folder: Path, kind: str) -> None:
    grey = noise(1, 20, 30, 1)
    save(grey, kind)
    np.testing.assert_array_equal(opened(folder / f"CLEAR_00001_.{kind}"), grey.clamp(0, 1).mul(255).byte()[0, ..., 0])
    rough = noise(1, 20, 30, 3).bfloat16()
    save(rough, kind)
    np.testing.assert_array_equal(opened(folder / f"CLEAR_00002_.{kind}"), rough.float().clamp(0, 1).mul(255).byte()[0])


@pytest.mark.usefixtures("small_bands")
def test_every_filter_of_a_png_is_used_and_read_back(save: Any, folder: Path) -> None:
    """Pillow undoes the filters: a wrong number or prediction would change pixels."""
    y, x = torch.meshgrid(torch.arange(60) / 60, torch.arange(50) / 50, indexing="ij")
    parts = (noise(60, 50), x.expand(60, -1), y, 0.5 + 0.1 * noise(60, 50, seed=1))
    image = torch.cat([part.unsqueeze(-1).expand(-1, -1, 3) for part in parts])[None]
    save(image)
    path = folder / "CLEAR_00001_.png"
    np.testing.assert_array_equal(opened(path), image[0].clamp(0, 1).mul(255).byte())
    data = zlib.decompress(b"".join(body for kind, body in chunks(path) if kind == b"IDAT"))
    assert set(data[:: 1 + 50 * 3]) == {0, 1, 2, 3}


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(data[at + 4 : at + 8 + size]),)
        found.append((data[at + 4 : at + 8], body))
        at += 12 + size
    return found


def test_a_png_has_the_metadata_of_save_image_before_its_pixels(host: Any, save: Any, folder: Path) -> None:
    images = noise(1, 8, 8, 3)
    save(images)
    host.SaveImage().save_images(images, "core", PROMPT, PNGINFO)
    texts = [
        [
            (kind, body)
            for kind, body in chunks(folder / f"{name}_00001_.png")
            if kind not in (b"IHDR", b"IDAT", b"IEND")
        ]
        for name in ("CLEAR", "core")
    ]
    assert texts[0] == texts[1]
    assert [kind for kind, _ in texts[0]] == [b"tEXt"] * 3
    order = [kind for kind, _ in chunks(folder / "CLEAR_00001_.png")]
    assert order[0] == b"IHDR" and order[-1] == b"IEND" and max(i for i, k in enumerate(order) if k == b"tEXt") == 3
    assert json.loads(dict(body.split(b"\0") for _, body in texts[0])[b"workflow"]) == PNGINFO["workflow"]


def test_a_key_that_no_png_can_have_costs_no_image(save: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(noise(1, 8, 8, 3), pnginfo={"日本": 1, "café": 2})
    with Image.open(folder / "CLEAR_00001_.png") as image:
        assert image.info == {"prompt": json.dumps(PROMPT), "café": "2"}
    assert "'日本' is left out" in caplog.text


def test_a_tiff_has_the_metadata_in_its_description(save: Any, folder: Path) -> None:
    save(noise(1, 8, 8, 3), "tiff")
    with tifffile.TiffFile(folder / "CLEAR_00001_.tiff") as tiff:
        page = tiff.pages.first
        assert json.loads(page.description) == {"prompt": PROMPT, **PNGINFO}
        assert [tag.code for tag in page.tags].count(270) == 1


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_without_metadata(save: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    save(noise(1, 8, 8, 3), kind)
    data = (folder / f"CLEAR_00001_.{kind}").read_bytes()
    assert b"prompt" not in data and b"workflow" not in data
    monkeypatch.setattr(args, "disable_metadata", False)
    save(noise(1, 8, 8, 3), kind, prompt=None, pnginfo={})
    data = (folder / f"CLEAR_00002_.{kind}").read_bytes()
    assert b"prompt" not in data and b"workflow" not in data


def test_strips_of_a_tiff_are_the_bands(save: Any, folder: Path, small_bands: None) -> None:
    save(noise(1, 37, 41, 3), "tiff")
    with tifffile.TiffFile(folder / "CLEAR_00001_.tiff") as tiff:
        page = tiff.pages.first
        assert (page.rowsperstrip, len(page.dataoffsets)) == (3, 13)
        assert (page.compression, page.predictor, tiff.is_bigtiff) == (8, 2, False)


def test_a_tiff_beyond_four_gigabytes_has_wide_offsets(
    nodes_api: Any, save: Any, load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_api.module("nodes.host.large_images.formats"), "_CLASSIC_TIFF", 1000)
    images = noise(1, 37, 41, 3)
    save(images, "tiff")
    with tifffile.TiffFile(folder / "CLEAR_00001_.tiff") as tiff:
        assert tiff.is_bigtiff
    np.testing.assert_array_equal(opened(folder / "CLEAR_00001_.tiff"), images[0].clamp(0, 1).mul(255).byte())
    assert torch.equal(load("CLEAR_00001_.tiff")[0], images.clamp(0, 1).mul(255).byte() / 255)


def test_names_and_numbers_are_save_images(host: Any, save: Any, folder: Path) -> None:
    images = noise(2, 8, 12, 3)
    assert host.SaveImage().save_images(images, "run/a")["ui"]["images"] == [
        {"filename": f"a_{number:05}_.png", "subfolder": "run", "type": "output"} for number in (1, 2)
    ]
    shown = save(images, prefix="run/a")
    assert shown == {
        "images": [{"filename": f"a_{number:05}_.png", "subfolder": "run", "type": "output"} for number in (3, 4)]
    }
    assert host.SaveImage().save_images(images, "run/a")["ui"]["images"][0]["filename"] == "a_00005_.png"
    save(images, prefix="%batch_num% of %width%x%height%")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"0 of 12x8_00001_.png", "1 of 12x8_00002_.png"}
    with pytest.raises(Exception, match="outside the output folder is not allowed"):
        save(images, prefix="../elsewhere")
    assert not (folder.parent / "elsewhere_00001_.png").exists()


def test_the_page_gets_a_small_picture_of_a_tiff(save: Any, folder: Path) -> None:
    image = torch.tensor([0.25, 0.75]).repeat(1500)[None, :, None, None].expand(2, 3000, 5, 4)
    shown = save(image, "tiff")
    assert [file["filename"] for file in shown["clear_files"]] == ["CLEAR_00001_.tiff", "CLEAR_00002_.tiff"]
    assert {file["type"] for file in shown["images"]} == {"temp"}
    for file in shown["images"]:
        picture = opened(folder.parent / "temp" / file["filename"])
        assert picture.shape == (1000, 2, 3)
        assert set(np.unique(picture)) <= {106, 148}  # means of three rows: 0.25, 0.75, 0.25 and the other way round


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_saving_takes_memory_for_some_bands(save: Any, folder: Path, kind: str) -> None:
    """403 MB of pixels, of which each row is the same memory; Save Image's first copy alone takes 403 MB."""
    rows = (noise(1, 1, 2048, 3).repeat(1, 1, 8, 1)).expand(1, 2048, -1, -1)
    tracemalloc.start()
    try:
        save(rows, kind)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 3 * MIB < peak < 128 * MIB
    path = folder / f"CLEAR_00001_.{kind}"
    with Image.open(path) as image:
        assert image.size == (16384, 2048)
        last = np.asarray(image.crop((0, 2047, 16384, 2048)))
    np.testing.assert_array_equal(last, rows[0, :1].clamp(0, 1).mul(255).byte())


# ---- what ends it ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_progress_and_cancel_while_saving(save: Any, folder: Path, progress: Any, kind: str) -> None:
    from comfy.model_management import InterruptProcessingException

    images = noise(2, 12, 50, 3)
    save(images, kind, prefix="whole")
    assert progress.values == [(value, 24) for value in range(3, 25, 3)]
    progress.values, progress.stop_at = [], 18
    with pytest.raises(InterruptProcessingException):
        save(images, kind, prefix="cancelled")
    assert progress.values[-1] == (18, 24)
    # The first image was complete.
    assert sorted(path.name for path in folder.iterdir() if "cancelled" in path.name) == [f"cancelled_00001_.{kind}"]


class Full:
    """A file on a disk that has room for some bytes."""

    def __init__(self, file: Any, room: int, number: int) -> None:
        self._file, self._room, self._number = file, room, number

    def write(self, data: Any) -> int:
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise OSError(self._number, "no room")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.ENOSPC,
            r"the disk of .*images is full. It has .* free, and this image takes up to 12 kB. Make room, or",
        ),
        (
            errno.EFBIG,
            "does not take files of that size, up to 12 kB. Start ComfyUI with --output-directory on another",
        ),
        (errno.EACCES, r"images cannot be written to \(.*\). Allow it, or start ComfyUI with --output-directory"),
        (errno.EIO, "no room. Check the disk of .*images"),
    ],
)
def test_a_disk_that_is_full_leaves_nothing_and_is_named(
    nodes_api: Any, save: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, words: str
) -> None:
    module = nodes_api.module("nodes.host.large_images.save")
    real, begun = module._WRITERS[kind], []

    def writer(file: Any, *rest: Any) -> None:
        begun.append([path.name for path in folder.iterdir()])
        real(Full(file, 10**6 if len(begun) == 1 else 500, number), *rest)

    monkeypatch.setattr(module, "_WRITERS", {kind: writer})
    start = f"CLEAR_00002_.{kind}, 80 x 50 pixels, is not saved: "
    with pytest.raises(RuntimeError, match=f"{start}.*{words}.*The images before it, 1 of 2, are saved."):
        save(noise(2, 50, 80, 3), kind)
    assert len(begun[1]) == 2 and any(name.endswith(".part") for name in begun[1])
    assert [path.name for path in folder.iterdir()] == [f"CLEAR_00001_.{kind}"]
    assert opened(folder / f"CLEAR_00001_.{kind}").shape == (50, 80, 3)


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (noise(0, 8, 8, 3), "png", r"images has the shape \(0, 8, 8, 3\), without pixels"),
        (noise(1, 0, 8, 3), "tiff", r"images has the shape \(1, 0, 8, 3\)"),
        (noise(8, 8, 3), "png", r"images has the shape \(8, 8, 3\)"),
        (noise(1, 8, 8, 2), "png", "images has 2 channels; allowed are 1"),
        (noise(1, 8, 8, 3), "exe", "format is 'exe'; choose one of: png, tiff"),
    ],
)
def test_what_cannot_be_saved_is_named(save: Any, folder: Path, images: Tensor, kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save(images, kind)
    assert not list(folder.iterdir())


def test_a_format_is_checked_when_queued(pack: dict[str, Any]) -> None:
    assert "format is 'jpg'; choose one of: png, tiff" in pack["CLEARSaveLarge"].validate_inputs(format="jpg")
    assert pack["CLEARSaveLarge"].validate_inputs(format="tiff") is True
    assert pack["CLEARSaveLarge"].validate_inputs(format=None) is True
