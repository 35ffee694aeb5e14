"""Any size up to 16384 pixels a side: narrow and odd images, exact positions, stages, and files as large as that."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairwise import all_pairs
from PIL import Image
from torch import Tensor

from clear_core.layout import Grid, TokenLayout
from devtools.models import flux_model, inputs, run_forward

import host.oracle
from core.naive import visible
from host.comparing import error

LONG = 2048  # latent cells of 16384 pixels: 1024 tokens
RADIUS = 4


@pytest.fixture(scope="module")
def model(host: Any) -> Any:
    return flux_model()


def seen_at_once(layout: TokenLayout, radius: int, references: str = "window") -> Tensor:
    """What `core.naive.visible` gives for an image alone, without its loop over 16 million pairs."""
    rows = torch.arange(layout.image.height).repeat_interleave(layout.image.width)
    columns = torch.arange(layout.image.width).repeat(layout.image.height)
    seen = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    distance = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    seen[layout.text :, layout.text :] = distance < radius**2
    return seen


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Dense attention under the window's mask, for as many tokens as its square has room."""
    layout = TokenLayout(2, Grid(5, 7))
    assert torch.equal(seen_at_once(layout, 3), visible(layout, 3))
    monkeypatch.setattr(host.oracle, "visible", seen_at_once)
    return host.oracle.with_mask


# ---- narrow and odd images ---------------------------------------------------------------------------

NARROW = [(LONG, 8), (8, LONG), (LONG - 1, 5), (5, LONG - 1), (1023, 5), (LONG, 1), (1, 1), (3, 255)]
"""Latent cells, height and width; odd ones are padded by the host to whole tokens of 2 x 2."""


