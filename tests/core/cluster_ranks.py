"""Ranks as processes, each with commands going in and answers coming out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward
from clear_core.cluster.c10d import new_store
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import forwards

TESTS = Path(__file__).parents[1]


class Rank:
    """One process. before: a command that starts it, such as one that gives it a network of its own."""

    def __init__(self, before: Sequence[str] = (), module: str = "core.cluster_rank") -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return json.loads(line)

    def answer_with(self, name: str) -> dict[str, Any]:
        """The next answer that says so."""
        return self.answer_with_any(name)

    def answer_with_any(self, *names: str) -> dict[str, Any]:
        """The next answer that says one of these."""
        while not {*names} & {*(found := self.answer())}:
            pass
        return found

    def files(self) -> int:
        """How many it has open."""
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])

    def end(self) -> int:
        """Its exit code."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write("\n")
            self.process.stdin.close()
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.closed()

    def closed(self) -> None:
        """Close the pipes of a process that has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


class Ranks:
    """Processes that share a store, and the groups that they join. interfaces: the address of each, and the store's."""

    def __init__(self, ranks: Sequence[Rank], interfaces: Sequence[str], store: str) -> None:
        self._host, self._store = store, new_store(store)
        self.all = ranks
        self._groups = 0
        self.welcome(ranks, interfaces)

    def welcome(self, ranks: Sequence[Rank], interfaces: Sequence[str]) -> None:
        """Give new processes the store."""
        for rank, interface in zip(ranks, interfaces, strict=True):
            rank.ask(store=[self._host, self._store.port], interface=interface)
        for rank in ranks:
            assert rank.answer() == {"ready": True}

    def join(self, members: Sequence[Rank]) -> list[int]:
        """A new group; how many files each has open then."""
        self._groups += 1
        for number, rank in enumerate(members):
            rank.ask(group=f"group {self._groups}", rank=number, size=len(members))
        for rank in members:
            rank.answer_with("joined")
        return [rank.files() for rank in members]


def asked(forward: int, ranks: int, out: Path, **more: Any) -> dict[str, Any]:
    """A forward of few rows; `more` changes it."""
    small = {"image": [24, 4], "bands": 6, "radius": 3}
    return {"forward": forward, "ranks": [*range(ranks)], "out": str(out), **small, **more}


def run(members: Sequence[Rank], forward: int, folder: Path, **more: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """The output of all ranks joined, and what each tells."""
    for number, rank in enumerate(members):
        rank.ask(**asked(forward, len(members), folder / f"{number}.pt", **more))
    told = [rank.answer_with("done") for rank in members]
    return output(members, folder), told


def output(members: Sequence[Rank], folder: Path) -> Tensor:
    """What all ranks have written, joined."""
    return torch.cat([torch.load(folder / f"{number}.pt") for number in range(len(members))], dim=2)


def right(found: Tensor, **more: Any) -> bool:
    """Whether it is the output of one process, to 1e-6."""
    return equal(found, wanted(**more))


def equal(found: Tensor, wanted: Tensor) -> bool:
    """To 1e-6 of the largest."""
    return bool((found - wanted).abs().max() <= 1e-6 * wanted.abs().max())


def wanted(**more: Any) -> Tensor:
    """The output of one process."""
    given = asked(0, 1, Path(), **more)
    window = None if given["radius"] is None else Window(given["radius"])
    factor = given.get("down_factor", 1)
    plan = BandPlan.cut(Grid(*given["image"]), given["bands"], window, down_factor=factor)
    out = BandedForward(plan, [torch.device("cpu")]).run(forwards(plan, given.get("layers", 3), down_factor=factor))
    return torch.cat(out, dim=2)
