"""What a step takes on this machine's card, as text: predicted from the steps of a card that was measured."""

from __future__ import annotations

import torch

from ...clear_core.flux import CHANNELS, HEADS, LAYERS
from ...clear_core.show.cost import Report, SizeCost
from ...clear_core.show.measured import FOLDER, Identity, MeasuredCard, measured_cards, nearest
from ...clear_core.show.numbers import shown
from ...clear_core.show.step_time import StepTimes, Work
from .cost import ModelInfo

_ABSENT = "Time per step on this card: not measured (python dev.py card measures it)"
_WEIGHTS = {
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",  # products of both take the same time
}
"""What `python dev.py card` measures, by the dtype that a model's weights are kept in."""


def step_times(info: ModelInfo, report: Report) -> list[str]:
    """Lines for a report; none for a device or a model that `python dev.py card` does not measure."""
    weights = _WEIGHTS.get(info.weights)
    size = (info.size.layers, info.size.channels, info.size.heads)
    if weights is None or size != (LAYERS, CHANNELS, HEADS) or info.size.device.type != "cuda":
        return []
    here = Identity.of(info.size.device)
    card = nearest(here, measured_cards(FOLDER))
    lines = [] if card is None else _lines(card, here, weights, report)
    return lines or [_ABSENT]


def _lines(card: MeasuredCard, here: Identity, weights: str, report: Report) -> list[str]:
    there = card.identity
    scale, source = 1.0, f"from steps measured on {there.device} ({card.versions})"
    if there.device != here.device:
        scale = there.multiprocessors / here.multiprocessors
        source = f"scaled from {there.device} ({card.versions}), of the same chip, by multiprocessors, "
        source += f"{there.multiprocessors} there and {here.multiprocessors} here"
    times = StepTimes(card.steps, weights)
    rows = [row for size in report.sizes if (row := _row(size, report.options.text, times, scale)) is not None]
    return [f"Time per step, {source}; one image at CFG 1, {weights} weights on the card:", *rows] if rows else []


def _row(size: SizeCost, text: int, times: StepTimes, scale: float) -> str | None:
    plain = times.predict(Work.of(size.width, size.height, size.clear, text=text))
    if plain is None:
        return None
    row = f"  {size.width} x {size.height}: {shown(scale * plain.seconds)} s"
    banded = None
    if size.banded is not None:
        banded = times.predict(Work.of(size.width, size.height, size.clear, bands=size.bands, text=text))
    if banded is not None:
        row += f"; {shown(scale * banded.seconds)} in {size.bands} bands (CLEAR Multi-GPU)"
    return f"{row}; larger than what was measured" if plain.beyond else row
