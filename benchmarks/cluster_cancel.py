"""Cancel with another machine: how long until the prompt has ended, and until neither ComfyUI computes any more.

Two ComfyUIs on this machine share an image of the demo checkpoint at FLUX.1-dev's width, a step of which takes seconds
on a CPU. Each prompt is cancelled at a random moment of its second step; the next one follows on the same pair.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from devtools import workflow
from devtools.checkpoints import make_demo_files
from devtools.client import ClientError, Run
from devtools.machines import Machines, said, with_machines
from devtools.own_base import own_base
from devtools.server import ComfyServer, only_this_pack

_SIDE, _RADIUS, _BANDS = 512, 8, 6
_SAMPLE = 0.05  # seconds between two readings of a process's CPU time
_BUSY = 0.3  # CPU seconds a second from which a process counts as busy
_IDLE = 1.0  # seconds below that after which it counts as idle


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds from the request. after: of the second step, when it came. ended: the prompt. driver, worker: until the
    process computed nothing more."""

    after: float
    ended: float
    driver: float
    worker: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def rows(count: int, seed: int = 0) -> Iterator[Row]:
    """Raises RuntimeError where a prompt ends otherwise, or the other machine takes no part."""
    chance = random.Random(seed)
    with _pair() as machines:
        step = _step_seconds(machines)
        for number in range(count):
            yield _cancelled(machines, number, chance.uniform(0, step))


def table(found: Sequence[Row]) -> str:
    lines = ["| until | median | longest |", "| --- | ---: | ---: |"]
    told = {"ended": "the prompt has ended", "driver": "this ComfyUI is idle", "worker": "the other one is idle"}
    for name, what in told.items():
        seconds = [getattr(row, name) for row in found]
        lines.append(f"| {what} | {median(seconds):.2f} s | {max(seconds):.2f} s |")
    return "\n".join(lines)


@contextmanager
def _pair() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory() as folder, own_base("bench") as base:
        base.add(make_demo_files)

        def new_server() -> ComfyServer:
            place = Path(tempfile.mkdtemp(dir=folder))
            options = [*only_this_pack(place), *base.options, "--use-pytorch-cross-attention"]
            return ComfyServer(place / "server.log", options=options, base=base.path, cpu=True)

        with new_server() as driver, Machines(driver, new_server) as machines:
            machines.client.run(_prompt(machines, seed=1, steps=1, side=64))
            machines.join()
            yield machines


def _prompt(machines: Machines, *, seed: int, steps: int, side: int = _SIDE) -> workflow.Prompt:
    asked = workflow.sampling(width=side, height=side, steps=steps, seed=seed)
    changes: workflow.Changes = {"CLEARApply": {"radius": _RADIUS}}
    prompt = workflow.changed(workflow.load(), workflow.DEMO.changes(), asked, changes)
    return with_machines(prompt, machines.address, bands=_BANDS)


def _step_seconds(machines: Machines) -> float:
    run = machines.client.run(_prompt(machines, seed=2, steps=3))
    if "with 127.0.0.1" not in said(run):
        raise RuntimeError(f"the other ComfyUI takes no part: {said(run)}")
    first, *_, last = [step.when for step in run.steps if step.total == 3]
    return (last - first) / 2


def _cancelled(machines: Machines, number: int, after: float) -> Row:
    """One prompt, cancelled so many seconds into its second step."""
    watches = [_Watch(server.pid) for server in (machines.driver, machines.workers[0])]
    asked: list[float] = []

    def cancel() -> None:
        asked.append(time.monotonic())
        machines.client.interrupt()

    timers: list[threading.Timer] = []

    def follow(run: Run) -> None:
        if not timers and any(step.total == 3 for step in run.steps):
            timers.append(threading.Timer(after, cancel))
            timers[0].start()

    run = machines.client.run(_prompt(machines, seed=10 + number, steps=3), follow)
    ended = time.monotonic()
    if run.status != "interrupted" or not asked:
        raise RuntimeError(f"the prompt ended by {run.status}, not cancelled: {said(run)}")
    try:
        busy = [watch.last_busy() for watch in watches]
    except psutil.NoSuchProcess as error:
        raise ClientError(f"a ComfyUI has ended: {error}") from error
    return Row(after, ended - asked[0], *(max(0.0, when - asked[0]) for when in busy))


class _Watch:
    """When a process computed last."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._last = time.monotonic()
        self._problem: Exception | None = None
        self._idle = threading.Event()
        self._waited = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def last_busy(self) -> float:
        """Once it has been idle for a second. Raises psutil.NoSuchProcess."""
        self._waited.set()
        self._idle.wait()
        if self._problem is not None:
            raise self._problem
        return self._last

    def _look(self) -> None:
        try:
            before = self._used()
            while True:
                began = time.monotonic()
                time.sleep(_SAMPLE)
                now, used = time.monotonic(), self._used()
                if used - before > _BUSY * (now - began):
                    self._last = now
                elif self._waited.is_set() and now - self._last > _IDLE:
                    break
                before = used
        except psutil.Error as error:
            self._problem = error
        self._idle.set()

    def _used(self) -> float:
        times: Any = self._process.cpu_times()
        return times.user + times.system
