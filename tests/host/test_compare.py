"""Compare Images: its numbers against published ones, the library's and the definitions; what it shows and refuses."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional import image as library


@pytest.fixture(scope="session")
def similarity(nodes_api: Any) -> Any:
    return nodes_api.module("clear_core.evaluation.similarity")


@pytest.fixture
def compare(nodes_api: Any) -> Any:
    """The node: its text and its picture."""

    def run(image_a: Tensor, image_b: Tensor, gain: float = 4.0) -> tuple[str, Tensor]:
        return nodes_api.execute("CLEARCompare", image_a=image_a, image_b=image_b, gain=gain)

    return run


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(height: int, width: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    """A smooth image and the same with noise and less contrast, [height, width, channels]."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    image = torch.stack([torch.sin(x * (k + 2) + y * y) for k in range(channels)], dim=-1) * 0.4 + 0.5
    return image, (image * 0.8 + 0.15 * noise(height, width, channels)).clamp(0, 1)


def measured(similarity: Any, a: Tensor, b: Tensor) -> tuple[float, float, float]:
    found = similarity.similarity(a, b, lambda pixels: None)
    return found.psnr, found.ssim, found.ms_ssim


def test_values_that_the_library_publishes(similarity: Any, compare: Any) -> None:
    """The examples of its pages: 2.5527 with a range of 3; 0.9219 and 0.9628 for any random image darkened by 0.75."""
    four = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, ..., None] / 3
    assert similarity.similarity(four[0], four[0].flip(0, 1), lambda _: None).psnr == pytest.approx(2.5527, abs=5e-5)
    random = noise(3, 256, 256, 3)
    found = np.mean([measured(similarity, image, image * 0.75)[1:] for image in random], axis=0)
    assert found == pytest.approx([0.9219, 0.9628], abs=3e-4)
    text, _ = compare(random[:1], random[:1] * 0.75)
    assert "SSIM 0.92" in text
    assert "MS-SSIM 0.96" in text


@pytest.mark.parametrize(("height", "width", "channels"), [(176, 176, 3), (391, 233, 3), (200, 700, 1)])
@pytest.mark.parametrize("strip", [2**18, 3000])
def test_strips_give_the_librarys_numbers_of_the_whole_image(
    similarity: Any, monkeypatch: pytest.MonkeyPatch, height: int, width: int, channels: int, strip: int
) -> None:
    monkeypatch.setattr(similarity, "_STRIP", strip)
    a, b = pair(height, width, channels)
    x, y = (image.movedim(-1, 0)[None] for image in (a, b))
    expected = [
        float(metric(x, y, data_range=1.0))
        for metric in (
            library.peak_signal_noise_ratio,
            library.structural_similarity_index_measure,
            library.multiscale_structural_similarity_index_measure,
        )
    ]
    assert measured(similarity, a, b) == pytest.approx(expected, rel=2e-6)


def test_the_definitions(similarity: Any) -> None:
    """Written out in numpy and scipy, in float64: Wang et al. 2004 and 2003."""
    a, b = pair(240, 190)
    x, y = a.double().numpy(), b.double().numpy()
    terms = []
    for scale in range(5):
        if scale:
            x, y = (image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2] for image in (x, y))
            x, y = ((v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]) / 4 for v in (x, y))
        # A Gaussian of sigma 1.5, cut off at 5 pixels, the edge mirrored.
        mx, my, xx, yy, xy = (
            gaussian_filter(v, 1.5, radius=5, mode="mirror", axes=(0, 1)) for v in (x, y, x * x, y * y, x * y)
        )
        contrast = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
        full = contrast * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        terms.append((full.mean(), contrast[5:-5, 5:-5].mean()))
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    squares = np.mean((a.double().numpy() - b.double().numpy()) ** 2)
    multi = math.prod(contrast**w for (_, contrast), w in zip(terms[:4], weights, strict=False))
    expected = (10 * np.log10(1 / squares), terms[0][0], multi * terms[4][0] ** weights[4])
    assert measured(similarity, a, b) == pytest.approx(expected, rel=5e-5)


