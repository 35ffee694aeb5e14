"""The report: a table, what is recovered, a figure and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .measure import Measure, Row
from .variants import UNTRAINED, Variant

_FIGURES = ("loss", "psnr", "coherence", "right")


def recovered(dense: Row, untrained: Row, student: Row, figure: str) -> float:
    """The share of what the untrained window loses that a student has back. The dense model's loss is 0."""
    whole = 0.0 if figure == "loss" else dense[figure]
    lost = untrained[figure] - whole
    return 1 - (student[figure] - whole) / lost if lost else float("nan")


def table(dense: Row, rows: Mapping[Variant, Row]) -> list[str]:
    """Markdown: one line for each kind of student, the mean over its seeds and half their range."""
    lines = [
        "| radius | down | student | loss | PSNR, dB | coherence | right | loss recovered | coherence recovered |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| | | dense | 0 | | {dense['coherence']:.3f} | {dense['right']:.2f} | | |",
    ]
    for (radius, down, what), found in _by_kind(rows).items():
        cells = [
            _mean([row[name] for row in found], digits) for name, digits in zip(_FIGURES, (4, 1, 3, 2), strict=True)
        ]
        untrained = _untrained(rows, radius, down)
        back = ["", ""]
        if what != UNTRAINED and untrained is not None:
            back = [
                _mean([100 * recovered(dense, untrained, row, name) for row in found], 0) + " %"
                for name in ("loss", "coherence")
            ]
        lines.append(f"| {radius} | {down if down > 1 else ''} | {what} | {' | '.join([*cells, *back])} |")
    return lines


def write(
    path: Path, dense: Row, rows: Mapping[Variant, Row], measure: Measure, machine: str, said: Sequence[str]
) -> None:
    """docs/proof.md; `said` are the paragraphs before the table."""
    seeds = len({variant.seed for variant in rows})
    lines = [
        "# What the window costs, and what distillation gives back",
        "",
        *said,
        "",
        f"{measure.pictures} held-out prompts, {measure.steps} steps of {measure.batch} samples for each student, "
        f"{seeds} seeds (mean and half the range), on {machine}.",
        "",
        *table(dense, rows),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def figure(path: Path, dense: Row, rows: Mapping[Variant, Row]) -> None:
    """Loss and coherence of each kind of student, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = _by_kind(rows)
    names = [f"r={radius}{f', down {down}' if down > 1 else ''}, {what}" for radius, down, what in kinds]
    drawing, axes = pyplot.subplots(1, 2, figsize=(11, 0.35 * len(names) + 1.5), sharey=True)
    for axis, name in zip(axes, ("loss", "coherence"), strict=True):
        means = [float(np.mean([row[name] for row in found])) for found in kinds.values()]
        ranges = [float(np.ptp([row[name] for row in found])) / 2 for found in kinds.values()]
        colours = ["#b0b0b0" if what == UNTRAINED else "#3b7dd8" for _, _, what in kinds]
        axis.barh(names, means, xerr=ranges, color=colours)
        axis.set_title({"loss": "loss against the dense model", "coherence": "coherence"}[name])
    axes[1].axvline(dense["coherence"], color="black", linewidth=1)
    axes[0].invert_yaxis()
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def _by_kind(rows: Mapping[Variant, Row]) -> dict[tuple[int, int, str], list[Row]]:
    """By radius, down factor and what was trained: the rows of all seeds."""
    kinds: dict[tuple[int, int, str], list[Row]] = {}
    for variant, row in rows.items():
        what = UNTRAINED if not variant.trained else f"{variant.method}, {_trained(variant)}"
        kinds.setdefault((variant.radius, variant.down_factor, what), []).append(row)
    return kinds


def _trained(variant: Variant) -> str:
    return f"LoRA {variant.rank}" if variant.rank else "weights"


def _untrained(rows: Mapping[Variant, Row], radius: int, down_factor: int) -> Row | None:
    found = [
        row for one, row in rows.items() if not one.trained and (one.radius, one.down_factor) == (radius, down_factor)
    ]
    return found[0] if found else None


def _mean(values: Sequence[float], digits: int) -> str:
    middle = f"{np.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ± {np.ptp(values) / 2:.{digits}f}"
