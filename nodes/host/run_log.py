"""What happened, for the person who looks at the node: headline, then what each sampling run did.

A patched model's layers speak to its report from the sampling thread; the report speaks to the node and,
once per reason, to the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from threading import Lock

_log = logging.getLogger("clear-attention")
_MAX_REASONS = 16  # distinct reasons kept per run: a reason may carry sizes, and sizes may change


class RunReport:
    """Counts the attention layers of one sampling run, by who computed them and why."""

    def __init__(self, headline: str, show: Callable[[str], None]) -> None:
        self.headline = headline
        self._show = show
        self._lock = Lock()
        self._forwards = 0
        self._local: Counter[str] = Counter()
        self._dense: Counter[str] = Counter()
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
            self._notes.clear()
            self._in_charge = ""
            self._called = self._finished = False
        self._show(self.text())

    def forward(self, in_charge: str) -> None:
        """The model is about to run once. in_charge: the attention override that the host will call."""
        with self._lock:
            self._forwards += 1
            self._in_charge = in_charge

    def called(self) -> None:
        """The host asked CLEAR for a layer, whatever becomes of it."""
        self._called = True

    def local(self, how: str) -> None:
        """A layer used the window, computed by `how`."""
        self._count(self._local, how)

    def dense(self, reason: str, *, asked: bool = False) -> None:
        """A layer ran dense. asked: it was meant to, so it is shown but not logged as a warning."""
        new = self._count(self._dense, reason)
        if new and not asked:
            with self._lock:
                warn = reason not in self._logged and len(self._logged) < _MAX_REASONS
                self._logged.add(reason) if warn else None
            if warn:
                _log.warning("CLEAR runs dense here: %s", reason)

    def note(self, text: str) -> None:
        """Something else that a person should know of this run; shown and logged once."""
        with self._lock:
            new = text not in self._notes and len(self._notes) < _MAX_REASONS
            self._notes |= {text: None} if new else {}
        if new:
            _log.warning("CLEAR: %s", text)
            self._show(self.text())

    def end(self, *, finished: bool) -> None:
        """The sampling run is over; `finished` unless it was cancelled or failed."""
        self._finished = finished
        if self._overruled():
            _log.warning("CLEAR was not used: %s took over its attention hook", self._in_charge)
        self._show(self.text())

    def text(self) -> str:
        """The headline and what the run did so far, a line each."""
        with self._lock:
            lines = [self.headline]
            lines += [f"window: {count} layer calls by {how}" for how, count in self._local.items()]
            lines += [f"dense: {count} layer calls, {reason}" for reason, count in self._dense.items()]
            lines += self._notes
            if self._overruled():
                lines.append(
                    f"not used: another node's attention ({self._in_charge}) took over. "
                    "Put Apply CLEAR Attention after that node."
                )
        return "\n".join(lines)

    def _overruled(self) -> bool:
        """The model ran to the end and CLEAR was never asked."""
        return self._finished and self._forwards > 0 and not self._called

    def _count(self, counter: Counter[str], key: str) -> bool:
        with self._lock:
            new = key not in counter
            if new and len(counter) >= _MAX_REASONS:
                key = "other reasons"
                new = key not in counter
            counter[key] += 1
        if new:
            self._show(self.text())
        return new


class StandingReport(RunReport):
    """Of what hears of no beginning and no end of a run: how layers were computed so far, not how many."""

    def text(self) -> str:
        with self._lock:
            ran = [f"window: {how}" for how in self._local] + [f"dense: {reason}" for reason in self._dense]
            ran += self._notes
        return "\n".join([self.headline, *ran])