@pytest.mark.parametrize("size", NARROW, ids=str)
def test_a_narrow_image_is_dense_attention_under_its_mask(
    model: Any, nodes_api: Any, oracle: Any, size: tuple[int, int]
) -> None:
    height, width = size
    arguments = inputs(height, width)
    expected = run_forward(oracle(model, Grid(-(-height // 2), -(-width // 2)), RADIUS), **arguments)
    for backend in ("auto", "sdpa"):
        out = run_forward(nodes_api.apply(model, radius=RADIUS, backend=backend), **arguments)
        assert out.shape == (1, 16, height, width)
        assert error(out, expected) < 1e-5


@pytest.mark.parametrize(("size", "factor", "cut"), all_pairs(NARROW, (1, 4), ((7, "cpu"), (256, "cpu,cpu"))), ids=str)
def test_a_narrow_image_in_bands_is_the_one_without(
    model: Any, nodes_api: Any, size: tuple[int, int], factor: int, cut: tuple[int, str]
) -> None:
    arguments, (bands, devices) = inputs(*size), cut
    patched = nodes_api.apply(model, radius=RADIUS, down_factor=factor)
    expected = run_forward(patched, **arguments)
    banded = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=bands, text_merge="exact")[0]
    assert error(run_forward(banded, **arguments), expected) < 1e-6


@settings(max_examples=15)
@given(height=st.integers(1, 40), width=st.integers(1, 40), radius=st.integers(1, 25))
def test_any_small_size_is_dense_attention_under_its_mask(
    model: Any, nodes_api: Any, height: int, width: int, radius: int
) -> None:
    arguments = inputs(height, width, text=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.oracle, "visible", seen_at_once)
        masked = host.oracle.with_mask(model, Grid(-(-height // 2), -(-width // 2)), radius)
        expected = run_forward(masked, **arguments)
    assert error(run_forward(nodes_api.apply(model, radius=radius), **arguments), expected) < 1e-5


# ---- positions ---------------------------------------------------------------------------------------


@contextmanager
def watched_positions() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The ids [1, tokens, 3] of every call of the host's embedder, and its answers."""
    from comfy.ldm.flux.layers import EmbedND

    found: list[tuple[Tensor, Tensor]] = []
    own = EmbedND.forward

    def forward(self: EmbedND, ids: Tensor) -> Tensor:
        out = own(self, ids)
        found.append((ids, out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbedND, "forward", forward)
        yield found


@pytest.mark.parametrize(
    ("dtype", "cut", "size"),
    all_pairs(
        (torch.float32, torch.bfloat16),
        ((1, "cpu", 1.0), (7, "cpu", 1.0), (9, "cpu,cpu", 10.0)),
        ((LONG, 8), (8, LONG), (LONG - 1, 5)),
    ),
    ids=str,
)
def test_every_token_up_to_16384_pixels_has_a_position_of_its_own(
    host: Any, nodes_api: Any, dtype: torch.dtype, cut: tuple[int, str, float], size: tuple[int, int]
) -> None:
    bands, devices, ntk_factor = cut
    patched = nodes_api.apply(flux_model(dtype=dtype), radius=RADIUS, ntk_factor=ntk_factor)
    banded = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=bands, text_merge="exact")[0]
    arguments = {name: tensor.to(dtype) for name, tensor in inputs(*size).items()}
    with watched_positions() as found:
        run_forward(banded, **arguments)
    assert {ids.dtype for ids, _ in found} == {answer.dtype for _, answer in found} == {torch.float32}
    asked, answers = (torch.cat(parts) for parts in zip(*((ids[0], pe[0, 0]) for ids, pe in found), strict=True))
    height, width = (-(-cells // 2) for cells in size)
    expected = torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))
    assert torch.equal(asked.unique(dim=0), expected)
    # The text is at (0, 0, 0). Every other position is computed in one band alone, and the model can tell them apart.
    image = asked.any(dim=1)
    assert int(image.sum()) == len(answers[image].flatten(1).unique(dim=0)) == height * width - 1


@pytest.mark.parametrize("bands", [1, 3])
def test_reference_images_of_16384_pixels_have_exact_positions_too(model: Any, nodes_api: Any, bands: int) -> None:
    patched = nodes_api.apply(model, radius=RADIUS)
    cut = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=bands, text_merge="exact")[0]
    with watched_positions() as found:
        run_forward(cut, **inputs(12, 16), ref_latents=[torch.zeros(1, 16, 8, LONG)])
    asked = torch.cat([ids[0] for ids, _ in found])
    places = asked[asked[:, 0] == 1].unique(dim=0)
    assert torch.equal(places, torch.cartesian_prod(torch.ones(1), torch.arange(4.0), torch.arange(1024.0)))


# ---- stages ------------------------------------------------------------------------------------------


@given(
    width=st.integers(16, 16384),
    height=st.integers(16, 16384),
    longest=st.integers(16, 16384),
    count=st.integers(0, 6),
)
def test_stages_reach_any_size_up_to_16384_pixels(
    nodes_api: Any, width: int, height: int, longest: int, count: int
) -> None:
    plan = nodes_api.module("nodes.options.stages").plan_stages
    scale = longest / max(width, height)
    assume(width * height * scale**2 >= 16 * 16)  # not less than a token
    planned = plan(width, height, width * height * scale**2 / 1e6, count)
    sides = [(stage.width, stage.height) for stage in planned]
    assert len(sides) == count or (count == 0 and len(sides) >= 1)
    for side, start, end in zip((0, 1), (width, height), (width * scale, height * scale), strict=True):
        on_the_way = [size[side] for size in sides]
        assert all(length % 16 == 0 and length >= 16 for length in on_the_way)
        assert abs(on_the_way[-1] - max(16, end)) <= 8 + 1e-6 * end
        assert on_the_way == sorted(on_the_way, reverse=end < start)
        assert max(on_the_way) <= 16384


@pytest.mark.parametrize("side", [8192, 16384])
def test_the_targets_of_the_node_reach_the_sizes_they_name(nodes_api: Any, pack: Any, side: int) -> None:
    inputs = {one.id: one for one in pack["CLEARHighRes"].define_schema().inputs}
    megapixels = math.floor(side**2 / 1e5 + 0.5) / 10  # as the node's tooltip rounds it
    assert megapixels <= inputs["target_megapixels"].max
    for start in ((1024, 1024), (1000, 1000), (512, 512)):
        last = nodes_api.module("nodes.options.stages").plan_stages(*start, megapixels)[-1]
        assert (last.width, last.height) == (side, side)


# ---- files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(host: Any, tmp_path: Path) -> Iterator[Path]:
    """The host's output folder, for the time of a test."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


def test_an_image_of_67_megapixels_is_saved_and_loaded_without_a_warning(pack: Any, folder: Path) -> None:
    rows = torch.arange(8192.0).remainder(256)[:, None, None] / 255
    image = torch.cat((rows, 1 - rows, rows / 2), dim=-1)[None].expand(1, 8192, 8192, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = pack["SaveImage"]().save_images(image, "large")["ui"]["images"][0]["filename"]
        loaded, _ = pack["LoadImage"]().load_image(f"{saved} [output]")
    assert loaded.shape == image.shape
    for band in range(0, 8192, 1024):  # not all at once, to keep memory low
        rows = slice(band, band + 1024)
        assert float((loaded[0, rows] - image[0, rows]).abs().max()) < 1.01 / 255


def test_an_image_of_268_megapixels_is_not_loaded_by_the_core(pack: Any, folder: Path) -> None:
    """Pillow takes it for a decompression bomb: what a user can know before making one."""
    Image.new("1", (16384, 16384)).save(folder / "huge.png")
    with pytest.raises(Image.DecompressionBombError, match="268435456 pixels.* exceeds limit of 178956970"):
        pack["LoadImage"]().load_image("huge.png [output]")
