"""What CLEAR did in a sampling run: a text on the node, a headline first, and warnings in the log.

The layers of a patched model tell its run log from the sampling thread; the run log updates the node and writes each
reason to the log once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from threading import Lock

_log = logging.getLogger("clear-attention")
_MAX_REASONS = 16  # distinct reasons kept per run: a reason may carry sizes, and sizes may change


class RunLog:
    """Counts the attention layers of one sampling run, by backend and by the reason for dense attention."""

    def __init__(self, headline: str, show: Callable[[str], None]) -> None:
        self.headline = headline
        self._show = show
        self._lock = Lock()
        self._forwards = 0
        self._local: Counter[str] = Counter()
        self._dense: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()
        self._uncertain: dict[str, int] = {}
        self._notes: dict[str, None] = {}  # in order
        self._logged: set[str] = set()
        self._in_charge = ""
        self._called = False
        self._finished = False

    def announce(self) -> None:
        """Show the headline: the node has run, nothing is sampled yet."""
        self._show(self.headline)

    def begin(self) -> None:
        """A sampling run starts: forget the last one."""
        with self._lock:
            self._forwards = 0
            self._local.clear()
            self._dense.clear()
            self._missed.clear()
            self._uncertain.clear()
            self._notes.clear()
            self._in_charge = ""
            self._called = self._finished = False
        self._show(self.text())

    def forward(self, in_charge: str) -> None:
        """The model is about to run once. in_charge: another node's attention that the host will call, "" for CLEAR."""
        with self._lock:
            self._forwards += 1
            self._in_charge = in_charge

    def called(self) -> None:
        """The host called CLEAR's override for a layer, with whatever outcome."""
        self._called = True

    @property
    def used(self) -> bool:
        """Whether a layer has called CLEAR's override in this run."""
        return self._called

    def local(self, how: str) -> None:
        """A layer used the window, computed by `how`."""
        self._count(self._local, how)

    def dense(self, reason: str, *, asked: bool = False) -> None:
        """A layer ran dense. asked: the settings say so; it is shown but not logged as a warning."""
        new = self._count(self._dense, reason)
        if new and not asked and self._first(reason):
            _log.warning("CLEAR runs dense here: %s", reason)

    def missed(self, reason: str, layers: int, *, certain: bool = True) -> None:
        """Layers of a forward that never came to CLEAR.

        certain: False where another's attention may turn out to have all layers of the run, which `end` reports.
        """
        new = self._count(self._missed, reason, layers)
        if new and certain:
            self._warn_missed(reason, layers)
        elif new:
            self._uncertain[reason] = layers

    def _warn_missed(self, reason: str, layers: int) -> None:
        if self._first(reason):
            _log.warning("CLEAR is not used in %d layers: %s", layers, reason)

    def _first(self, reason: str) -> bool:
        """Whether a reason is new to the log, in all runs."""
        with self._lock:
            first = reason not in self._logged and len(self._logged) < _MAX_REASONS
            self._logged.add(reason) if first else None
        return first

    def note(self, text: str, *, warn: bool = True) -> None:
        """Something else that you should know about this run; shown and logged once. warn: False for what is fine."""
        with self._lock:
            new = text not in self._notes and len(self._notes) < _MAX_REASONS
            self._notes |= {text: None} if new else {}
        if new:
            _log.log(logging.WARNING if warn else logging.INFO, "CLEAR: %s", text)
            self._show(self.text())

    def end(self, *, finished: bool) -> None:
        """The sampling run is over; `finished` unless it was cancelled or failed."""
        self._finished = finished
        if self._overruled():
            _log.warning("CLEAR was not used: %s took over its attention hook", self._in_charge)
        elif finished:
            for reason, layers in self._uncertain.items():
                self._warn_missed(reason, layers)
        self._show(self.text())

    def counts(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Layer calls of this run: through the window by how, by reason with full attention, by reason not CLEAR's."""
        with self._lock:
            return dict(self._local), dict(self._dense), dict(self._missed)

    def text(self) -> str:
        """The headline and what the run did so far, a line each."""
        with self._lock:
            lines = [self.headline]
            lines += [f"CLEAR ran: {count} layer calls by {how}" for how, count in self._local.items()]
            lines += [f"full attention: {count} layer calls, {reason}" for reason, count in self._dense.items()]
            if self._overruled():
                lines.append(
                    f"not used: another node's attention ({self._in_charge}) took over. "
                    "Put Apply CLEAR Attention after that node."
                )
            else:
                lines += [f"not used: {count} layer calls, {reason}" for reason, count in self._missed.items()]
            lines += self._notes
        return "\n".join(lines)

    def _overruled(self) -> bool:
        """The model ran to the end, and another's override had all of its layers."""
        return self._finished and self._forwards > 0 and not self._called and bool(self._in_charge)

    def _count(self, counter: Counter[str], key: str, by: int = 1) -> bool:
        with self._lock:
            new = key not in counter
            if new and len(counter) >= _MAX_REASONS:
                key = "other reasons"
                new = key not in counter
            counter[key] += by
        if new:
            self._show(self.text())
        return new


class StandingRunLog(RunLog):
    """For a model whose runs have no visible beginning and end: how layers were computed so far, not how many."""

    def text(self) -> str:
        with self._lock:
            ran = [f"CLEAR ran: {how}" for how in self._local] + [f"full attention: {reason}" for reason in self._dense]
            ran += self._notes
        return "\n".join([self.headline, *ran])
