"""What a backend is: a name, what it can do, and one function that does it."""

from __future__ import annotations

from typing import Protocol

from ..call import AttentionCall, AttentionResult


class Backend(Protocol):
    """One way to compute local attention. Adding one means adding a file that has this."""

    @property
    def name(self) -> str:
        """What a person types or picks."""
        ...

    @property
    def summary(self) -> str:
        """One sentence: what it is for."""
        ...

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine at all, as a clause; None where it can. Must be cheap."""
        ...

    def refusal(self, call: AttentionCall) -> str | None:
        """Why it cannot run this call, as a clause with the actual value in it; None where it can."""
        ...

    def executed_pairs(self, call: AttentionCall) -> int:
        """(query, key) pairs it computes, or would if it could: the needed ones and what its shape adds."""
        ...

    def run(self, call: AttentionCall) -> AttentionResult:
        """Compute it. Only called when neither `unavailable` nor `refusal` objects."""
        ...


def pooled_mask_refusal(call: AttentionCall) -> str | None:
    """A mask over text and image says nothing about cells that mix many image tokens."""
    if call.mask is not None and call.pooled is not None:
        return "an attention mask has no exact meaning for down-sampled tokens (set down_factor to 1)"
    return None