def test_memory_does_not_grow_with_the_image(similarity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_STRIP", 2**12)
    a, b = pair(512, 256)
    given = {image.untyped_storage().data_ptr() for image in (a, b)}

    class Largest(TorchDispatchMode):
        new = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
                if storage is not None and storage.data_ptr() not in given:
                    self.new = max(self.new, storage.nbytes())
            return out

    with Largest() as seen:
        measured(similarity, a, b)
    # What the strips need, and an image of half the size; the library at once would make five images.
    assert a.nbytes / 4 <= seen.new < a.nbytes


def test_what_it_shows(nodes_api: Any, pack: dict[str, Any]) -> None:
    a, b = (image[None] for image in pair(180, 200))
    output = pack["CLEARCompare"].PREPARE_CLASS_CLONE({}).execute(image_a=a, image_b=b, gain=9.0)
    psnr, ssim, ms_ssim = measured(nodes_api.module("clear_core.evaluation.similarity"), a[0], b[0])
    text, difference = output.args
    assert text == f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, MS-SSIM {ms_ssim:.4f}"
    assert output.ui["text"] == (text,)
    torch.testing.assert_close(difference, ((a - b).abs() * 9).clamp(max=1))
    assert difference.max() == 1
    assert nodes_api.execute("CLEARCompare", image_a=b, image_b=a, gain=1.0)[0] == text


def slider(nodes_api: Any, a: Tensor, b: Tensor) -> list[Any]:
    """The pairs that the page's slider gets, files read: uint8 [height, width, 3]."""
    import folder_paths

    def pixels(file: Any) -> np.ndarray:
        assert (file["type"], file["subfolder"]) == ("temp", "")
        with Image.open(Path(folder_paths.get_temp_directory()) / file["filename"]) as picture:
            return np.asarray(picture)

    pairs = nodes_api.module("nodes.insight.slider_images").slider_pairs(a, b)
    return [pair | {name: pixels(pair[name]) for name in "ab"} for pair in pairs]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_sliders_images_are_those_given(nodes_api: Any, channels: int) -> None:
    a, b = noise(3, 40, 30, channels), noise(1, 40, 30, channels, seed=1).to(torch.bfloat16)
    found = slider(nodes_api, a, b)
    assert len(found) == 3
    for pair, image in zip(found, a, strict=True):
        assert (pair["size"], pair["shown"], pair["batch"]) == ((30, 40), (30, 40), 3)
        for name, given in (("a", image), ("b", b[0].float())):
            colours = (given[..., :3] * 255).byte().numpy()
            np.testing.assert_array_equal(pair[name], np.broadcast_to(colours, (40, 30, 3)))


def test_the_slider_gets_large_images_smaller_and_the_first_of_many(
    nodes_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nodes_api.module("nodes.insight.slider_images")
    monkeypatch.setattr(module, "LONGEST", 20)
    monkeypatch.setattr(module, "MOST", 2)
    a = torch.tensor([0.25, 0.75]).repeat(20)[None, :, None, None].expand(3, 40, 30, 3)
    first, second = slider(nodes_api, a, 1 - a)
    assert (first["size"], first["shown"], first["batch"]) == ((30, 40), (15, 20), 3)
    assert {tuple(pair[name].shape) for pair in (first, second) for name in "ab"} == {(20, 15, 3)}
    assert {int(value) for value in np.unique(first["a"])} == {127}  # the mean of two rows


def test_identical_images(compare: Any) -> None:
    image = noise(1, 200, 200, 3)
    text, difference = compare(image, image.clone())
    assert text == "identical, no pixel differs"
    assert not difference.any()
    dark = torch.zeros_like(image)
    dark[0, 7, 8, 1] = 1e-30
    assert compare(torch.zeros_like(image), dark)[0].startswith("PSNR 6")


def test_batches(compare: Any) -> None:
    images = noise(3, 20, 24, 3)
    text, difference = compare(images, images[1:2])
    first, second, third, *_ = text.split("\n")
    assert first.startswith("image 1: PSNR")
    assert second == "image 2: identical, no pixel differs"
    assert third.startswith("image 3: PSNR")
    torch.testing.assert_close(difference, ((images - images[1]).abs() * 4).clamp(max=1))
    assert compare(images[1:2], images)[0] == text
    one_by_one = [compare(images[i : i + 1], images.flip(0)[i : i + 1])[0].split("\n")[0] for i in range(3)]
    together = compare(images, images.flip(0))[0].split("\n")
    assert together[:3] == [f"image {i}: {line}" for i, line in enumerate(one_by_one, 1)]


def test_alpha_is_left_out_and_said_to_be(compare: Any) -> None:
    a, b = (image[None] for image in pair(180, 180))
    text, difference = compare(a, b)
    with_alpha = torch.cat((b, noise(1, 180, 180, 1)), dim=-1)
    for one, other in ((a, with_alpha), (with_alpha, a), (with_alpha, torch.cat((a, a[..., :1]), dim=-1))):
        found, picture = compare(one, other)
        assert found == f"{text}\nTransparency (alpha) was not compared."
        assert torch.equal(picture, difference)


@pytest.mark.parametrize(
    ("side", "has", "lacks"),
    [
        (10, [], ["No SSIM: its window needs 11 pixels a side.", "No MS-SSIM"]),
        (11, [" SSIM "], ["No MS-SSIM: its last scale is a sixteenth of the size, so it needs 176 pixels a side"]),
        (175, [" SSIM "], ["this is 300 x 175"]),
        (176, [" SSIM ", "MS-SSIM"], []),
    ],
)
def test_small_images_get_what_can_be_had_and_why_not_more(
    compare: Any, side: int, has: list[str], lacks: list[str]
) -> None:
    text, _ = compare(*(image[None] for image in pair(side, 300)))
    numbers, *why = text.split("\n")
    assert numbers.startswith("PSNR ")
    assert all(name in numbers for name in has)
    assert numbers.count("SSIM") == len(has)
    assert len(why) == len([line for line in lacks if line.startswith("No ")] or lacks)
    assert all(line in text for line in lacks)


def test_opposite_images_have_numbers_too(compare: Any) -> None:
    """SSIM below 0, of which MS-SSIM makes 0."""
    image = noise(1, 200, 200, 3)
    text, _ = compare(image, 1 - image)
    assert "SSIM -0." in text
    assert text.endswith("MS-SSIM 0.0000")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(compare: Any, dtype: torch.dtype) -> None:
    a, b = (image[None].to(dtype) for image in pair(40, 40))
    text, difference = compare(a, b)
    assert (text, difference.dtype) == (compare(a.float(), b.float())[0], torch.float32)


def damaged(value: float) -> Tensor:
    images = noise(2, 16, 16, 3)
    images[1, 3, 4, 2] = value
    return images


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (noise(1, 16, 24, 3), noise(1, 32, 48, 3), "24 x 16 pixels and image_b is 48 x 32.*Put an Upscale Image node"),
        (noise(2, 16, 16, 3), noise(3, 16, 16, 3), "batch of 2 and image_b of 3.*Take images out with ImageFromBatch"),
        (noise(1, 16, 16, 1), noise(1, 16, 16, 3), "has 1 channels and image_b has 3.*Connect two colour images"),
        (damaged(math.nan), noise(1, 16, 16, 3), r"image_a has pixels that are not numbers.*image 2 of 2.*--fp32-vae"),
        (noise(1, 16, 16, 3), damaged(-math.inf), "image_b has pixels that are not numbers"),
        (noise(0, 16, 16, 3), noise(1, 16, 16, 3), r"image_a is empty: its shape is \(0, 16, 16, 3\)"),
    ],
)
def test_what_cannot_be_compared_is_named(compare: Any, a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(a, b)


@pytest.mark.parametrize("gain", [math.nan, math.inf, 0.5, -4.0, 1e9])
def test_a_gain_that_means_nothing_is_named(compare: Any, pack: dict[str, Any], gain: float) -> None:
    image = noise(1, 16, 16, 3)
    with pytest.raises(ValueError, match="gain is .*allowed is 1 to 255"):
        compare(image, image, gain)
    assert "allowed is 1 to 255" in pack["CLEARCompare"].validate_inputs(gain=gain)
    assert pack["CLEARCompare"].validate_inputs(gain=4.0) is True


def test_a_missing_package_is_named(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    image = noise(1, 16, 16, 3)
    with pytest.raises(RuntimeError, match="needs the package torchmetrics.*pip install -r requirements.txt"):
        compare(image, image * 0.5)


@pytest.fixture
def progress(host: Any) -> Iterator[Any]:
    """What the host's bar is told; set `stop` to cancel there."""
    import comfy.model_management
    import comfy.utils

    class Told:
        def __init__(self) -> None:
            self.values: list[tuple[int, int]] = []
            self.stop = False

        def __call__(self, value: int, total: int, preview: Any, node_id: Any = None) -> None:
            self.values.append((value, total))
            comfy.model_management.interrupt_current_processing(self.stop)
            comfy.model_management.throw_exception_if_processing_interrupted()

    told, before = Told(), comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(told)
    yield told
    comfy.utils.set_progress_bar_global_hook(before)
    comfy.model_management.interrupt_current_processing(False)


def test_progress_and_cancel(compare: Any, similarity: Any, progress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy.model_management import InterruptProcessingException

    monkeypatch.setattr(similarity, "_STRIP", 4096)
    a, b = (image.expand(2, -1, -1, -1) for image in pair(180, 200))
    compare(a, b)
    values, totals = zip(*progress.values, strict=True)
    assert set(totals) == {values[-1]}
    assert list(values) == sorted(values)
    assert len(values) > 20
    progress.values, progress.stop = [], True
    with pytest.raises(InterruptProcessingException):
        compare(a, b)
    assert len(progress.values) == 1


def test_its_inputs_keep_names_and_order(pack: dict[str, Any]) -> None:
    schema = pack["CLEARCompare"].define_schema()
    assert [(given.id, getattr(given, "default", None)) for given in schema.inputs] == [
        ("image_a", None),
        ("image_b", None),
        ("gain", 4.0),
    ]
    assert all(given.tooltip for given in schema.inputs)
    assert [out.display_name for out in schema.outputs] == ["text", "difference"]
    assert (schema.display_name, schema.category, schema.is_output_node) == ("Compare Images", "CLEAR", True)
