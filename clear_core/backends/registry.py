"""The backends, which of them can run, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ..call import AttentionCall
from .base import Backend
from .masked import MaskedBackend
from .reference import ReferenceBackend
from .sdpa.backend import SdpaBackend
from .triton.backend import TritonBackend

BACKENDS: Final[tuple[Backend, ...]] = (SdpaBackend(), ReferenceBackend(), TritonBackend(), MaskedBackend())
"""In the order they are listed. A new backend is a new file, a line here and one in the table below."""

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of one executed (query, key) pair, in units of PyTorch's dense kernel. measured: on what, or ""."""

    per_pair: float
    measured: str


COSTS: Final[Mapping[tuple[str, str], Cost]] = MappingProxyType(
    {
        ("masked", "cpu"): Cost(1.1, "AMD EPYC"),
        ("sdpa", "cpu"): Cost(1.5, "AMD EPYC"),
        ("masked", "gpu"): Cost(1.5, ""),
        ("sdpa", "gpu"): Cost(2.0, ""),
        ("triton", "gpu"): Cost(1.0, ""),
    }
)
"""By backend and kind of device; `auto` never takes a backend that is not here.

Column "per pair" of `python dev.py bench`. The GPU's are reasoned, not measured: a kernel with a mask tensor
reads it, gathered tiles are copied first, the fused kernel does neither.
"""


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
    """The backend that will run a call. reason: why it and no other, in a clause for the person."""

    backend: Backend
    reason: str


def backend_names() -> tuple[str, ...]:
    """What can be asked for: "auto", then every backend."""
    return (AUTO, *(backend.name for backend in BACKENDS))


def list_backends() -> tuple[BackendStatus, ...]:
    """Every backend with its availability on this machine and the reason where it has none."""
    return tuple(BackendStatus(backend.name, backend.summary, backend.unavailable()) for backend in BACKENDS)


def choose_backend(call: AttentionCall, name: str = AUTO, backends: Sequence[Backend] = BACKENDS) -> Choice:
    """The backend for this call.

    name: "auto" takes the one that should be fastest of those that can run it; any other name is taken or
        refused, never replaced.
    Raises BackendError with every reason, ValueError for a name that does not exist.
    """
    known = {backend.name: backend for backend in backends}
    if name == AUTO:
        return _fastest(call, backends)
    if name not in known:
        raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join((AUTO, *known))}")
    reason = known[name].unavailable() or known[name].refusal(call)
    if reason is not None:
        raise BackendError(f"The backend {name!r} cannot run this attention call. {name}: {reason}")
    return Choice(known[name], "as asked")


def _fastest(call: AttentionCall, backends: Sequence[Backend]) -> Choice:
    kind = "cpu" if call.query.device.type == "cpu" else "gpu"
    able: list[tuple[float, Backend, Cost]] = []
    unable: list[tuple[float, str]] = []
    for backend in backends:
        cost = COSTS.get((backend.name, kind))
        if cost is None:
            continue
        refusal = backend.unavailable() or backend.refusal(call)
        expected = backend.executed_pairs(call) * cost.per_pair
        if refusal is None:
            able.append((expected, backend, cost))
        else:
            unable.append((expected, f"{backend.name}: {refusal}"))
    if not able:
        raise BackendError(f"No backend can run this attention call. {'; '.join(text for _, text in unable)}")
    expected, backend, cost = min(able, key=lambda entry: entry[0])
    dense = call.pattern.query_tokens * call.pattern.key_tokens
    grounds = f"measured on {cost.measured}" if cost.measured else "not timed on this kind of card"
    reason = f"about {expected / dense:.2g} of dense attention's time, {grounds}"
    # Only what would have been faster is worth a person's attention.
    missed = [text for other, text in unable if other < expected]
    return Choice(backend, "; ".join((reason, *missed)))
