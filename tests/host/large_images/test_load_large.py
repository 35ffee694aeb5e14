"""Load Large Image against ComfyUI's Load Image, and what it refuses."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from host.large_images.images import MIB, noise

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
