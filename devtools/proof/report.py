"""The report: a table, what is recovered, a figure and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clear_core.distill.settings import BLOCKS

from .measure import Measure, Row
from .variants import TIMES, UNTRAINED, VELOCITY, Variant

_FIGURES = {"loss": 4, "psnr": 1, "coherence": 3, "right": 2}  # and their digits
_INTRODUCTION = (
    "The small FLUX of the demo ([small_flux.md](small_flux.md)) generates scenes that a program can judge: `right` is "
    "the share of pictures that show everything the prompt says, `coherence` how well distant parts agree, `loss` the "
    "mean squared distance of a student's velocity from the dense model's, PSNR that of its pictures from the dense "
    "model's with the same noise. Made by `python dev.py prove`.",
    "",
    "![loss and coherence of each student](images/proof.png)",
)


@dataclass(frozen=True, slots=True)
class Further:
    """What goes beyond the training: rows of `beyond.Beyond`. sizes: by side, model and setting. transfer: by model."""

    sizes: Mapping[str, Row]
    bands: Row
    transfer: Mapping[str, Row]


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
        cells = [_mean([row.get(name) for row in found], digits) for name, digits in _FIGURES.items()]
        untrained = _untrained(rows, radius, down)
        back = ["", ""]
        if not (len(found) == 1 and found[0] is untrained) and untrained is not None:
            back = [
                _mean([100 * recovered(dense, untrained, row, name) if name in row else None for row in found], 0, " %")
                for name in ("loss", "coherence")
            ]
        lines.append(f"| {radius} | {down if down > 1 else ''} | {what} | {' | '.join([*cells, *back])} |")
    return lines


def write(
    path: Path, dense: Row, rows: Mapping[Variant, Row], further: Further, measure: Measure, machine: str
) -> None:
    """docs/proof.md."""
    seeds = len({variant.seed for variant in rows})
    lines = [
        "# What the window costs, and what distillation gives back",
        "",
        *_INTRODUCTION,
        "",
        f"{measure.pictures} held-out prompts, {measure.steps} steps of {measure.batch} samples for each student, "
        f"{'one seed' if seeds == 1 else f'{seeds} seeds (mean and half the range)'}, on {machine}. The students are "
        f"trained on {measure.samples} pictures of the dense model, of other prompts.",
        "",
        *table(dense, rows),
        "",
        "![four prompts, a row for each model](images/proof_pictures.jpg)",
        "",
        "velocity alone: without the loss's flow and attention terms (`flow_weight` and `attention_weight` 0). from "
        "10 % on: `start_percent` of Apply CLEAR Attention, full attention with the student's weights before. after "
        "30 % dense: the dense model samples the first steps, with SplitSigmas and two samplers. Neither has a loss of "
        "its own.",
        "",
        "The loss comes back sooner than the coherence. What distant parts of a picture share is a small part of a "
        "velocity's error, and a student has only the attention's projections to carry it over several windows. A "
        "larger radius or down-sampled tokens (`down`) leave less to carry. It is not decided in the first steps "
        "alone: after a dense start pictures are closer to the dense model's, and the window loses in the steps that "
        "remain. Full attention with the student's weights, which were trained for the window, does harm.",
        "",
        *_sizes(further.sizes),
        "",
        *_bands(further.bands),
        "",
        *_transfer(further.transfer),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _sizes(found: Mapping[str, Row]) -> list[str]:
    """A table of sides and settings."""
    lines = [
        "## Larger than it was trained for",
        "",
        "The model was trained at 256 pixels; the student is the one of radius 3, trained by both methods. ntk: "
        "`ntk_factor` of NTK-aware scaling, the ratio of the sides to the power 14/12. proportional: "
        "`proportional_attention` too. interpolated: the whole image lies within the positions of training (core's "
        "ScaleROPE). staged: generated at 256, then enlarged to twice the side and sampled again from 60 % noise, as "
        "CLEAR High-Res does, until it has the size.",
        "",
        "| side | setting | pictures | dense: right | coherence | distilled: right | coherence |",
        "|---|---|---|---|---|---|---|",
    ]
    settings = {tuple(name.split(", ", 2)[::2]): None for name in found}
    for side, setting in settings:
        pair = [found[f"{side}, {which}, {setting}"] for which in ("dense", "distilled")]
        cells = " | ".join(f"{row['right']:.2f} | {row['coherence']:.3f}" for row in pair)
        lines.append(f"| {side} | {setting} | {pair[0]['pictures']:.0f} | {cells} |")
    return lines


def _bands(found: Row) -> list[str]:
    return [
        "## In bands",
        "",
        "The student's picture in two bands of rows (CLEAR Multi-GPU on two lanes of the CPU) against the same picture "
        f"in one piece: the latents differ by {found['difference']:.1e} at most, and the PSNR of the pictures is "
        f"{found['psnr']:.0f} dB (100 is the most that is counted).",
    ]


def _transfer(found: Mapping[str, Row]) -> list[str]:
    """LoRAs on the distilled model."""
    lines = [
        "## A LoRA of the dense model",
        "",
        "Trained on the dense model alone: every scene with red and blue exchanged. The distilled weights have never "
        "seen it. Scores are of the pictures with the colours exchanged back; PSNR is to the dense model's pictures "
        "with the LoRA.",
        "",
        "| model with the LoRA | right | colour | sky | coherence | PSNR, dB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        cells = [f"{row[figure]:.2f}" for figure in ("right", "colour", "sky", "coherence")]
        cells.append(f"{row['psnr']:.1f}" if "psnr" in row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def sheet(path: Path, rows: Mapping[str, Path]) -> None:
    """Rows of pictures under each other, each with its label on its left. rows: label to the file of a row."""
    from PIL import Image, ImageDraw, ImageFont

    images = [Image.open(file).convert("RGB") for file in rows.values()]
    images = [image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS) for image in images]
    font = ImageFont.load_default(14)
    height, margin = images[0].height, 16 + round(max(font.getlength(label) for label in rows))
    whole = Image.new("RGB", (margin + images[0].width, height * len(images)), "white")
    draw = ImageDraw.Draw(whole)
    for number, (label, image) in enumerate(zip(rows, images, strict=True)):
        whole.paste(image, (margin, number * height))
        draw.text((8, number * height + height // 2 - 8), label, "black", font)
    whole.save(path, quality=88)


def figure(path: Path, dense: Row, rows: Mapping[Variant, Row]) -> None:
    """Loss and coherence of each kind of student that has both, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {kind: found for kind, found in _by_kind(rows).items() if all("loss" in row for row in found)}
    names = [f"r={radius}{f', down {down}' if down > 1 else ''}, {what}" for radius, down, what in kinds]
    drawing, axes = pyplot.subplots(1, 2, figsize=(11, 0.35 * len(names) + 1.5), sharey=True)
    for axis, name in zip(axes, ("loss", "coherence"), strict=True):
        values = [[row[name] for row in found] for found in kinds.values()]
        means, ranges = ([float(of(each)) for each in values] for of in (np.mean, lambda each: np.ptp(each) / 2))
        colours = ["#b0b0b0" if what == UNTRAINED else "#3b7dd8" for _, _, what in kinds]
        axis.barh(names, means, xerr=ranges, color=colours)
        axis.set_title({"loss": "loss against the dense model", "coherence": "coherence"}[name])
    axes[1].axvline(dense["coherence"], color="black", linewidth=1)
    axes[0].invert_yaxis()
    axes[0].margins(y=0.02)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def _by_kind(rows: Mapping[Variant, Row]) -> dict[tuple[int, int, str], list[Row]]:
    """By radius, down factor and what was trained: the rows of all seeds."""
    kinds: dict[tuple[int, int, str], list[Row]] = {}
    for variant, row in rows.items():
        what = UNTRAINED if not variant.trained else f"{variant.method}, {_trained(variant)}"
        if variant.start_percent:
            what += f", from {100 * variant.start_percent:.0f} % on"
        if variant.dense:
            what += f", after {100 * variant.dense:.0f} % dense"
        kinds.setdefault((variant.radius, variant.down_factor, what), []).append(row)
    return kinds


def _trained(variant: Variant) -> str:
    what = f"LoRA {variant.rank}" if variant.rank else "weights"
    if variant.layers == BLOCKS:
        what += " of all layers"
    if not variant.training:
        return what
    alone = ", velocity alone" if variant.training in VELOCITY else ""
    return f"{what}{alone}, {TIMES[variant.training]} times the samples"


def _untrained(rows: Mapping[Variant, Row], radius: int, down_factor: int) -> Row | None:
    found = [
        row
        for one, row in rows.items()
        if not (one.trained or one.start_percent) and (one.radius, one.down_factor) == (radius, down_factor)
    ]
    return found[0] if found else None


def _mean(values: Sequence[float | None], digits: int, unit: str = "") -> str:
    """ "" where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    middle = f"{np.mean(known):.{digits}f}"
    return (middle if len(known) == 1 else f"{middle} ± {np.ptp(known) / 2:.{digits}f}") + unit
