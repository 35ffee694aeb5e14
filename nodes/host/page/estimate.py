"""The answer to /clear_attention/estimate: seconds, memory with weights, RAM and disk of a run before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....clear_core.bands.plan import BandPlan
from ....clear_core.flux import token_grid
from ....clear_core.layout import Grid
from ....clear_core.show.estimate import Subject, Timings, backend_refusal
from ....clear_core.show.fits import Need, least_count, worst_need
from ...insight.cost import options_of
from ...insight.step_time import StepClock
from ...options.bands import BandSettings
from ...options.clear import ClearSettings
from ...options.lanes import resolve_lanes
from ..bands.memory import fitting_count, plans
from ..flux_model import PROMPT_TOKENS
from .payloads import Payload


@dataclass(frozen=True, slots=True)
class Asked:
    """A run. bands: None without CLEAR Multi-GPU. width, height: pixels. steps: 0 for unknown.

    download: bytes of CLEAR weights that are still to be downloaded. patches: bytes of the CLEAR weights.
    """

    clear: ClearSettings
    bands: BandSettings | None
    width: int
    height: int
    steps: int
    subject: Subject
    download: int = 0
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Here:
    """This machine. devices: names, ComfyUI's own first. room: bytes of each that a run can have, other models of
    ComfyUI unloaded. free, total: bytes of each now. disk: free bytes where weights are downloaded to.
    """

    devices: Sequence[str]
    room: Mapping[str, int]
    free: Mapping[str, int]
    total: Mapping[str, int]
    disk: int


def estimate_payload(asked: Asked, here: Here, own: Timings | None) -> Payload:
    """What a run takes. own: this device's measurement, None where there is none."""
    run = _Run(asked, here)
    need = run.need(run.plan)
    fix = None if need.missing == 0 else _fix(run, need)
    clock = StepClock.of(asked.subject, run.options, own)
    cpu = here.devices[0] == "cpu"
    weights = asked.subject.size + asked.patches
    refusal = (
        backend_refusal(asked.subject.model, run.options, run.grid, run.plan) if asked.clear.window.radius else None
    )
    return {
        "backend": None if refusal is None else {"name": asked.clear.backend, "refusal": refusal},
        "seconds": None if clock is None else _seconds(run, need, clock),
        "bands": len(run.plan.bands) if run.plan is not None else 0,
        "memory": {
            "device": need.device,
            "weights": need.weights,
            "step": need.step,
            "need": need.total,
            "free": here.free[need.device],
            "total": here.total[need.device],
            "missing": need.missing,
            # What does not fit stays in RAM and is transferred in each step; of a step's own memory nothing can.
            "offloaded": bool(need.missing) and need.device != "cpu" and need.step < need.room,
        },
        "ram": None if cpu else {"need": weights, "free": here.free["cpu"], "missing": weights > here.room["cpu"]},
        "disk": {"need": asked.download, "free": here.disk} if asked.download else None,
        "fix": fix,
    }


class _Run:
    """The bands and the memory of what was asked."""

    def __init__(self, asked: Asked, here: Here) -> None:
        self.asked, self.here = asked, here
        subject = asked.subject
        self.options = options_of(asked.clear, subject.double, subject.single, PROMPT_TOKENS)
        self.grid: Grid = token_grid(asked.width, asked.height)
        bands = asked.bands
        lanes = resolve_lanes(bands.devices if bands else (), list(here.devices)).lanes if bands else ()
        self.devices = [lane.name for lane in lanes] or [here.devices[0]]
        self.plan_of = plans(self.grid, asked.clear, [lane.share or 1.0 for lane in lanes] or [1.0])
        self.plan = self.plan_of(self._count(bands)) if bands else None

    def need(self, plan: BandPlan | None, weights: int | None = None) -> Need:
        subject = self.asked.subject
        kept = subject.size if weights is None else weights
        return worst_need(plan, self.grid, PROMPT_TOKENS, subject.model.shape, kept, self.devices, dict(self.here.room))

    def least(self, weights: int | None = None) -> int | None:
        """The least number of bands that fits beside the weights; None where the model cannot be cut."""
        if not self.asked.subject.model.can_be_cut:
            return None
        return least_count(self.plan_of, len(self.devices), lambda plan: self.need(plan, weights))

    @property
    def on_cpu(self) -> bool:
        """Whether memory chooses no bands."""
        return all(device == "cpu" for device in self.devices)

    def _count(self, bands: BandSettings) -> int:
        """As a run would choose them, the weights being loaded where they fit."""
        asked = bands.count(self.grid)
        if asked or self.on_cpu:
            return asked or len(self.devices)
        subject = self.asked.subject
        room = min(
            (self.here.room[device] - subject.size) // self.devices.count(device)
            for device in self.devices
            if device != "cpu"
        )
        return fitting_count(self.plan_of, len(self.devices), room, PROMPT_TOKENS, subject.model.shape, 1)


def _fix(run: _Run, need: Need) -> Payload:
    """What makes it fit. bands: the number to set, 0 for auto; None where bands alone do not."""
    least = run.least()
    if least is not None:
        return {"kind": "bands", "bands": least if run.on_cpu else 0}
    fp8 = need.weights // run.asked.subject.weights.itemsize
    if run.asked.subject.weights.itemsize > 1:
        if run.need(run.plan, fp8).missing == 0:
            return {"kind": "fp8"}
        if run.least(fp8) is not None:
            return {"kind": "fp8 and bands"}
    return {"kind": "none"}


def _seconds(run: _Run, need: Need, clock: StepClock) -> Payload | None:
    """Of a step in which the window is on, and of all steps."""
    asked, clear = run.asked, run.asked.clear
    step = _step(clock, asked, run.plan, active=True)
    if step is None:
        return None
    seconds, beyond = step
    transfer = _transfer(need, clock)
    share = min(1.0, clear.end_percent) - max(0.0, clear.start_percent)
    dense = _step(clock, asked, run.plan, active=False) if share < 1 else (0.0, False)
    total = None
    if asked.steps and dense is not None:
        total = asked.steps * (share * seconds + (1 - share) * dense[0] + (transfer or 0.0))
    return {
        "step": seconds + (transfer or 0.0),
        "all": total,
        "steps": asked.steps,
        "source": clock.source,
        "beyond": beyond,
        "own": clock.own is not None,
        # Whether weights are transferred in each step that these seconds leave out.
        "untimed": transfer is None,
    }


def _transfer(need: Need, clock: StepClock) -> float | None:
    """Seconds in which the weights that do not fit cross to the device; None where that was not measured."""
    if need.missing == 0 or need.device == "cpu":
        return 0.0
    rate = clock.own.transfer if clock.own is not None else None
    return None if rate is None else min(need.missing, need.weights) / rate


def _step(clock: StepClock, asked: Asked, plan: BandPlan | None, *, active: bool) -> tuple[float, bool] | None:
    return clock.seconds(asked.width, asked.height, plan, active=active)
