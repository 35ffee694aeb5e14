"""Whether partitions that meet at barriers are right under every schedule, by what must happen before what.

The traces of one run (`gluon_machine`) say what each partition does, in its own order; that order does not depend on
the schedule. Barriers order the rest: a phase is complete when all that it counts have arrived and all bytes that it
expects are there, and a wait is over when its phase is complete. If what must happen before what has no cycle, no
schedule hangs. Beyond that, every schedule is right if

    no arrival can be counted in an earlier phase than its own
    no wait can find its barrier a phase ahead, where its parity would read as "not yet"
    of two accesses to a buffer, one of which writes, one is over before the other begins
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

Node = Hashable


def problems(traces: Sequence[Sequence[tuple[Any, ...]]]) -> list[str]:
    """What can go wrong, in words; empty if nothing can."""
    return _Order(traces).problems()


class _Order:
    def __init__(self, traces: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        self._before: dict[Node, set[Node]] = defaultdict(set)
        self._arrivals: dict[tuple[Any, int], list[Node]] = defaultdict(list)
        self._bytes: dict[tuple[Any, int], int] = defaultdict(int)
        self._waits: list[tuple[Any, int, Node]] = []
        self._accesses: dict[Any, list[tuple[str, Node, Node]]] = defaultdict(list)
        self._wrong: list[str] = []
        for partition, trace in enumerate(traces):
            self._read(partition, trace)
        for (barrier, phase), arrivals in self._arrivals.items():
            if len(arrivals) != barrier.count:
                self._wrong.append(f"{barrier.name}: {len(arrivals)} arrivals in phase {phase}, {barrier.count} count")
            self._before[barrier, phase].update(arrivals)
        self._wrong += [
            f"{barrier.name}: bytes expected and copied differ by {left} in phase {phase}"
            for (barrier, phase), left in self._bytes.items()
            if left
        ]

    def _read(self, partition: int, trace: Sequence[tuple[Any, ...]]) -> None:
        """Events of one partition, in the order of its program."""
        waits: dict[Any, int] = {}
        arrivals: dict[Any, int] = defaultdict(int)
        reading: dict[Any, list[Node]] = defaultdict(list)
        for index, (what, *about) in enumerate(trace):
            node = (partition, index)
            if index:
                self._before[node].add((partition, index - 1))
            if what == "wait":
                barrier, parity = about
                needed = waits.get(barrier, 1 - parity)
                if (needed + 1) % 2 != parity:
                    self._wrong.append(f"{barrier.name}: a wait for parity {parity} where {needed} phases are over")
                waits[barrier] = needed + 1
                self._waits.append((barrier, needed, node))
                if needed:
                    self._before[node].add((barrier, needed - 1))
            elif what in ("arrive", "expect"):
                barrier, phase = about[0], arrivals[about[0]]
                arrivals[barrier] += 1
                self._arrivals[barrier, phase].append(node)
                if what == "expect":
                    self._bytes[barrier, phase] += about[1]
            elif what == "copy":
                barrier, buffer, size = about
                phase = arrivals[barrier] - 1  # its own partition expects it
                self._bytes[barrier, phase] -= size
                self._before[barrier, phase].add(node)
                self._accesses[buffer].append(("write", node, (barrier, phase)))
            elif what == "store":
                self._accesses[about[0]].append(("write", node, node))
            elif what == "read":
                for buffer in about:
                    reading[buffer].append(node)
            elif what == "done":
                for buffer in about:
                    self._accesses[buffer].append(("read", reading[buffer].pop(0), node))

    def problems(self) -> list[str]:
        earlier = self._closure()
        if earlier is None:
            return [*self._wrong, "a cycle: some schedule, or every one, hangs"]
        wrong = list(self._wrong)
        for (barrier, phase), arrivals in self._arrivals.items():
            if phase and any((barrier, phase - 1) not in earlier[node] for node in arrivals):
                wrong.append(f"{barrier.name}: an arrival for phase {phase} may come before phase {phase - 1} is over")
        for barrier, needed, node in self._waits:
            after = (barrier, needed)
            if after in earlier and node not in earlier[after]:
                wrong.append(f"{barrier.name}: phase {needed} may be over before a wait for the one before it looks")
        for buffer, accesses in self._accesses.items():
            for (kind, start, end), (other, other_start, other_end) in combinations(accesses, 2):
                ordered = end == other_start or end in earlier[other_start] or other_end in earlier[start]
                if "write" in (kind, other) and not ordered:
                    wrong.append(f"{buffer.name}: a {kind} and a {other} at the same time")
        return list(dict.fromkeys(wrong))

    def _closure(self) -> dict[Node, set[Node]] | None:
        """For every node all that must happen before it; None for a cycle."""
        after: dict[Node, list[Node]] = defaultdict(list)
        nodes = set(self._before)
        for node, befores in self._before.items():
            nodes |= befores
            for before in befores:
                after[before].append(node)
        missing = {node: len(self._before.get(node, ())) for node in nodes}
        ready = [node for node in nodes if not missing[node]]
        earlier: dict[Node, set[Node]] = {}
        while ready:
            node = ready.pop()
            befores = self._before.get(node, set())
            earlier[node] = befores.union(*(earlier[before] for before in befores))
            for following in after[node]:
                missing[following] -= 1
                if not missing[following]:
                    ready.append(following)
        return earlier if len(earlier) == len(nodes) else None
