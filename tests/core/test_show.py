"""`python -m clear_core`: its drawings and figures against the definition and the paper, its picture by its pixels."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.show.command import main
from clear_core.show.cost import Options, make_report
from clear_core.show.figure import Page, report_page
from clear_core.show.numbers import percent, shown
from clear_core.window import Window

from core.naive import visible

ROOT = Path(__file__).parents[2]


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The real command; `code` runs before and after it in the same process."""
    start = ["-c", code, *arguments] if code else ["-m", "clear_core", *arguments]
    return subprocess.run([sys.executable, *start], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints, without a process of its own."""

    def call(*arguments: str) -> str:
        main(arguments)
        return capsys.readouterr().out

    return call


def drawing(text: str, heading: str) -> list[list[str]]:
    """The rows of characters below a heading."""
    (section,) = (part for part in re.split(r"\n\n(?=[A-Z0-9]+ )", text) if part.startswith(heading))
    return [row.split() for row in section.split("\n\n")[1].split("\n")]


def number(text: str, pattern: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text}"
    return [float(value.replace(",", "")) for value in found.groups()]


def test_a_process_prints_the_report_and_writes_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "window.png"
    ran = run("--size", "1024x768", "--radius", "8", "--bands", "4", "--png", str(path))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "1024 x 768 px, radius 8" in ran.stdout
    assert "193 in the window + 512 text" in ran.stdout
    assert re.search(r"BACKENDS on this machine \(.+\): auto chooses \w+: ", ran.stdout)
    assert ran.stdout.endswith(f"Wrote {path}\n")
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1600, 1180))
        colours = {colour[:3] for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {(0, 114, 178), (169, 207, 233), (213, 94, 0)} <= colours


def test_the_terminal_needs_nothing_but_torch() -> None:
    """The other packages are hidden; matplotlib is asked for with --png only, and then named."""
    hide = "import sys, runpy; sys.modules.update(dict.fromkeys({}))\nsys.argv[0] = 'x'\n"
    hide = hide.format(["PIL", "matplotlib", "safetensors", "einops", "huggingface_hub", "torchmetrics", "filelock"])
    ran = run("--png", "x.png", code=hide + "runpy.run_module('clear_core', run_name='__main__')")
    assert ran.returncode == 2
    assert "793 in the window" in ran.stdout
    assert re.fullmatch(r"clear_core: --png x.png: .* needs the package matplotlib.*\n", ran.stderr)


def test_a_picture_leaves_pyplot_and_the_settings_alone(tmp_path: Path) -> None:
    code = (
        # Reading the setting "backend" would import pyplot.
        "import sys, matplotlib\n"
        "settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}\n"
        "before = settings()\n"
        "from clear_core.show.command import main; main(sys.argv[1:])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and settings() == before"
    )
    ran = run("--png", str(tmp_path / "x.png"), code=code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("radius", "tokens"), [(4, 45), (8, 193), (16, 793)])
def test_the_window_is_drawn_token_by_token(show: Callable[..., str], radius: int, tokens: int) -> None:
    rows = drawing(show("--radius", str(radius)), "ATTENTION WINDOW")
    (query,) = ((y, x) for y, row in enumerate(rows) for x, sign in enumerate(row) if sign == "Q")
    for y, row in enumerate(rows):
        for x, sign in enumerate(row):
            inside = (y - query[0]) ** 2 + (x - query[1]) ** 2 < radius**2
            assert sign == ("Q" if (y, x) == query else "o" if inside else ".")
    assert sum(row.count("o") for row in rows) + 1 == tokens


def test_a_large_window_is_drawn_smaller_and_a_small_image_cuts_it(show: Callable[..., str]) -> None:
    text = show("--radius", "32", "--size", "4096")
    assert "3,205 in the window" in text
    assert "one character: 2 x 2 tokens" in text
    rows = drawing(text, "ATTENTION WINDOW")
    assert max(map(len, rows)) <= 37
    assert sum(row.count("o") for row in rows) == pytest.approx(3205 / 4, rel=0.02)
    # 6 x 20 tokens: three rows above the query, two below it.
    rows = drawing(show("--radius", "8", "--size", "320x96"), "ATTENTION WINDOW")
    assert len(rows) == 6
    assert "Q" in rows[3]
    assert rows[3].count("o") == 14


@pytest.mark.parametrize("arguments", [(), ("--radius", "32"), ("--size", "256x96"), ("--size", "16")])
def test_the_tile_is_drawn_as_the_window_needs_it(show: Callable[..., str], arguments: tuple[str, ...]) -> None:
    """Of the tokens drawn, a full tile's are seen by every query of the tile, and what no query sees is left out."""
    text = show(*arguments)
    rows = drawing(text, "ONE QUERY TILE")
    signs = {(y, x): sign for y, row in enumerate(rows) for x, sign in enumerate(row)}
    queries = [place for place, sign in signs.items() if sign == "Q"]
    radius = int(arguments[1]) if "--radius" in arguments else 16
    scales = re.findall(r"under a mask   one character: (\d) x", text)
    step = int(scales[0]) if scales else 1
    for (y, x), sign in signs.items():
        near = [((y - q[0]) ** 2 + (x - q[1]) ** 2) * step**2 < radius**2 for q in queries]
        assert sign != "#" or all(near)
        assert sign != "." or not any(near)
    assert queries


def test_counts_are_the_definitions(show: Callable[..., str]) -> None:
    """12 x 16 image tokens, 7 of text, radius 4, cells of 2: every pair counted by hand."""
    arguments = ("--size", "256x192", "--radius", "4", "--text", "7")
    mask = visible(TokenLayout(7, Grid(12, 16)), 4)
    text = show(*arguments)
    assert number(text, r"\(query, key\) pairs +([\d,]+) +([\d,]+)") == [199**2, int(mask.sum())]
    assert number(text, r"keys of the query Q +([\d,]+) +([\d,]+)") == [199, int(mask[7 + 6 * 16 + 8].sum())]
    text = show(*arguments, "--down-factor", "2")
    assert number(text, r"\(query, key\) pairs +([\d,]+) +([\d,]+)") == [199**2, int(mask.sum()) + 192 * 48]
    assert "+ 48 down-sampled" in text


def test_costs_are_the_papers(show: Callable[..., str]) -> None:
    """Table 1: a layer of FLUX.1 at 1024 px takes 260.9 GFLOP dense, and 63.5 with CLEAR at r = 8."""
    text = show("--size", "1024", "--radius", "8")
    dense, clear = number(text, r"TFLOP +([\d.]+) +([\d.]+)")
    assert (dense, clear) == pytest.approx((0.2609, 0.0635), rel=5e-3)
    row = r"\n[* ] 1024x1024 +([\d.]+) +([\d.]+) "
    assert number(text, row) == pytest.approx([57 * 0.2609, 57 * 0.0635], rel=5e-3)
    assert [line[2:].split()[0] for line in text.split("\n") if re.match(r"[* ] \d+x\d+ ", line)] == [
        f"{side}x{side}" for side in (1024, 2048, 4096, 8192)
    ]


def test_bands_are_drawn_with_their_halo(show: Callable[..., str]) -> None:
    """32 rows, a character each: three bands, and around each r - 1 = 4 rows that it reads from others."""
    text = show("--size", "256x512", "--radius", "5", "--bands", "3")
    bands = re.findall(r"^ +(\d+)  rows +(\d+)\.\.(\d+) +([=.-]+)$", text, re.MULTILINE)
    assert len(bands) == 3
    assert int(bands[-1][2]) == 32
    for index, (name, start, stop, signs) in enumerate(bands):
        assert (int(name), int(start)) == (index, int(bands[index - 1][2]) if index else 0)
        distance = [max(int(start) - row, row - int(stop) + 1, 0) for row in range(32)]
        assert signs == "".join("=" if d == 0 else "-" if d <= 4 else "." for d in distance)
    assert "(3 bands)" in text
    assert "BANDS" not in show("--size", "256x512")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "0"], "--size: '0' is not WIDTHxHEIGHT in pixels, each 16 to 16,384, such as 3840x2160"),
        (["--size", "20000x64"], "--size: '20000x64' is not WIDTHxHEIGHT"),
        (["--size", "1024x"], "--size: '1024x' is not"),
        (["--radius", "0"], "--radius: '0' is not a whole number from 1 to 128"),
        (["--radius", "1e3"], "--radius: '1e3' is not a whole number"),
        (["--down-factor", "9"], "--down-factor: '9' is not a whole number from 1 to 8"),
        (["--text", "-1"], "--text: '-1' is not a whole number from 0"),
        (["--bands", "129"], "--bands is 129; an image of 2048 px has 128 rows of tokens to cut"),
        (["--png", "no/such/folder/x.png"], "--png no/such/folder/x.png: .*No such file"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_bad_input_is_named_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.fullmatch(f"clear_core: .*{words}.*\n", capsys.readouterr().err)


def tokens_drawn(page: Page, name: str, rows: range, columns: range) -> np.ndarray:
    """The colour in the middle of some tokens: int [rows, columns, 3]."""
    pixels = page.pixels().astype(int)
    (axes,) = (axes for axes in page.figure.axes if axes.get_label() == name)
    y, x = np.meshgrid(np.array(rows) + 0.5, np.array(columns) + 0.5, indexing="ij")
    across, up = axes.transData.transform(np.stack((x.ravel(), y.ravel()), -1)).T
    return pixels[len(pixels) - 1 - up.astype(int), across.astype(int)].reshape(len(rows), len(columns), 3)


@pytest.mark.parametrize(("height", "width", "radius"), [(40, 60, 9), (9, 40, 9), (40, 9, 16), (5, 7, 32)])
@pytest.mark.parametrize("factor", [1, 4])
def test_the_window_of_the_picture_is_the_mask(height: int, width: int, radius: int, factor: int) -> None:
    """Every token of it, clipped at the border, in one colour, and no other token in that colour."""
    page = report_page(make_report(width * 16, height * 16, Options(Window(radius), factor)), "subtitle")
    colours = tokens_drawn(page, "window", range(height), range(width))
    row, column = height // 2, width // 2
    query = row * width + column
    mask = LocalPattern.whole(TokenLayout(0, Grid(height, width)), Window(radius)).mask(queries=slice(query, query + 1))
    inside = mask.view(height, width).numpy()
    marked = np.zeros_like(inside)
    marked[row, column] = True
    in_window = (colours == colours[inside & ~marked][0]).all(-1)
    assert np.array_equal(in_window | marked, inside)
    assert tuple(colours[row, column]) == (213, 94, 0)


@pytest.mark.parametrize(("size", "radius"), [((2048, 2048), 16), ((1500, 3000), 32), ((320, 128), 8), ((16, 16), 4)])
def test_the_tile_of_the_picture_covers_what_its_queries_see(size: tuple[int, int], radius: int) -> None:
    report = make_report(*size, Options(Window(radius)))
    grid, (top, left), (height, width) = report.grid, report.middle_tile.query, report.tiles.tile
    rows = range(max(0, top - radius), min(grid.height, top + height + radius))
    columns = range(max(0, left - radius), min(grid.width, left + width + radius))
    colours = tokens_drawn(report_page(report, "subtitle"), "tile", rows, columns)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    near = np.stack(
        [
            (y - qy) ** 2 + (x - qx) ** 2 < radius**2
            for qy in range(top, min(top + height, grid.height))
            for qx in range(left, min(left + width, grid.width))
        ]
    )
    full = (colours == (0, 114, 178)).all(-1)
    visited = full | (colours == (169, 207, 233)).all(-1)
    assert (near.all(0) | ~full).all()
    assert (visited | ~near.any(0)).all()
    assert full.any() or radius < 32


def test_the_picture_says_what_the_terminal_says() -> None:
    """1024 px, radius 8: the paper's TFLOP as lengths of bars, numbers and the chosen backend as text."""
    report = make_report(1024, 1024, Options(Window(8)), bands=5)
    page = report_page(report, "a subtitle with $ and \\frac")
    axes = {axes.get_label(): axes for axes in page.figure.axes}
    texts = " ".join(text.get_text() for text in page.figure.texts)
    for words in (
        "CLEAR at 1024 x 1024 px",
        "a subtitle with $ and \\frac",
        "193 of 4,096 image tokens (4.7 %)",
        "Dashed: 5 bands.",
        "chosen",
        *(one.name for one in report.backends.backends),
    ):
        assert words in texts
    lengths = [[bar.get_width() for bar in bars] for bars in axes["attention"].containers]
    assert [bars[0] for bars in lengths] == pytest.approx([57 * 0.2609, 57 * 0.0635], rel=5e-3)
    labels = [text.get_text() for text in axes["attention"].texts]
    assert labels[0] == "14.9"
    assert labels[4].startswith("3.62, 4.1")
    names = [label.get_text() for label in axes["memory"].get_yticklabels()]
    assert names == [f"{side} x {side}" for side in (1024, 2048, 4096, 8192)]
    assert axes["memory"].texts[4].get_text().endswith(" in 5 bands")
    pixels = page.pixels()
    assert (pixels.shape, pixels.dtype) == ((1180, 1600, 3), np.uint8)


def test_a_backend_that_refuses_is_told_in_the_picture() -> None:
    report = make_report(2048, 2048, Options(Window(16), backend="masked"))
    texts = " ".join(text.get_text() for text in report_page(report, "").figure.texts)
    assert "cannot run this attention call" in texts
    assert "chosen" not in texts.replace("never chosen by auto", "")


def test_nothing_of_the_images_size_is_allocated() -> None:
    report = make_report(16384, 16384, Options(Window(8), 4))
    assert report.pattern.query_tokens == 512 + 1024 * 1024
    assert report.tiles.boxes.nbytes < 32 * 2**20
    assert torch.equal(report.tiles.ranges[2].diff() > 0, torch.ones(report.tiles.tiles - 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.83, "83 %"), (0.048, "4.8 %"), (0.997, "99.7 %"), (0.9999, "100 %"), (1e-5, "below 0.01 %"), (0.0, "0 %")],
)
def test_shares_in_words(value: float, words: str) -> None:
    assert percent(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.04212, "0.0421"), (3.14159, "3.14"), (9.999, "10.0"), (12345, "12,300"), (0, "0")]
)
def test_numbers_in_words(value: float, words: str) -> None:
    assert shown(value) == words
