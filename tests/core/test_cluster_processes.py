"""Ranks in processes of their own, over gloo: the same output, bytes that equal the formula, and what faults do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import forwards
from core.cluster_rank import PATIENCE

TESTS = Path(__file__).parents[1]


class Rank:
    """A process; commands go in and answers come out, one by one."""

    def __init__(self, port: int) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core.cluster_rank", str(port)],
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
        while name not in (found := self.answer()):
            pass
        return found

    def end(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write("\n")
            self.process.stdin.close()
        return self.process.wait(timeout=60)


class Ranks:
    """Processes that share a store; the groups that they join."""

    def __init__(self, count: int) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
        self.all = [Rank(self.store.port) for _ in range(count)]
        for rank in self.all:
            assert rank.answer() == {"ready": True}
        self._groups = 0

    def join(self, members: list[Rank]) -> list[int]:
        """A new group; how many files each has open then."""
        self._groups += 1
        for number, rank in enumerate(members):
            rank.ask(group=f"group {self._groups}", rank=number, size=len(members))
        return [rank.answer_with("joined")["files"] for rank in members]


@pytest.fixture
def two() -> Iterator[Ranks]:
    yield from _started(2)


@pytest.fixture
def three() -> Iterator[Ranks]:
    yield from _started(3)


def _started(count: int) -> Iterator[Ranks]:
    ranks = Ranks(count)
    yield ranks
    for rank in ranks.all:
        with suppress(ProcessLookupError):
            rank.process.send_signal(signal.SIGCONT)
        rank.process.kill()
        rank.process.wait()


def asked(forward: int, ranks: int, out: Path, **more: Any) -> dict[str, Any]:
    return {"forward": forward, "ranks": [*range(ranks)], "image": [24, 4], "bands": 6, "radius": 3, **more} | {
        "out": str(out)
    }


def run(members: list[Rank], forward: int, folder: Path, **more: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """The output of all ranks joined, and what each tells."""
    for number, rank in enumerate(members):
        rank.ask(**asked(forward, len(members), folder / f"{number}.pt", **more))
    told = [rank.answer_with("done") for rank in members]
    return torch.cat([torch.load(folder / f"{number}.pt") for number in range(len(members))], dim=2), told


def expected(**more: Any) -> Tensor:
    """Of one process."""
    given = asked(0, 1, Path(), **more)
    window = None if given["radius"] is None else Window(given["radius"])
    factor = given.get("down_factor", 1)
    plan = BandPlan.cut(Grid(*given["image"]), given["bands"], window, down_factor=factor)
    out = BandedForward(plan, [torch.device("cpu")]).run(forwards(plan, given.get("layers", 3), down_factor=factor))
    return torch.cat(out, dim=2)


def test_every_variant_gives_what_one_process_does_and_bytes_equal_the_formula(three: Ranks, tmp_path: Path) -> None:
    three.join(three.all)
    for number, variant in enumerate(({}, {"radius": None}, {"down_factor": 2}, {"image": [40, 6], "bands": 12})):
        found, told = run(three.all, number, tmp_path, **variant)
        wanted = expected(**variant)
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        for each in told:
            assert each["sent"] == each["traffic"] > 0
    assert [rank.end() for rank in three.all] == [0, 0, 0]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["kill -9", "SIGSTOP"])
def test_the_others_go_on_without_a_rank_that_is_gone(three: Ranks, tmp_path: Path, fault: signal.Signals) -> None:
    """It is named, the survivors form a new group, and the forward is repeated with another plan."""
    three.join(three.all)
    long = {"tell": 0.02, "layers": 40}
    for number, rank in enumerate(three.all):
        rank.ask(**asked(0, 3, tmp_path / "none.pt", **long))
        assert number == 1 or rank.answer_with("layer")["layer"] == 0
    three.all[1].process.send_signal(fault)
    survivors = [three.all[0], three.all[2]]
    reasons = [rank.answer_with("failed") for rank in survivors]
    assert any(1 in each["lost"] for each in reasons)
    stopped = f"rank 1 is lost: nothing came from it for {PATIENCE:g} s"
    if fault == signal.SIGSTOP:
        assert any(stopped in each["failed"] for each in reasons), reasons
    three.join(survivors)
    found, _ = run(survivors, 1, tmp_path)
    wanted = expected()
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    if fault == signal.SIGSTOP:  # awake again, it finds itself alone, and joins the next group
        three.all[1].process.send_signal(signal.SIGCONT)
        assert "failed" in three.all[1].answer_with("failed")
        three.join(three.all)
        found, _ = run(three.all, 2, tmp_path)
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_groups_leave_nothing_behind(two: Ranks, tmp_path: Path) -> None:
    counts = []
    for number in range(12):
        counts.append(max(two.join(two.all)))
        run(two.all, number, tmp_path)
    of_a_group = 5  # files; the one before may still be closing
    assert max(counts) <= counts[0] + of_a_group, counts
