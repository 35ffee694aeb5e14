"""The attention in the middle of an autoencoder: every position with every other, one head, in blocks.

Where keys and values fit onto a device they stay there and PyTorch's own kernel attends to all of them; else they pass
in blocks that are merged by their log-sum-exp, which is exact.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn import functional as F

from ..call import AttentionResult
from ..softmax import RunningMerge, dense_attention

_BLOCK = 65_536  # positions that pass at a time
_SCORES = 256 * 2**20  # bytes of scores at a time, where they are written out


class Keys:
    """Keys and values of all positions, filled strip by strip; several threads may fill and read them."""

    def __init__(self, positions: int, home: torch.device, *, resident: bool) -> None:
        """home: the device where they are kept. resident: whether each device that attends keeps them all."""
        self._positions, self._home, self._resident = positions, home, resident
        self._kept: tuple[Tensor, Tensor] | None = None
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def put(self, start: int, key: Tensor, value: Tensor) -> None:
        """key, value: [positions, channels] from position `start` on."""
        with self._lock:
            if self._kept is None:
                key_all, value_all = (
                    torch.empty(self._positions, part.shape[1], dtype=part.dtype, device=self._home)
                    for part in (key, value)
                )
                self._kept = key_all, value_all
        for kept, part in zip(self._kept, (key, value), strict=True):
            kept[start : start + len(part)] = part

    def attend(self, query: Tensor) -> Tensor:
        """query: [positions, channels] of any device. The same shape. All keys must have been put."""
        scale = query.shape[1] ** -0.5
        q = query.contiguous()[None, None]  # PyTorch's fused kernels expect it, and some do not check
        assert self._kept is not None
        if self._resident:
            key, value = self._on(query.device, self._kept)
            return F.scaled_dot_product_attention(q, key[None, None], value[None, None], scale=scale)[0, 0]
        merged = RunningMerge()
        for start in range(0, self._positions, _BLOCK):
            key, value = (kept[start : start + _BLOCK].to(query.device)[None, None] for kept in self._kept)
            found = dense_attention(q, key, value, scale, None, return_lse=True, budget=_SCORES)
            merged.add(AttentionResult(found.out[:, 0], found.lse))
        return merged.result(query.dtype).out[0]

    def _on(self, device: torch.device, kept: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with self._lock:
            if device not in self._there:
                key, value = kept
                self._there[device] = key.to(device), value.to(device)
            return self._there[device]
