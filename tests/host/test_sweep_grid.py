"""CLEAR Sweep before anything is sampled: what its texts mean, what is refused, its rows on disk, its sheet."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def sweep(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.options.sweep")


@pytest.fixture(scope="module")
def rows(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.insight.sweep_rows")


@pytest.fixture(scope="module")
def report(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.insight.sweep_report")


# ---- the grid ------------------------------------------------------------------------------------------


def test_the_first_setting_with_several_values_makes_the_columns(sweep: Any) -> None:
    grid = sweep.parse_grid("weights: none\n\n Radius : 2, 3\nblocks: all, s0-1 d0, double\nschedule: 0.2-1")
    assert (grid.columns.name, grid.columns.values) == ("radius", ("2", "3"))
    assert grid.rows.labels == ("blocks all", "blocks s0-1 d0", "blocks double")
    assert grid.fixed == ("weights none", "schedule 0.2-1")
    assert [cell.label for cell in grid.cells][:3] == [
        *("radius 2, blocks all", "radius 3, blocks all", "radius 2, blocks s0-1 d0")
    ]
    assert [cell.inputs.radius for cell in grid.cells] == [2, 3] * 3
    assert {(cell.inputs.start_percent, cell.inputs.end_percent, cell.weights) for cell in grid.cells} == {
        (0.2, 1.0, None)
    }
    grid.check_weights(connected=False)


def test_weights_are_named_with_or_without_their_ending(sweep: Any) -> None:
    grid = sweep.parse_grid("weights: clear_local_8, clear_local_16.safetensors, none\nradius: 8")
    assert grid.files == ("clear_local_8.safetensors", "clear_local_16.safetensors")
    assert grid.columns.values == ("clear_local_8", "clear_local_16", "none")


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("", "axes is empty. Write a setting a line"),
        ("radios: 8", "'radios: 8', which begins with no setting. .* Settings: weights, radius, "),
        ("radius 8, 16", "begins with no setting"),
        ("radius: 8,, 16", "a line for radius with an empty value"),
        ("radius:", "a line for radius with an empty value"),
        ("radius: 8.5", "radius '8.5'; allowed are integers from 0 to 128"),
        ("radius: 8, 129", "axes: radius is 129; allowed is 0 to 128"),
        ("radius: 8, 08", "radius 8 twice"),
        ("radius: 8\nradius: 16", "two lines for radius"),
        ("strength: 1.5", "axes: strength is 1.5; allowed is 0 to 1"),
        ("strength: nan", "strength 'nan', which is no number"),
        ("ntk_factor: 0.5", "ntk_factor is 0.5; allowed is 0 .by size. or 1 to 100"),
        ("proportional_attention: maybe", "allowed are on and off"),
        ("schedule: 0.5", "write start_percent-end_percent"),
        ("schedule: 0.5-0.2", "the window would never be used"),
        ("blocks: s0-18 x3", "of which 'x3' cannot be read"),
        ("backend: fastest", "backend is 'fastest'; choose one of: auto"),
        ("references: some", "references is 'some'; choose one of: window, all tokens"),
        ("radius: 1, 2\nstrength: 0, 1\nblocks: all, single", "several values for radius, strength, blocks"),
        ("radius: " + ", ".join(map(str, range(1, 14))), "13 values for radius; 12 is the most"),
        ("radius: 8\n" * 2000, "16,000|20,000 characters"),
    ],
)
def test_a_text_that_means_nothing_is_refused(sweep: Any, axes: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sweep.parse_grid(axes)


def test_a_cell_needs_weights_or_a_radius(sweep: Any) -> None:
    with pytest.raises(ValueError, match="no weights are connected"):
        sweep.parse_grid("strength: 0, 1").check_weights(connected=False)
    sweep.parse_grid("strength: 0, 1").check_weights(connected=True)
    with pytest.raises(ValueError, match="axes has a line for weights"):
        sweep.parse_grid("weights: clear_local_8").check_weights(connected=True)


def test_seeds(sweep: Any) -> None:
    assert sweep.parse_seeds("3, 1 18446744073709551615") == (3, 1, 2**64 - 1)
    for text, words in [
        ("", "seeds is empty"),
        ("1, x", "seeds has 'x'"),
        ("-1", "seeds has '-1'"),
        ("18446744073709551616", "allowed are integers from 0 to 18446744073709551615"),
        ("1, 2, 1", "seeds has 1 twice"),
    ]:
        with pytest.raises(ValueError, match=words):
            sweep.parse_seeds(text)


def test_the_number_of_cells_is_bounded(sweep: Any) -> None:
    grid = sweep.parse_grid("radius: 1, 2, 3, 4\nstrength: 0, 0.5, 1")
    sweep.check_count(grid, range(12))
    with pytest.raises(ValueError, match="12 cells x 13 seeds = 156 in all; 144 is the most"):
        sweep.check_count(grid, range(13))
    with pytest.raises(ValueError, match="12 cells x 7 seeds x 2 images = 168"):
        sweep.check_count(grid, range(7), images=2)


# ---- the node, before it samples -----------------------------------------------------------------------


def test_the_node_refuses_when_the_prompt_is_queued(pack: Any, nodes_api: Any) -> None:
    check = pack["CLEARSweep"].validate_inputs
    assert check(axes=["radius: 2, 3"], seeds=["1"], filename_prefix=["sweeps/mine"]) is True
    assert check(axes=(None,), seeds=(None,), filename_prefix=(None,)) is True
    assert "there is no such file" in check(axes=["weights: ../secret, clear_local_16"])
    assert "axes has a line for weights" in check(axes=["weights: clear_local_16"], weights=(None,))
    assert "144 is the most" in check(axes=["radius: 1, 2"], seeds=[", ".join(map(str, range(73)))])
    for prefix in ("", ".", "..", "../out", "/etc/passwd", "a/../../b", "folder/", "a\0"):
        assert "filename_prefix is" in check(filename_prefix=[prefix])


# ---- rows ----------------------------------------------------------------------------------------------


@pytest.fixture
def row(rows: Any) -> Any:
    settings = {name: f"a {name}" for name in rows.SETTINGS}
    return rows.Row("a1", settings, 1, 7, 64, 48, 4, 1.25, "a card", "2026-11-30 12:00:00", "x/y.png")


def test_rows_are_a_csv_file_that_is_always_whole(rows: Any, row: Any, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "sweep.csv"
    store = rows.SweepRows(path)
    store.put(row)
    store.put(replace(row, key="b2", settings={}, seed=2**64 - 1, psnr=float("inf"), ssim=1.0))
    store.put(replace(row, psnr=28.95, ssim=0.94))
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["attention"], first["radius"], first["psnr"], first["seconds"]) == (
        *("CLEAR", "a radius", "28.9500", "1.2500"),
    )
    assert (second["attention"], second["radius"], second["psnr"]) == ("dense", "", "inf")
    again = rows.SweepRows(path)
    assert again.find("a1") == replace(row, psnr=28.95, ssim=0.94)
    assert again.find("b2").psnr == float("inf")
    assert again.find("c3") is None
    assert [file.name for file in path.parent.iterdir()] == ["sweep.csv"]


def test_a_row_that_was_edited_is_kept_and_not_used(rows: Any, row: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    rows.SweepRows(path).put(row)
    path.write_text(path.read_text(encoding="utf-8").replace("1.2500", "a while"), encoding="utf-8")
    store = rows.SweepRows(path)
    assert store.find("a1") is None
    store.put(replace(row, key="b2"))
    assert "a while" in path.read_text(encoding="utf-8")


def test_a_file_of_another_program_is_left_alone(rows: Any, tmp_path: Path) -> None:
    for content in (b"name,score\na,1\n", b"\xff\xfe\x00", b""):
        path = tmp_path / "sweep.csv"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="has other columns"):
            rows.SweepRows(path)
        assert path.read_bytes() == content


# ---- sheet and table -----------------------------------------------------------------------------------


@pytest.fixture
def seeds(sweep: Any, report: Any, nodes_api: Any, row: Any) -> tuple[Any, list[Any]]:
    """Two seeds of a grid of 2 x 2, without and with scores."""
    grid = sweep.parse_grid("radius: 2, 3\nstrength: 0.5, 1\nweights: mine")
    scaled = nodes_api.module("nodes.insight.contact_sheet").scaled

    def sampled(number: int, seed: int, seconds: float, psnr: float | None) -> Any:
        image = torch.full((48, 64, 3), number / 10)
        picture = scaled(image, 3, 10)
        ssim = None if psnr is None else 0.9
        return report.Sampled(picture, replace(row, seed=seed, seconds=seconds, psnr=psnr, ssim=ssim))

    found = []
    for seed in (1, 2):
        cells = tuple(sampled(i, seed, seed * i, 20.0 + i * seed) for i in range(1, 5))
        found.append(report.Seed(sampled(9, seed, 12.0, None), cells))
    return grid, found


def test_the_table_has_means(report: Any, seeds: Any) -> None:
    grid, found = seeds
    lines = report.table(grid, found).split("\n")
    assert lines[0] == "| radius | strength | seconds | speed-up | PSNR, dB | SSIM | images |"
    assert lines[2] == "| dense |  | 12.0 | 1 | | | 2 |"
    assert lines[4] == "| 3 | 0.5 | 3.00 | 4.00 | 23.00 | 0.9000 | 2 |"
    assert {line.count("|") for line in lines} == {8}


def test_without_dense_the_scores_are_not_measured(report: Any, seeds: Any) -> None:
    grid, found = seeds
    bare = [
        replace(seed, dense=None, cells=tuple(replace(c, row=replace(c.row, psnr=None)) for c in seed.cells))
        for seed in found
    ]
    lines = report.table(grid, bare).split("\n")
    assert lines[2] == "| 2 | 0.5 | 1.50 | not measured | not measured | not measured | 2 |"
    assert report.summary(grid, bare)[0] == "radius 2, strength 0.5: not measured, 1.50 s"


def test_the_sheet_has_every_picture_once_and_in_order(report: Any, nodes_api: Any, seeds: Any) -> None:
    grid, found = seeds
    theme = nodes_api.module("clear_core.show.theme").PRINT
    image = report.sheet(grid, found, theme)
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.dtype == torch.float32
    pixels = (image[0] * 255).round().to(torch.uint8).numpy()
    places = {}
    for number in (1, 2, 3, 4, 9):
        grey = round(number / 10 * 255)
        y, x = np.nonzero((pixels == grey).all(-1))
        assert len(y) >= 2 * 48 * 64
        places[number] = (y.min(), x.min())
    # dense, radius 2, radius 3 from the left; strength 0.5 above 1.
    assert places[9][1] < places[1][1] < places[2][1]
    assert places[9][0] == places[1][0] == places[2][0] < places[3][0] == places[4][0]
    assert places[1][1] == places[3][1] and places[2][1] == places[4][1]


def test_the_sheet_is_bounded(nodes_api: Any) -> None:
    module = nodes_api.module("nodes.insight.contact_sheet")
    large = torch.zeros(3000, 2000, 3)
    one = module.Shown(module.scaled(large, 2, 288), ("a caption",))
    blocks = [module.Block(f"seed {i}", one, (("", (one,)),)) for i in range(144)]
    sheet = module.contact_sheet("title", "a subtitle " * 100, ["radius 8"], blocks)
    assert max(sheet.shape) <= 8192 and sheet.shape[1] * sheet.shape[2] < 32e6
    assert max(module.scaled(large, 13, 13).size) <= 4096 // 13
