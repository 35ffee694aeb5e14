"""The backends, which of them can run, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..call import AttentionCall
from .base import Backend
from .reference import ReferenceBackend
from .sdpa import SdpaBackend
from .triton import TritonBackend

BACKENDS: Final[tuple[Backend, ...]] = (SdpaBackend(), ReferenceBackend(), TritonBackend())
"""In the order `auto` tries them. A new backend is a new file and a line here.

`triton` stands behind one that runs everything, so only its name chooses it: its speed is not measured yet.
"""

AUTO: Final = "auto"


class BackendError(RuntimeError):
    """No backend, or not the one that was asked for, can run this call. The text lists why."""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One line of the listing. reason: why it is not available on this machine; None where it is."""

    name: str
    summary: str
    reason: str | None

    @property
    def available(self) -> bool:
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that will run a call, and why the ones before it cannot."""

    backend: Backend
    refusals: tuple[str, ...]


def backend_names() -> tuple[str, ...]:
    """What can be asked for: "auto", then every backend."""
    return (AUTO, *(backend.name for backend in BACKENDS))


def list_backends() -> tuple[BackendStatus, ...]:
    """Every backend with its availability on this machine and the reason where it has none."""
    return tuple(BackendStatus(backend.name, backend.summary, backend.unavailable()) for backend in BACKENDS)


def choose_backend(call: AttentionCall, name: str = AUTO, backends: Sequence[Backend] = BACKENDS) -> Choice:
    """The backend for this call.

    name: "auto" takes the first that can run it; any other name is taken or refused, never replaced.
    Raises BackendError with every reason, ValueError for a name that does not exist.
    """
    known = {backend.name: backend for backend in backends}
    if name != AUTO and name not in known:
        raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join((AUTO, *known))}")
    candidates = backends if name == AUTO else (known[name],)
    refusals: list[str] = []
    for backend in candidates:
        reason = backend.unavailable() or backend.refusal(call)
        if reason is None:
            return Choice(backend, tuple(refusals))
        refusals.append(f"{backend.name}: {reason}")
    asked = "No backend can" if name == AUTO else f"The backend {name!r} cannot"
    raise BackendError(f"{asked} run this attention call. " + "; ".join(refusals))
