"""Many faults in a row, by a seed: three ranks on machines of their own, and in each forward something happens to one.

    unshare --user --map-root-user --net python -m core.cluster_soak --faults 50 --seed 0

The rank holds at a random place of the forward, where the fault strikes. If the others lose it they form a group of
their own and repeat the forward; it comes back, and all three run once more. Prints what was found as JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from core.cluster_faults import FAULTS, Fault
from core.cluster_left import Held, children, held, settled
from core.cluster_net import BRIDGE, Net, machine
from core.cluster_ranks import Rank, Ranks, asked, equal, output, run, wanted

MACHINES, LAYERS, BANDS = 3, 12, 6
SHAPE: dict[str, Any] = {"image": [36, 256], "bands": BANDS, "radius": 8, "layers": LAYERS}
"""A halo has 229 kB, 37 ms at 50 Mbit/s."""
_HANGS = 240.0  # seconds after which a fault that is not over never will be


def kinds(chance: random.Random, faults: int) -> Iterator[str]:
    """All kinds in a random order, and again in another one."""
    for start in range(0, faults, len(FAULTS)):
        yield from chance.sample([*FAULTS], len(FAULTS))[: faults - start]


class Soak:
    """Three machines, one group after another, one forward after another."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.net = Net()
        self.machines = [machine() for _ in range(MACHINES)]
        self._folder, self._forwards = folder, count()
        self._wanted = wanted(**SHAPE)
        self._first: dict[Rank, Held] = {}
        try:
            self._ranks = Ranks(self.machines, [self.net.plug(rank) for rank in self.machines], BRIDGE)
            self._together(self.machines)
        except BaseException:
            self.kill()
            raise

    def strike(self, kind: str) -> dict[str, Any]:
        """One fault; where and when it was, and the seconds from it until others said so, and until the output."""
        fault, struck = FAULTS[kind], self.chance.randrange(MACHINES)
        hold = self.chance.randrange(LAYERS * BANDS // MACHINES)
        forward = next(self._forwards)
        for number, rank in enumerate(self.machines):
            given = {"hold": hold} if number == struck else {}
            rank.ask(**asked(forward, MACHINES, self._folder / f"{number}.pt", **SHAPE, **given))
        victim = self.machines[struck]
        found: dict[str, Any] = {"kind": kind, "rank": struck, "layer": victim.answer_with("holds")["holds"]}
        began = time.monotonic()
        fault.strike(self.net, victim)
        if fault.said is None:
            for rank in self.machines:
                told = rank.answer_with_any("done", "failed")
                assert "done" in told, (found, told)
            assert equal(output(self.machines, self._folder), self._wanted), found
        else:
            survivors = [rank for rank in self.machines if rank is not victim]
            _check(fault, struck, [rank.answer_with_any("done", "failed") for rank in survivors])
            found["noticed"] = round(time.monotonic() - began, 2)
            self._together(survivors)
        found["output"] = round(time.monotonic() - began, 2)
        back = self.machines[struck] = fault.back(self.net, victim)
        if back is not victim:
            self._first.pop(victim)
            self._ranks.welcome([back], [self.net.plug(back)])
        self._together(self.machines)
        return found

    def left(self) -> list[dict[str, Any]]:
        """What each process held after its first forward, and holds now that it has time to close things."""
        now = [settled(rank.process.pid, self._first[rank]) for rank in self.machines]
        return [
            {"first": self._first[rank].as_dict(), "now": each.as_dict()}
            for rank, each in zip(self.machines, now, strict=True)
        ]

    def kill(self) -> None:
        for rank in self.machines:
            rank.kill()

    def _together(self, members: Sequence[Rank]) -> None:
        """A new group of some ranks gives the right output."""
        self._ranks.join(members)
        found, _ = run(members, next(self._forwards), self._folder, **SHAPE)
        assert equal(found, self._wanted)
        for rank in members:
            self._first.setdefault(rank, held(rank.process.pid))


def _check(fault: Fault, struck: int, told: Sequence[dict[str, Any]]) -> None:
    """All others failed, for this reason, and accuse nobody else."""
    assert all("failed" in each for each in told), (fault, told)
    assert fault.said is not None
    assert any(f"rank {struck}" in each["failed"] and fault.said in each["failed"] for each in told), (fault, told)
    assert all(set(each["lost"]) <= {struck} for each in told), (fault, told)
    assert not fault.lost or any(each["lost"] for each in told), (fault, told)


def summary(faults: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind, how many there were; median and longest seconds."""
    found: dict[str, Any] = {}
    for kind in FAULTS:
        each = [fault for fault in faults if fault["kind"] == kind]
        found[kind] = {"count": len(each)}
        for name in ("noticed", "output"):
            seconds = [fault[name] for fault in each if name in fault]
            if seconds:
                found[kind][name] = [round(median(seconds), 2), max(seconds)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Many faults in a row.")
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="no further fault after this time")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        soak = Soak(Path(name), options.seed)
        faults: list[dict[str, Any]] = []
        try:
            for kind in kinds(soak.chance, options.faults):
                faulthandler.dump_traceback_later(_HANGS, exit=True)
                if time.monotonic() - began > 60 * options.minutes:
                    break
                faults.append(soak.strike(kind))
                print(len(faults), json.dumps(faults[-1]), file=sys.stderr, flush=True)
            found = {"seed": options.seed, "kinds": summary(faults), "left": soak.left(), "processes": children()}
            found["exit codes"] = [rank.end() for rank in soak.machines]
        finally:
            soak.kill()
    found["seconds"] = round(time.monotonic() - began)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
