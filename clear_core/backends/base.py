"""The interface of a backend."""

from __future__ import annotations

from typing import Protocol

from ..call import AttentionCall, AttentionResult


class Backend(Protocol):
    """One implementation of local attention."""

    @property
    def name(self) -> str:
        """What the user chooses it by."""
        ...

    @property
    def summary(self) -> str:
        """One sentence: what it is for."""
        ...

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine at all, as a clause; None if it can. Must be cheap."""
        ...

    def refusal(self, call: AttentionCall) -> str | None:
        """Why it cannot run this call, as a clause with the actual value in it; None if it can."""
        ...

    def executed_pairs(self, call: AttentionCall) -> int:
        """(query, key) pairs it computes, or would compute: those in the window and the padding of its tiles."""
        ...

    def run(self, call: AttentionCall) -> AttentionResult:
        """Compute the call. Only used when `unavailable` and `refusal` both return None."""
        ...


def pooled_mask_refusal(call: AttentionCall) -> str | None:
    """Why a mask cannot be combined with down-sampled tokens: a cell mixes many image tokens."""
    if call.mask is not None and call.pooled is not None:
        return "an attention mask has no exact meaning for down-sampled tokens (set down_factor to 1)"
    return None
