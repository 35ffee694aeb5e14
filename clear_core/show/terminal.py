"""The report as text for a terminal of 100 columns: the window and a query tile in characters, then the figures."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..bands.plan import BandPlan, halo_bytes
from ..layout import Band
from .cost import Report
from .numbers import percent, shown

_COLUMNS = 37  # signs across a drawing, with a space between two
_MOST_BANDS = 16


def report_text(report: Report) -> str:
    """Every section, a blank line between two."""
    sections = [_title(report), _window(report), _tile(report), _counts(report), _costs(report), _backends(report)]
    if report.bands is not None:
        sections.append(_bands(report, report.bands))
    return "\n\n".join("\n".join(section) for section in sections)


def _title(report: Report) -> list[str]:
    options = report.options
    lines = [
        f"CLEAR (arXiv 2412.16112) at {report.width} x {report.height} px, radius {options.window.radius}",
        f"FLUX.1 cuts the image into {report.grid} image tokens of 16 x 16 px; {options.text} text tokens join them.",
        "With dense attention each image token attends to all of them, with CLEAR to the text and a",
        "circular window around itself.",
    ]
    if options.down_factor > 1:
        lines.append(f"It also attends to the image down-sampled by {options.down_factor}: the global context.")
    return lines


def _window(report: Report) -> list[str]:
    window, grid, (row, column) = report.options.window, report.grid, report.query
    reach = window.radius
    signs = {
        (dy, dx): "o" if window.contains(dy, dx) else "."
        for dy in range(max(-reach, -row), min(reach + 1, grid.height - row))
        for dx in range(max(-reach, -column), min(reach + 1, grid.width - column))
    }
    signs[0, 0] = "Q"
    step, drawing = _draw(signs)
    return [
        "ATTENTION WINDOW of the query Q, an image token: dy^2 + dx^2 < r^2",
        f"o: token in the window   .: other image token{_scale(step)}",
        "",
        *drawing,
    ]


def _tile(report: Report) -> list[str]:
    plan, view, grid = report.tiles, report.middle_tile, report.grid
    (height, width), (key_height, key_width) = plan.tile, plan.box
    top, left = view.query
    signs = {
        (y + dy - top, x + dx - left): "#" if number < view.full else "+"
        for number, (y, x) in enumerate(view.keys)
        for dy in range(min(key_height, grid.height - y))
        for dx in range(min(key_width, grid.width - x))
    }
    step = _step(signs)
    # Only the border of the query tile, so that the key tiles in it can be seen.
    last = [
        (min(size, room) - 1) // step * step
        for size, room in zip(plan.tile, (grid.height - top, grid.width - left), strict=True)
    ]
    signs |= {
        (y, x): "Q" for y in range(last[0] + 1) for x in range(last[1] + 1) if y in (0, last[0]) or x in (0, last[1])
    }
    partial = len(view.keys) - view.full
    return [
        "ONE QUERY TILE and the key tiles that a fused kernel visits for it",
        f"Q: around {height} x {width} queries   #: full key tile   +: partial, under a mask{_scale(step)}",
        "",
        *_draw(signs)[1],
        "",
        f"{len(view.keys)} tiles of {key_height} x {key_width} keys: {view.full} full, {partial} partial. "
        f"{plan.tiles:,} query tiles in all; they compute",
        f"{report.tile_overhead:.2f} times the (query, key) pairs in the windows.",
    ]


def _draw(signs: Mapping[tuple[int, int], str]) -> tuple[int, list[str]]:
    """Every `step`-th row and column of tokens as text, (0, 0) among them; the first is the step."""
    step = _step(signs)
    rows, columns = ([i for i in range(min(axis), max(axis) + 1) if i % step == 0] for axis in zip(*signs, strict=True))
    lines = ("  " + " ".join(signs.get((y, x), ".") for x in columns) for y in rows)
    return step, list(lines)


def _step(signs: Mapping[tuple[int, int], str]) -> int:
    """How far apart the drawn tokens are, so that they fit."""
    return max(-(-(max(axis) - min(axis) + 1) // _COLUMNS) for axis in zip(*signs, strict=True))


def _scale(step: int) -> str:
    return f"   one character: {step} x {step} tokens" if step > 1 else ""


def _counts(report: Report) -> list[str]:
    options, pattern = report.options, report.pattern
    dense, clear = report.dense_pairs, pattern.pairs()
    parts = f"{report.window_tokens:,} in the window + {options.text:,} text"
    parts += f" + {pattern.pooled:,} down-sampled" if pattern.pooled else ""
    keys = report.window_tokens + pattern.shared_keys
    flop = 4 * report.model.channels / 1e12  # TFLOP a pair: two multiply-adds a channel
    return [
        "ONE LAYER                            dense           CLEAR",
        f"  keys of the query Q         {pattern.layout.tokens:>14,}  {keys:>14,}   {parts}",
        f"  (query, key) pairs          {dense:>14,}  {clear:>14,}   {percent(clear / dense)}",
        f"  TFLOP                       {shown(dense * flop):>14}  {shown(clear * flop):>14}   "
        f"{shown(dense / clear)} times less",
        f"The window holds {percent(report.window_tokens / report.grid.tokens)} of the image tokens.",
    ]


def _costs(report: Report) -> list[str]:
    model = report.model
    dtype = str(model.dtype).removeprefix("torch.")
    lines = [
        f"ONE STEP of FLUX.1: {model.layers} layers, {dtype}",
        "                attention, TFLOP               memory without weights, GiB",
        "  size             dense      CLEAR   ratio        stock    in bands",
    ]
    for size in report.sizes:
        name = f"{size.width}x{size.height}"
        mark = "*" if (size.width, size.height) == (report.width, report.height) else " "
        row = f"{mark} {name:<12}{shown(size.dense / 1e12):>9}{shown(size.clear / 1e12):>11}"
        row += f"{percent(size.clear / size.dense):>8}{shown(size.stock / 2**30):>13}"
        if size.banded is not None:
            row += f"{shown(size.banded / 2**30):>12}  ({size.bands} bands)"
        lines.append(row)
    return lines


def _backends(report: Report) -> list[str]:
    table, device = report.backends, report.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    chosen = f"auto chooses {table.chosen}: {table.reason}" if table.chosen else table.reason
    lines = [f"BACKENDS on this machine ({name}): {chosen}"]
    for one in table.backends:
        mark = "*" if one.name == table.chosen else " "
        lines.append(f"{mark} {one.name:<10}{percent(one.share):>6} of the dense pairs; {one.note}")
    return lines


def _bands(report: Report, plan: BandPlan) -> list[str]:
    window, grid, model = report.options.window, report.grid, report.model
    lines = [
        f"{len(plan.bands)} BANDS of rows, one after another or on several devices",
        f"=: rows of the band   -: halo, {window.halo} rows whose keys and values come from its neighbours",
    ]
    for number, band in enumerate(plan.bands[:_MOST_BANDS]):
        drawing = "".join(_band_sign(row, band, plan.rows_seen(number)) for row in _sampled(grid.height))
        lines.append(f"  {number:>3}  rows {band.start:>4}..{band.stop:<4} {drawing}")
    if len(plan.bands) > _MOST_BANDS:
        lines.append(f"  ... and {len(plan.bands) - _MOST_BANDS} more")
    if len(plan.bands) > 1:
        sent = halo_bytes(grid, window, model.channels, model.dtype.itemsize, 1)
        lines.append(f"Halo exchange between two devices: {sent / 2**20:,.1f} MiB per layer and direction.")
    return lines


def _sampled(rows: int) -> range:
    """Rows that are drawn, 64 at most."""
    return range(0, rows, -(-rows // 64))


def _band_sign(row: int, band: Band, seen: Band) -> str:
    return "=" if band.start <= row < band.stop else "-" if seen.start <= row < seen.stop else "."
