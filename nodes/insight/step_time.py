"""What a step takes on this machine, from this device's own short measurement or from the files of measured cards."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...clear_core.bands.plan import BandPlan
from ...clear_core.flux import CHANNELS, HEADS, LAYERS
from ...clear_core.show.cost import Options, Report, SizeCost, band_plan, step_cost
from ...clear_core.show.estimate import Subject, Timings, step_seconds
from ...clear_core.show.measured import FOLDER, Identity, MeasuredCard, measured_cards, nearest
from ...clear_core.show.numbers import shown
from ...clear_core.show.step_time import StepTimes, Work

_ABSENT = "Time per step on this card: not measured (Measure now on Apply CLEAR Attention, or python dev.py card)"
_WEIGHTS = {
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",  # products of both take the same time
}
"""What `python dev.py card` measures, by the dtype that a model's weights are kept in."""


@dataclass(frozen=True, slots=True)
class StepClock:
    """Predicts the steps of one model with one set of options. source: where its seconds come from, as a clause.

    own: this device's own measurement. card, scale: the steps of a measured card, and the factor on their seconds.
    """

    subject: Subject
    options: Options
    source: str
    own: Timings | None = None
    card: StepTimes | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, subject: Subject, options: Options, own: Timings | None) -> StepClock | None:
        """From the own measurement where there is one, else from the nearest card; None where there is neither."""
        if own is not None:
            return cls(subject, options, "from this device's own measurement", own=own)
        return cls._of_card(subject, options)

    @classmethod
    def _of_card(cls, subject: Subject, options: Options) -> StepClock | None:
        weights = _card_weights(subject)
        if weights is None:
            return None
        here = Identity.of(subject.model.device)
        card = nearest(here, measured_cards(FOLDER))
        if card is None:
            return None
        scale, source = _scaled(card, here)
        return cls(subject, options, source, card=StepTimes(card.steps, weights), scale=scale)

    def seconds(
        self, width: int, height: int, plan: BandPlan | None = None, *, active: bool = True
    ) -> tuple[float, bool] | None:
        """Of one step for one image at CFG 1, and whether it is larger than what was measured; None for unknown.

        width, height: pixels. plan: the bands, None for none. active: whether the window is on in the step.
        """
        if self.own is not None:
            found = step_seconds(self.own, self.subject, self.options, width, height, plan, active=active)
            return None if found is None else (found, False)
        if self.card is None or not active or (plan is not None and plan.lane_count > 1):
            return None
        cost = step_cost(width, height, self.options, self.subject.model)
        bands = 0 if plan is None or len(plan.bands) == 1 else len(plan.bands)
        found = self.card.predict(Work.of(width, height, cost.clear, bands=bands, text=self.options.text))
        return None if found is None else (self.scale * found.seconds, found.beyond)


def step_times(clock: StepClock | None, subject: Subject, report: Report) -> list[str]:
    """Lines for a report; none where nothing can be said of the device or of the model."""
    rows = [] if clock is None else [row for size in report.sizes if (row := _row(clock, size)) is not None]
    if clock is None or not rows:
        return [_ABSENT] if _card_weights(subject) is not None else []
    weights = _WEIGHTS.get(subject.weights, str(subject.weights).removeprefix("torch."))
    return [f"Time per step, {clock.source}; one image at CFG 1, {weights} weights on the device:", *rows]


def _card_weights(subject: Subject) -> str | None:
    """What the files of cards call the weights; None for a device or a model that they do not have."""
    model = subject.model
    flux = (model.layers, model.channels, model.heads) == (LAYERS, CHANNELS, HEADS)
    return _WEIGHTS.get(subject.weights) if flux and model.device.type == "cuda" else None


def _scaled(card: MeasuredCard, here: Identity) -> tuple[float, str]:
    """The factor on a card's seconds, and where they come from."""
    there = card.identity
    if there.device == here.device:
        return 1.0, f"from steps measured on {there.device} ({card.versions})"
    return there.multiprocessors / here.multiprocessors, (
        f"scaled from {there.device} ({card.versions}), of the same chip, by multiprocessors, "
        f"{there.multiprocessors} there and {here.multiprocessors} here"
    )


def _row(clock: StepClock, size: SizeCost) -> str | None:
    plain = clock.seconds(size.width, size.height)
    if plain is None:
        return None
    seconds, beyond = plain
    row = f"  {size.width} x {size.height}: {shown(seconds)} s"
    if size.banded is not None:
        plan = band_plan(size.grid, clock.options, size.bands)
        banded = clock.seconds(size.width, size.height, plan)
        if banded is not None:
            row += f"; {shown(banded[0])} in {size.bands} bands (CLEAR Multi-GPU)"
    return f"{row}; larger than what was measured" if beyond else row
