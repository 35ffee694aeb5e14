"""CLEAR Report: its figures are the core's, its backend is the one that runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clear_core.backends.triton.tile_plan import GridPair, tile_plan
from clear_core.bands.memory import ModelShape, banded_bytes, stock_bytes
from clear_core.bands.plan import BandPlan, cut_rows
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern, attention_flops
from clear_core.window import Window
from devtools.models import chroma_model, flux2_model, flux_model, inputs, run_forward

pytestmark = pytest.mark.usefixtures("previews_elsewhere")

SIZES = [(side, side) for side in (1024, 2048, 4096, 8192)]


@pytest.fixture
def report(nodes_api: Any) -> Any:
    """The node: its picture and its text."""

    def run(model: Any, width: int = 2048, height: int = 2048) -> tuple[torch.Tensor, str]:
        return nodes_api.execute("CLEARReport", model=model, width=width, height=height)

    return run


def numbers(text: str, pattern: str) -> dict[tuple[int, int], tuple[float, ...]]:
    """What the lines of a table say, by size."""
    found = re.findall(rf"^  (\d+) x (\d+): {pattern}", text, re.MULTILINE)
    return {(int(w), int(h)): tuple(float(value.replace(",", "")) for value in values) for w, h, *values in found}


def rounded(values: Sequence[float]) -> Any:
    return pytest.approx(tuple(values), rel=5.1e-3)


@pytest.mark.parametrize(
    ("options", "windowed", "size"),
    [
        ({"radius": 8}, 3, (2048, 2048)),
        ({"radius": 16, "down_factor": 4}, 3, (1500, 3000)),
        ({"radius": 32, "blocks": "s0"}, 1, (16384, 8192)),
    ],
)
def test_operations_and_memory_are_the_cores(
    host: Any, nodes_api: Any, report: Any, options: dict[str, Any], windowed: int, size: tuple[int, int]
) -> None:
    _, text = report(nodes_api.apply(flux_model(), **options), *size)
    operations = numbers(text, r"dense ([\d.,e-]+) TFLOP, CLEAR ([\d.,e-]+)")
    memory = numbers(text, r"([\d.,]+) GiB, dense or with CLEAR; ([\d.,]+) in (\d+) bands")
    assert list(operations) == list(memory) == SIZES + ([] if size in SIZES else [size])
    window, factor = Window(options["radius"]), options.get("down_factor", 1)
    for width, height in operations:
        grid = Grid(-(-height // 16), -(-width // 16))
        layout, heads = TokenLayout(256, grid), {"heads": 2, "head_dim": 16}
        dense = attention_flops(layout, None, **heads)
        local = attention_flops(layout, window, **heads, down_factor=factor)
        expected = (3 * dense, windowed * local + (3 - windowed) * dense)
        assert operations[width, height] == rounded([value / 1e12 for value in expected])
        shape = ModelShape(32, 16, element_size=4)
        rows = cut_rows(grid.height, grid.height // 8, factor)
        plan = BandPlan(grid, rows, (0,) * len(rows), window if windowed == 3 else None, together=factor > 1)
        gib = [stock_bytes(grid, 256, shape) / 2**30, banded_bytes(plan, 256, shape) / 2**30, len(rows)]
        assert memory[width, height] == rounded(gib)
    assert ("2 of 3 layers stay dense, as set: blocks other than s0" in text) == (windowed == 1)


def test_the_released_models_shape_gives_the_papers_figure(host: Any, report: Any) -> None:
    """FLUX.1 at 1024 px, dense: 260.9 GFLOP a layer with 512 text tokens (table 1 of the paper), 57 layers."""
    model = flux_model(depth=19, depth_single_blocks=38)
    model.model.diffusion_model.hidden_size, model.model.diffusion_model.num_heads = 3072, 24
    _, text = report(model)
    dense, _ = numbers(text, r"dense ([\d.,]+) TFLOP, CLEAR ([\d.,]+)")[1024, 1024]
    assert dense == pytest.approx(57 * 0.2609 * ((4096 + 256) / (4096 + 512)) ** 2, rel=5.1e-3)
    assert "all 57 layers" in text
    assert "Time per step" not in text, "of a processor"


@pytest.mark.parametrize("radius", [4, 40])
@pytest.mark.parametrize("factor", [1, 4])
def test_the_backend_is_the_one_that_runs(host: Any, nodes_api: Any, report: Any, radius: int, factor: int) -> None:
    """With as many text tokens and the same size, the node foretells what a forward reports, reason included."""
    module = nodes_api.module
    window = module("clear_core.window").Window(radius)
    settings = module("nodes.options.clear").ClearSettings(window=window, down_factor=factor)
    patched, ran = module("nodes.host").apply_clear(flux_model(), settings, None, print)
    _, text = report(patched, 512, 384)
    run_forward(patched, **inputs(48, 64, text=256))
    found = re.search(r"by (\w+) \(256 text \+ 24 x 32 image tokens; (.*)\)$", ran.text(), re.MULTILINE)
    assert found is not None
    assert f"Backend on this machine: {found[1]} ({found[2]})." in text


def test_every_backend_is_listed_with_its_reason(host: Any, nodes_api: Any, report: Any) -> None:
    model = nodes_api.apply(flux_model(), radius=8, backend="masked")
    _, text = report(model, 256, 256)
    assert "Backend on this machine: masked (" in text
    _, text = report(model)
    listed = [backend.name for backend in nodes_api.module("clear_core.backends").BACKENDS]
    lines = [line for line in text.split("\n") if re.match(r"  \w+: .* of the pairs of dense attention; ", line)]
    assert [line.split(":")[0].strip() for line in lines] == listed
    assert "The backend 'masked' cannot run this attention call. masked: its mask would take 1,056 MB" in text
    if not torch.cuda.is_available():
        assert "there is no GPU" in next(line for line in lines if line.startswith("  triton"))


def test_nothing_of_the_images_size_is_allocated(host: Any, nodes_api: Any) -> None:
    info = nodes_api.module("nodes.host").model_info(nodes_api.apply(flux_model(), radius=8, down_factor=4))
    grid = nodes_api.module("clear_core.flux").token_grid(16384, 16384)
    call = nodes_api.module("clear_core.show.cost").example_call(info.size, info.options, grid)
    assert call.query.shape == (1, 2, 256 + 1024 * 1024, 16)
    assert call.pooled.key.shape == (1, 2, 256 * 256, 16)
    assert all(tensor.untyped_storage().nbytes() == 4 for tensor in (call.query, call.key, call.value, call.pooled.key))


def test_the_plan_is_the_cores(host: Any, nodes_api: Any, report: Any) -> None:
    _, text = report(nodes_api.apply(flux_model(), radius=12), 1024, 768)
    found = re.search(
        r"([\d,]+) tiles of (\d+) x (\d+) queries visit ([\d,]+) tiles of (\d+) x (\d+) keys, ([\d,]+) full and the "
        r"others partial \(masked\);\n  it computes ([\d.]+) times",
        text,
    )
    assert found is not None
    tiles, height, width, boxes, box_height, box_width, full = (int(v.replace(",", "")) for v in found.groups()[:7])
    grid = Grid(48, 64)
    plan = tile_plan(GridPair(grid, grid.rows, grid, grid.rows), Window(12), (height, width), (box_height, box_width))
    assert (tiles, boxes, full) == (plan.tiles, len(plan.boxes), plan.full_boxes)
    exact = LocalPattern.whole(TokenLayout(0, grid), Window(12)).pairs()
    assert float(found[8]) == pytest.approx(plan.executed_pairs() / exact, abs=0.006)


def test_other_families_and_models_without_clear(host: Any, nodes_api: Any, report: Any) -> None:
    _, text = report(flux_model())
    assert "radius 16 as an example: no CLEAR in this model" in text
    assert "Put Apply CLEAR Attention before this node" in text
    _, text = report(nodes_api.apply(flux2_model(), radius=8, start_percent=0.2))
    assert text.startswith("FLUX.2, radius 8")
    assert "The costs are those of a step between 0.2 and 1 of sampling" in text
    assert "bands" in text
    _, text = report(nodes_api.apply(chroma_model(), radius=8))
    assert text.startswith("Chroma, radius 8")
    assert "bands" not in text, "a forward of Chroma cannot be cut"


def test_the_model_stays_as_it_was(host: Any, nodes_api: Any, report: Any) -> None:
    model = nodes_api.apply(flux_model(), radius=8)
    before, given = (str(model.model_options), dict(model.patches)), inputs(16, 16)
    expected = run_forward(model, **given)
    report(model)
    assert (str(model.model_options), model.patches) == before
    assert torch.equal(run_forward(model, **given), expected)


def test_what_the_node_hands_on_and_shows(host: Any, nodes_api: Any, pack: dict[str, Any], tmp_path: Path) -> None:
    output = pack["CLEARReport"].PREPARE_CLASS_CLONE({}).execute(model=flux_model(), width=1024, height=512)
    image, text = output.args
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3
    assert image.dtype == torch.float32
    assert 0 <= float(image.min()) < 0.5 < float(image.max()) <= 1
    assert output.ui["text"] == (text,)
    (shown,) = output.ui["images"]
    with Image.open(tmp_path / shown["filename"]) as saved:
        assert saved.size == (image.shape[2], image.shape[1])


def test_a_missing_matplotlib_is_named(host: Any, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeError, match="needs the package matplotlib.*Run pip install -r requirements.txt"):
        report(flux_model())


@pytest.mark.parametrize(
    ("inputs_", "words"),
    [
        ({"width": 0}, "width is 0; allowed is 16 to 16384 pixels"),
        ({"height": 16385}, "height is 16385; allowed is 16 to 16384 pixels"),
    ],
)
def test_impossible_sizes_are_named(host: Any, report: Any, inputs_: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        report(flux_model(), **inputs_)


def test_other_models_are_named(host: Any, report: Any) -> None:
    model = flux_model()
    model.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"this model is Flux \(Identity\)"):
        report(model)
