"""Save Large Image and Load Large Image against ComfyUI's Save Image and Load Image, and what they refuse."""

from __future__ import annotations

import errno
import json
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

MIB = 2**20
PNGINFO = {"workflow": {"nodes": [], "title": "ü 日本"}, "clear_attention": {"runs": [1.5, None]}}
PROMPT = {"1": {"class_type": "LoadImage", "inputs": {"image": "日本.png"}}}


@pytest.fixture
def folder(host: Any, tmp_path: Path) -> Iterator[Path]:
    """The output folder, which is the input folder too."""
    import folder_paths

    before = folder_paths.get_output_directory(), folder_paths.get_input_directory(), folder_paths.get_temp_directory()
    output = tmp_path / "images"
    output.mkdir()
    folder_paths.set_output_directory(str(output))
    folder_paths.set_input_directory(str(output))
    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    yield output
    folder_paths.set_output_directory(before[0])
    folder_paths.set_input_directory(before[1])
    folder_paths.set_temp_directory(before[2])


@pytest.fixture
def save(pack: dict[str, Any], folder: Path) -> Callable[..., Any]:
    """Save Large Image: what it tells the page."""
    from comfy_api.latest import io

    def run(images: Tensor, kind: str = "png", prefix: str = "CLEAR", prompt: Any = PROMPT, pnginfo: Any = None) -> Any:
        hidden = {io.Hidden.prompt: prompt, io.Hidden.extra_pnginfo: PNGINFO if pnginfo is None else pnginfo}
        node = pack["CLEARSaveLarge"].PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})
        return node.execute(images=images, filename_prefix=prefix, format=kind).ui

    return run


@pytest.fixture
def load(nodes_api: Any, folder: Path) -> Callable[..., Any]:
    """Load Large Image: IMAGE, MASK."""

    def run(image: str, left: int = 0, top: int = 0, width: int = 0, height: int = 0) -> Any:
        return nodes_api.execute("CLEARLoadLarge", image=image, left=left, top=top, width=width, height=height)

    return run


