"""The interface of a backend, and what several of them share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

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

    @property
    def differentiable(self) -> bool:
        """Whether its result has gradients for queries, keys and values. The registry refuses others in training."""
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

    def remark(self, call: AttentionCall) -> str | None:
        """What does not run as it should within this backend, with its name and the reason; None if all does."""
        ...

    def run(self, call: AttentionCall) -> AttentionResult:
        """Compute the call. Only used when `unavailable` and `refusal` both return None."""
        ...


_ALIGN = 16  # CUDA's kernels need a mask whose rows start at multiples of this many elements


def window_bias(visible: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """An additive bias [1, 1, queries, keys] that hides what is not visible.

    visible: bool [queries, n] of the last n keys; every query sees those before.
    """
    bias = torch.zeros(len(visible), -(-keys // _ALIGN) * _ALIGN, device=visible.device, dtype=dtype)[:, :keys]
    bias[:, keys - visible.shape[1] :].masked_fill_(~visible, -torch.inf)
    return bias[None, None]


def pooled_mask_refusal(call: AttentionCall) -> str | None:
    """Why a mask cannot be combined with down-sampled tokens: a cell mixes many image tokens."""
    if call.mask is not None and call.pooled is not None:
        return "an attention mask has no exact meaning for down-sampled tokens (set down_factor to 1)"
    return None
