"""What the page draws, held against the exact mask, the memory model and what bands really do."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "amd-epyc-2-cores.json"
GIB = 2**30


@pytest.fixture(scope="module")
def payloads(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.page.payloads")


def window_facts(payloads: Any, *values: Any) -> Any:
    return payloads.window_payload(*values)


def bands_facts(payloads: Any, *values: Any) -> Any:
    return payloads.bands_payload(*values, payloads.ModelShape())


@pytest.fixture(scope="module")
def clear(nodes_api: Any) -> Any:
    """Settings of Apply CLEAR Attention by their names."""
    settings = nodes_api.module("nodes.options.clear").USUAL
    window = nodes_api.module("clear_core.window").Window

    def make(radius: int = 16, **changes: Any) -> Any:
        return dataclasses.replace(settings, window=window(radius), **changes)

    return make


@pytest.fixture(scope="module")
def cut(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.options.bands").resolve_bands


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("radius", [6, 15, 40])  # within the image, wider than high, larger than the image
def test_the_windows_figures_are_the_exact_masks(
    nodes_api: Any, payloads: Any, clear: Any, factor: int, radius: int
) -> None:
    width, height = 560, 400
    found = window_facts(payloads, clear(radius, down_factor=factor), width, height, "no table")
    pattern = nodes_api.module("clear_core.pattern").LocalPattern
    layout = nodes_api.module("clear_core.layout")
    grid = layout.Grid(25, 35)
    cells = 7 * 9 if factor == 4 else 0
    window = nodes_api.module("clear_core.window").Window(radius)
    mask = pattern.whole(layout.TokenLayout(256, grid), window, pooled=cells).mask()
    middle = 256 + 12 * grid.width + 17
    assert found["grid"] == [25, 35]
    assert found["keys"] == mask[middle].sum()
    assert found["dense_keys"] == mask.shape[0]
    assert found["share"] == pytest.approx(mask.sum().item() / mask.shape[0] ** 2)
    assert found["cells"] == ([7, 9] if factor == 4 else None)
    seen = mask[middle, cells + 256 :].view(25, 35)
    assert factor > 1 or found["keys"] <= found["dense_keys"]
    if radius == 6:
        assert [half * 2 + 1 for half in found["half_widths"]] == [seen[12 + dy].sum() for dy in range(radius)]
        assert not seen[12 + radius].any()


def test_speed_up_is_the_nearest_measurement(payloads: Any, clear: Any) -> None:
    bench = payloads.read_bench(TABLE, None)
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]

    def measured(pixels: int, radius: int, backend: str) -> float:
        keys = ("pixels", "radius", "down_factor", "backend")
        return next(r["speedup"] for r in rows if tuple(r[k] for k in keys) == (pixels, radius, 1, backend))

    found = window_facts(payloads, clear(8), 2048, 2048, bench)["speedup"]
    assert found == {
        "times": measured(2048, 8, "sdpa"),
        "pixels": 2048,
        "backend": "sdpa",
        "device": "AMD EPYC, 2 cores",
    }
    assert window_facts(payloads, clear(8), 1152, 896, bench)["speedup"]["pixels"] == 1024
    quickest = window_facts(payloads, clear(8), 512, 512, bench)["speedup"]["times"]
    assert quickest == max(measured(512, 8, name) for name in ("sdpa", "masked"))
    assert window_facts(payloads, clear(8, backend="sdpa"), 512, 512, bench)["speedup"]["backend"] == "sdpa"
    for settings, size in ((clear(8), 4096), (clear(9), 2048), (clear(8, backend="triton"), 2048)):
        assert window_facts(payloads, settings, size, size, bench)["speedup"] == "not measured at this radius and size"


@pytest.mark.parametrize(
    ("text", "card", "words"),
    [
        (None, None, "no bench.json in ComfyUI's user folder"),
        ("{", None, "cannot be read"),
        ("[]", None, "cannot be read"),
        ('{"device": "x", "rows": 5}', None, "cannot be read"),
        ('{"device": "NVIDIA A", "rows": []}', "NVIDIA B", "another machine (NVIDIA A)"),
        ('{"device": "x", "rows": [{"radius": 8}]}', None, "cannot be read"),
        ('{"device": "x", "rows": []}', None, "not measured"),
    ],
)
def test_a_table_that_says_nothing_says_why(
    payloads: Any, clear: Any, tmp_path: Path, text: str | None, card: str | None, words: str
) -> None:
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert words in window_facts(payloads, clear(8), 1024, 1024, payloads.read_bench(path, card))["speedup"]


def cards(payloads: Any, *free: float) -> list[Any]:
    """A machine with CUDA cards of so many free GiB, and the CPU."""
    found = [payloads.MachineDevice(f"cuda:{i}", "a card", int(gib * GIB), 24 * GIB) for i, gib in enumerate(free)]
    return [*found, payloads.MachineDevice("cpu", "cpu", 60 * GIB, 64 * GIB)]


def test_bands_and_their_memory_are_the_cores(nodes_api: Any, payloads: Any, clear: Any, cut: Any) -> None:
    found = bands_facts(payloads, clear(16), cut("cuda:0=2,cuda:1=1", 12, "exact"), 4096, 2048, cards(payloads, 20, 20))
    assert found["grid"] == [128, 256]
    edges = [0, 10, 21, 32, 42, 53, 64, 74, 85, 96, 106, 117, 128]
    assert [band[:2] for band in found["bands"]] == [list(rows) for rows in itertools.pairwise(edges)]
    assert [band[2] for band in found["bands"]] == [0] * 8 + [1] * 4
    assert found["lanes"] == ["cuda:0", "cuda:1"]
    assert (found["halo"], found["missing"], found["chosen"]) == (15, [], False)
    memory, bands, layout = (
        nodes_api.module(f"clear_core.{name}") for name in ("bands.memory", "bands.plan", "layout")
    )
    grid = layout.Grid(128, 256)
    plan = bands.BandPlan(grid, bands.cut_rows(grid.height, 12), (0,) * 8 + (1,) * 4, clear(16).window)
    assert max(found["peaks"].values()) == memory.banded_bytes(plan, 256, memory.ModelShape())
    assert found["peaks"]["cuda:0"] > found["peaks"]["cuda:1"] > 0


def test_bands_chosen_by_memory_fit_into_it(payloads: Any, clear: Any, cut: Any) -> None:
    counts = []
    for free in (24, 4.5):
        found = bands_facts(payloads, clear(16), cut("auto", 0, "exact"), 8192, 8192, cards(payloads, free))
        assert found["chosen"]
        assert found["lanes"] == ["cuda:0"]
        assert found["peaks"]["cuda:0"] <= (free - 0.5) * GIB or len(found["bands"]) == 1
        counts.append(len(found["bands"]))
    assert counts[0] < counts[1]


def test_one_device_in_two_lanes_has_both_to_hold(payloads: Any, clear: Any, cut: Any) -> None:
    once, twice = (
        bands_facts(payloads, clear(16), cut(devices, 32, "exact"), 4096, 4096, cards(payloads, 20))
        for devices in ("cuda:0", "cuda,cuda:0")
    )
    assert twice["lanes"] == ["cuda:0", "cuda:0"]
    assert twice["peaks"].keys() == {"cuda:0"}
    assert twice["peaks"]["cuda:0"] > once["peaks"]["cuda:0"]


def test_lanes_are_those_of_a_run(nodes_api: Any, payloads: Any, clear: Any, cut: Any) -> None:
    """On this machine, whatever it has."""
    machine = nodes_api.module("nodes.host.page.routes").machine()
    name_of = nodes_api.module("nodes.host.machine").device_name
    home = torch.device(machine[0].name)
    for devices in ("auto", "cpu", "cpu=2,cpu=1", "cuda:93,cpu", "cuda:93", "mps:7, cpu ,xpu:9"):
        settings = cut(devices, 8, "exact")
        found = bands_facts(payloads, clear(16), settings, 1024, 1024, machine)
        replicas = nodes_api.module("nodes.host.bands.replicas").Replicas(settings.devices)
        assert found["lanes"] == [name_of(lane.device) for lane in replicas.lanes(None, home)]
        assert found["missing"] == list(replicas.missing(home))


@pytest.mark.parametrize("changes", [{"start_percent": 0.2}, {"blocks": "double"}])
def test_dense_layers_need_every_band(nodes_api: Any, payloads: Any, clear: Any, cut: Any, changes: Any) -> None:
    if "blocks" in changes:
        changes = {"blocks": nodes_api.module("nodes.options.blocks").parse_blocks(changes["blocks"])}
    bands = cut("auto", 8, "exact")
    windowed, dense = (
        bands_facts(payloads, clear(16, **more), bands, 4096, 4096, cards(payloads, 20)) for more in ({}, changes)
    )
    assert dense["halo"] is None
    assert dense["peaks"]["cuda:0"] > windowed["peaks"]["cuda:0"]


def test_weights_files_here_and_not(payloads: Any) -> None:
    files = payloads.weights_payload({"mine.safetensors": 2_000_000, "clear_local_8.safetensors": 3_600_000_000})
    by_name = {file["name"]: file for file in files}
    assert [file["name"] for file in files[:2]] == ["mine.safetensors", "clear_local_8.safetensors"]
    assert len(files) == 6
    assert by_name["mine.safetensors"] == {
        "name": "mine.safetensors",
        "here": True,
        "size": "2.0 MB",
        "radius": None,
        "down_factor": None,
        "licence": None,
        "link": None,
    }
    released = by_name["clear_local_8_down_4.safetensors"]
    assert (released["here"], released["size"], released["radius"], released["down_factor"]) == (False, "3.6 GB", 8, 4)
    assert released["link"] == "https://huggingface.co/Huage001/CLEAR"
    assert "non-commercial" in released["licence"]
    assert by_name["clear_local_8.safetensors"]["here"]


def test_memory_is_the_reports(host: Any, nodes_api: Any, payloads: Any, clear: Any, cut: Any) -> None:
    """What the panels show is what CLEAR Report says, in the type in which ComfyUI runs FLUX.1 here."""
    model = nodes_api.module("nodes.host.flux_model").model_here(torch.device("cpu"))
    cost = nodes_api.module("clear_core.show.cost")
    assert model.dtype == torch.float32  # of activations, on a CPU
    step = cost.step_cost(4096, 4096, cost.Options(clear(16).window, text=256), model)
    for count, bytes_ in ((1, step.stock), (step.bands, step.banded)):
        found = payloads.bands_payload(
            clear(16), cut("cpu", count, "exact"), 4096, 4096, cards(payloads, 20), model.shape
        )
        assert found["peaks"] == {"cpu": bytes_}


def test_memory_chooses_no_bands_on_a_cpu(payloads: Any, clear: Any, cut: Any) -> None:
    found = bands_facts(payloads, clear(16), cut("cpu", 0, "exact"), 8192, 8192, cards(payloads, 20))
    assert (len(found["bands"]), found["chosen"]) == (1, False)
