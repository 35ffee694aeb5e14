"""The list of backends, and the choice of the fastest that can run a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Final

from ..call import AttentionCall
from .base import Backend
from .masked import MaskedBackend
from .reference import ReferenceBackend
from .sdpa.backend import SdpaBackend
from .triton.backend import TritonBackend

BACKENDS: Final[tuple[Backend, ...]] = (SdpaBackend(), ReferenceBackend(), TritonBackend(), MaskedBackend())
"""In the order they are listed. A new backend is a new file, an entry here and one in COSTS."""

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one executed (query, key) pair costs a backend.

    per_pair: its time relative to a pair in PyTorch's dense kernel. measured_on: the machine; "" for an estimate.
    """

    per_pair: float
    measured_on: str


COSTS: Final[Mapping[tuple[str, str], Cost]] = MappingProxyType(
    {
        ("masked", "cpu"): Cost(1.1, "AMD EPYC"),
        ("sdpa", "cpu"): Cost(1.5, "AMD EPYC"),
        ("masked", "gpu"): Cost(1.5, ""),
        ("sdpa", "gpu"): Cost(2.0, ""),
        ("triton", "gpu"): Cost(1.0, ""),
    }
)
"""By backend and kind of device; `auto` never chooses a backend that is not here.

The column "per pair" of `python dev.py bench`. Those of the GPU are estimates, not measurements: a kernel with a
mask tensor reads it, gathered tiles are copied first, the fused kernel does neither.
"""


class BackendError(RuntimeError):
    """No backend, or not the named one, can run this call. The message lists every reason."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that will run a call. reason: why this one, as a clause for the user."""

    backend: Backend
    reason: str


def backend_names() -> tuple[str, ...]:
    """The names that can be chosen: "auto", then every backend."""
    return (AUTO, *(backend.name for backend in BACKENDS))


def choose_backend(call: AttentionCall, name: str = AUTO, backends: Sequence[Backend] = BACKENDS) -> Choice:
    """The backend for this call.

    name: "auto" chooses the one with the least expected time among those that can run it. A named backend either
        runs or is refused; it is never replaced by another.
    Raises BackendError with every reason, ValueError for an unknown name.
    """
    known = {backend.name: backend for backend in backends}
    if name == AUTO:
        return _fastest(call, backends)
    if name not in known:
        raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join((AUTO, *known))}")
    reason = known[name].unavailable() or _refusal(known[name], call)
    if reason is not None:
        raise BackendError(f"The backend {name!r} cannot run this attention call. {name}: {reason}")
    return Choice(known[name], "; ".join(filter(None, ("as asked", known[name].remark(call)))))


def _fastest(call: AttentionCall, backends: Sequence[Backend]) -> Choice:
    kind = "cpu" if call.query.device.type == "cpu" else "gpu"
    candidates: list[tuple[float, Backend, Cost]] = []
    absent: list[tuple[float, str]] = []
    for backend in backends:
        cost = COSTS.get((backend.name, kind))
        if cost is None:
            continue
        missing = backend.unavailable()
        if missing is None:
            candidates.append((backend.executed_pairs(call) * cost.per_pair, backend, cost))
        else:  # it plans nothing: a plan that is never run would be made for every new size
            absent.append((cost.per_pair, f"{backend.name}: {missing}"))
    candidates.sort(key=itemgetter(0))
    refused: list[str] = []
    for expected, backend, cost in candidates:
        refusal = _refusal(backend, call)
        if refusal is not None:
            refused.append(f"{backend.name}: {refusal}")
            continue
        dense = call.pattern.query_tokens * call.pattern.key_tokens
        grounds = f"measured on {cost.measured_on}" if cost.measured_on else "not timed on this kind of card"
        reason = f"about {expected / dense:.2g} of dense attention's time, {grounds}"
        # Only backends that would have been faster are worth mentioning; of one that is absent, by the time per pair.
        missed = [text for per_pair, text in absent if per_pair < cost.per_pair]
        return Choice(backend, "; ".join(filter(None, (reason, *missed, *refused, backend.remark(call)))))
    reasons = "; ".join((*(text for _, text in absent), *refused))
    raise BackendError(f"No backend can run this attention call. {reasons}")


def _refusal(backend: Backend, call: AttentionCall) -> str | None:
    """Its own; and without a backward, its result would have no gradients, which training would not notice."""
    if call.records_gradients and not backend.differentiable:
        return "it computes no gradients"
    return backend.refusal(call)