@pytest.fixture
def small_bands(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of a few rows, so that small images have several."""
    for name in ("save", "read", "tiff_rows"):
        monkeypatch.setattr(nodes_api.module(f"nodes.host.large_images.{name}"), "BAND", 150)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Also below 0 and above 1, as a VAE gives it."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- saving ----------------------------------------------------------------------------------------------


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


@pytest.fixture
def progress(host: Any) -> Iterator[Any]:
    """What the host's bar is told; from `stop_at` on it is as if Cancel had been pressed."""
    import comfy.model_management
    import comfy.utils

    class Told:
        def __init__(self) -> None:
            self.values: list[tuple[int, int]] = []
            self.stop_at: int | None = None

        def __call__(self, value: int, total: int, preview: Any, node_id: Any = None) -> None:
            self.values.append((value, total))
            if value == self.stop_at:
                comfy.model_management.interrupt_current_processing(True)

    told, before = Told(), comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(told)
    yield told
    comfy.utils.set_progress_bar_global_hook(before)
    comfy.model_management.interrupt_current_processing(False)


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


# ---- loading -----------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 37, 29


def pixels(channels: int, kind: Any = np.uint8) -> np.ndarray:
    largest = np.iinfo(kind).max
    return np.random.default_rng(channels).integers(0, largest, (HEIGHT, WIDTH, channels), kind, endpoint=True)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def write_files(folder: Path) -> list[str]:
    """Every kind of file that Load Image reads in another way."""
    colours = Image.fromarray(pixels(3))
    alpha = Image.fromarray(pixels(4))
    palette = colours.quantize(20)
    colours.save(folder / "rgb.png")
    colours.save(folder / "turned.png", exif=rotated())
    alpha.save(folder / "rgba.png")
    alpha.convert("LA").save(folder / "la.png")
    colours.convert("L").save(folder / "grey.png")
    colours.convert("1").save(folder / "bits.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "transparent.png", transparency=3)
    colours.save(folder / "key.png", transparency=(1, 2, 3))
    Image.fromarray(pixels(1, np.uint16)[..., 0]).save(folder / "grey16.png")
    colours.save(folder / "colour.jpg")
    colours.save(folder / "turned.jpg", exif=rotated())
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.save(folder / "colour.bmp")
    alpha.save(folder / "alpha.webp", lossless=True)
    colours.save(folder / "colour.gif")
    colours.save(folder / "lzw.tiff", compression="tiff_lzw")
    colours.save(folder / "raw.tiff")
    colours.save(folder / "turned.tiff", exif=rotated())
    alpha.save(folder / "alpha.tiff", compression="tiff_adobe_deflate")
    palette.save(folder / "palette.tiff")
    tifffile.imwrite(folder / "grey.tiff", pixels(1)[..., 0], photometric="minisblack")
    tifffile.imwrite(folder / "grey deflate.tiff", pixels(1)[..., 0], compression="zlib", rowsperstrip=5)
    tifffile.imwrite(folder / "strips.tiff", pixels(3), compression="zlib", predictor=True, rowsperstrip=4)
    tifffile.imwrite(folder / "tiles.tiff", pixels(3), compression="zlib", predictor=True, tile=(16, 16))
    tifffile.imwrite(folder / "raw tiles.tiff", pixels(4), tile=(16, 32), extrasamples=["unassalpha"])
    tifffile.imwrite(folder / "extra.tiff", pixels(4), photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(folder / "planes.tiff", pixels(3).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(folder / "big endian.tiff", pixels(3), byteorder=">", photometric="rgb")
    tifffile.imwrite(folder / "white.tiff", pixels(1)[..., 0], photometric="miniswhite")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("small_bands")
def test_every_kind_of_file_gives_load_images_values(
    host: Any, load: Any, folder: Path, subtests: pytest.Subtests
) -> None:
    names = write_files(folder)
    assert len(names) == 30
    for name in names:
        with subtests.test(name=name):
            image, mask = host.LoadImage().load_image(name)
            _, height, width, _ = image.shape
            has_alpha = mask.shape[1:] == (height, width)
            whole = load(name)
            assert torch.equal(whole[0], image)
            assert torch.equal(whole[1], mask)
            part, part_mask = load(name, 7, 3, 20, 11)
            assert torch.equal(part, image[:, 3:14, 7:27])
            assert torch.equal(part_mask, mask[:, 3:14, 7:27] if has_alpha else mask)
            corner, corner_mask = load(name, width - 1, height - 1)
            assert torch.equal(corner, image[:, -1:, -1:])
            assert torch.equal(corner_mask, mask[:, -1:, -1:] if has_alpha else mask)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True, "rowsperstrip": 4}])
def test_sixteen_bits_of_a_tiff_are_kept(load: Any, folder: Path, order: str, options: dict[str, Any]) -> None:
    """Pillow has no such images; Load Image refuses them."""
    values = pixels(4, np.uint16)
    tifffile.imwrite(
        folder / "a.tiff", values, byteorder=order, photometric="rgb", extrasamples=["unassalpha"], **options
    )
    image, mask = load("a.tiff", 5, 6, 7, 8)
    part = values[6:14, 5:12].astype(np.float32) / 65535
    np.testing.assert_array_equal(image[0], part[..., :3])
    np.testing.assert_array_equal(mask[0], 1 - part[..., 3])


def test_of_several_pages_the_first_is_loaded(host: Any, load: Any, folder: Path) -> None:
    pages = [Image.fromarray(pixels(3)), Image.fromarray(255 - pixels(3))]
    for name in ("pages.tiff", "frames.gif", "frames.png"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
        image, _ = host.LoadImage().load_image(name)
        assert len(image) == 2
        assert torch.equal(load(name)[0], image[:1])


def test_a_file_that_load_image_refuses_as_too_large(host: Any, load: Any, folder: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    side = 13400
    large = Image.new("1", (side, side))
    large.putpixel((side - 2, side - 3), 1)
    large.save(folder / "large.png")
    large.save(folder / "large.bmp")
    for name in ("large.png", "large.bmp"):
        with pytest.raises(Image.DecompressionBombError, match="exceeds limit of 178956970 pixels"):
            host.LoadImage().load_image(name)
        image, mask = load(name, side - 8, side - 4)
        assert image.shape == (1, 4, 8, 3) and mask.shape == (1, 64, 64)
        assert image.sum() == 3 and image[0, 1, 6].tolist() == [1, 1, 1]
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["rgb.png", "colour.jpg", "colour.bmp", "strips.tiff", "raw.tiff"])
def test_beyond_pillows_limit_without_a_warning(
    host: Any, load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_files(folder)
    expected, _ = host.LoadImage().load_image(name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(folder / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = load(name, 0, 0, 10, 10)
    assert torch.equal(image, expected[:, :10, :10])


def test_a_format_with_pillows_limit_says_so(load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    for name in ("alpha.webp", "lzw.tiff"):
        with pytest.raises(
            ValueError, match=f"{name} is too large for Pillow in its format .*Save it as PNG, JPEG, or"
        ):
            load(name)


def test_a_part_of_a_tiff_takes_memory_for_its_strips(save: Any, load: Any, folder: Path) -> None:
    save(noise(1, 1, 2048, 3).expand(1, 8192, -1, -1), "tiff")
    tifffile.imwrite(folder / "raw.tiff", shape=(8192, 2048, 3), dtype=np.uint8, photometric="rgb")
    for name in ("CLEAR_00001_.tiff", "raw.tiff"):
        tracemalloc.start()
        try:
            image, _ = load(name, 100, 8000, 50, 40)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert image.shape == (1, 40, 50, 3)
        assert peak < 16 * MIB  # all of it: 50 MB


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("name", ["rgb.png", "strips.tiff"])
def test_progress_and_cancel_while_loading(load: Any, folder: Path, progress: Any, name: str) -> None:
    from comfy.model_management import InterruptProcessingException

    write_files(folder)
    load(name)
    values = [value for value, _ in progress.values]
    assert values == sorted(values) and len(values) >= 8
    assert progress.values[-1] == (WIDTH * HEIGHT, WIDTH * HEIGHT)
    progress.stop_at, progress.values = values[3], []
    with pytest.raises(InterruptProcessingException):
        load(name)
    assert len(progress.values) == 4


# ---- files and regions that cannot be ------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\1IDAT"


def tiff_header(width: int, height: int, **changed: int) -> bytes:
    """One deflated strip of a few bytes."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 200, 277: 1, 278: height, 279: 8} | {
        int(name[1:]): value for name, value in changed.items()
    }
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + zlib.compress(b"")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("wide.png", png_header(65537, 1), "wide.png has 65537 x 1 pixels by its header; allowed are 65536 a side"),
        ("many.png", png_header(40000, 40000), "many.png has 40000 x 40000 pixels.*and 1,073,741,824 in all. Cut"),
        ("wide.tiff", tiff_header(2**31, 1), "wide.tiff has 2147483648 x 1 pixels"),
        ("short.tiff", tiff_header(60, 40), "short.tiff cannot be read .*damaged, not complete or no image: copy it"),
        ("strip.tiff", tiff_header(60, 40, _279=2**31), "strip.tiff cannot be read"),
        ("far.tiff", tiff_header(60, 40, _273=2**31), "far.tiff cannot be read"),
        ("raw.tiff", tiff_header(60, 40, _259=1), "raw.tiff cannot be read"),
        ("header.png", png_header(60, 40)[:-8], "header.png cannot be read"),
        ("pixels.png", png_header(60, 40), "pixels.png cannot be read"),
        ("text.png", b"no image at all", "text.png cannot be read .*cannot identify image file"),
        ("magic.png", b"\x89PNG", "magic.png cannot be read"),
        ("magic.tiff", b"II*\0", "magic.tiff cannot be read"),
        ("magic.jpg", b"\xff\xd8\xff", "magic.jpg cannot be read"),
        ("empty.png", b"", "empty.png cannot be read"),
    ],
    ids=lambda given: given if isinstance(given, str) else "data",
)
def test_files_that_cannot_be_are_named_and_take_no_memory(
    load: Any, folder: Path, name: str, data: bytes, words: str
) -> None:
    (folder / name).write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words):
            load(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * MIB


def test_a_file_that_is_cut_off_is_named(save: Any, load: Any, folder: Path) -> None:
    images = noise(1, 200, 300, 3)
    for kind in ("png", "tiff"):
        save(images, kind, prefix=kind)
        path = folder / f"{kind}_00001_.{kind}"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{path.name} cannot be read .*copy it again"):
            load(path.name)


def test_a_strip_that_inflates_to_more_than_its_pixels(load: Any, folder: Path) -> None:
    data = zlib.compress(bytes(64 * MIB))
    (folder / "bomb.tiff").write_bytes(tiff_header(60, 40, _279=len(data))[:200] + data)
    tracemalloc.start()
    try:
        image, _ = load("bomb.tiff")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.shape == (1, 40, 60, 3) and not image.any()
    assert peak < 16 * MIB


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((37, 0, 0, 0), "left is 37, outside the image, which is 37 pixels wide; allowed is 0 to 36"),
        ((0, 29, 0, 0), "top is 29, outside the image, which is 29 pixels high; allowed is 0 to 28"),
        ((30, 0, 8, 0), "width is 8 from left 30, but the image is 37 pixels wide; allowed is 1 to 7, or 0 for all"),
        ((0, 1, 0, 29), "height is 29 from top 1, but the image is 29 pixels high; allowed is 1 to 28, or 0 for"),
        ((-1, 0, 0, 0), "left is -1; allowed is 0 to 65535"),
        ((0, 65536, 0, 0), "top is 65536; allowed is 0 to 65535"),
        ((0, 0, 65537, 0), "width is 65537; allowed is 0 to 65536"),
        ((0, 0, 0, -5), "height is -5; allowed is 0 to 65536"),
    ],
)
@pytest.mark.parametrize("name", ["rgb.png", "strips.tiff", "lzw.tiff"])
def test_a_region_out_of_the_image_is_named(
    pack: dict[str, Any], load: Any, folder: Path, name: str, region: tuple[int, ...], words: str
) -> None:
    write_files(folder)
    with pytest.raises(ValueError, match=words):
        load(name, *region)
    asked = dict(zip(("left", "top", "width", "height"), region, strict=True))
    assert words in pack["CLEARLoadLarge"].validate_inputs(image=name, **asked)
    assert pack["CLEARLoadLarge"].validate_inputs(image=name, left=3, top=2, width=34, height=27) is True
    assert pack["CLEARLoadLarge"].validate_inputs(image=None, left=None, top=2, width=None, height=0) is True


def test_a_turned_image_has_its_region_turned(pack: dict[str, Any], load: Any, folder: Path) -> None:
    write_files(folder)
    for name in ("turned.jpg", "turned.png", "turned.tiff"):
        assert pack["CLEARLoadLarge"].validate_inputs(image=name, left=0, top=0, width=HEIGHT, height=WIDTH) is True
        assert load(name, 0, 0, HEIGHT, WIDTH)[0].shape == (1, WIDTH, HEIGHT, 3)
        with pytest.raises(ValueError, match=f"width is {WIDTH} from left 0, but the image is {HEIGHT} pixels wide"):
            load(name, 0, 0, WIDTH, 0)


def test_a_name_reaches_no_file_outside_the_folders(
    pack: dict[str, Any], load: Any, folder: Path, subtests: pytest.Subtests
) -> None:
    write_files(folder)
    secret = folder.parent / "secret.png"
    (folder / "rgb.png").rename(secret)
    (folder / "below").mkdir()
    (folder / "grey.png").rename(folder / "below" / "grey.png")
    names = ["../secret.png", "below/../../secret.png", str(secret), "../secret.png [input]", "../secret.png [output]"]
    names += ["../images/../secret.png [temp]", "absent.png", "", ".", "below", "a\0.png", "\ud800.png", "x" * 10**5]
    for name in [*names, 5, None, ["a"]]:
        with subtests.test(name=ascii(name)[:60]):
            with pytest.raises(
                ValueError, match="There is no image .* in the input folder. Choose one of the list, or"
            ):
                load(name)
            if name is not None:
                assert "There is no image" in pack["CLEARLoadLarge"].validate_inputs(image=name)
    for name in ("below/grey.png", "below/../palette.png", "rgba.png [output]", "rgba.png [input]"):
        assert load(name)[0].shape == (1, HEIGHT, WIDTH, 3)


def test_a_file_that_is_replaced_is_read_again(pack: dict[str, Any], folder: Path) -> None:
    write_files(folder)
    asked = {"left": 0, "top": 0, "width": 0, "height": 0}
    before = pack["CLEARLoadLarge"].fingerprint_inputs(image="rgb.png", **asked)
    assert before == pack["CLEARLoadLarge"].fingerprint_inputs(image="rgb.png", **asked)
    (folder / "grey.png").replace(folder / "rgb.png")
    assert pack["CLEARLoadLarge"].fingerprint_inputs(image="rgb.png", **asked) not in (before, "missing")
    assert pack["CLEARLoadLarge"].fingerprint_inputs(image="grey.png", **asked) == "missing"


def test_the_list_is_load_images(host: Any, pack: dict[str, Any], folder: Path) -> None:
    write_files(folder)
    (folder / "notes.txt").touch()
    (folder / "folder.png").mkdir()
    options, rest = host.LoadImage.INPUT_TYPES()["required"]["image"]
    image = pack["CLEARLoadLarge"].define_schema().inputs[0].as_dict()
    assert image["options"] == options and len(options) == 30
    assert rest["image_upload"] is image["image_upload"] is True


def test_their_inputs_keep_names_and_order(pack: dict[str, Any]) -> None:
    saving, loading = (pack[name].define_schema() for name in ("CLEARSaveLarge", "CLEARLoadLarge"))
    assert [(given.id, getattr(given, "default", None)) for given in saving.inputs] == [
        ("images", None),
        ("filename_prefix", "CLEAR"),
        ("format", "png"),
    ]
    assert [(given.id, getattr(given, "default", None)) for given in loading.inputs] == [
        ("image", None),
        ("left", 0),
        ("top", 0),
        ("width", 0),
        ("height", 0),
    ]
    assert all(given.tooltip for schema in (saving, loading) for given in schema.inputs)
    assert (saving.display_name, saving.category, saving.is_output_node) == ("Save Large Image", "CLEAR", True)
    assert (loading.display_name, loading.category) == ("Load Large Image", "CLEAR")
    assert [out.io_type for out in loading.outputs] == ["IMAGE", "MASK"]
