"""Copies from one lane's device to another's that overlap with the work of both.

A copy runs on streams of its own. It starts when what it copies has been computed, not when the source's stream has
drained, and only what uses it waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Arriving:
    """Tensors on their way to a device; `take` them there."""

    def __init__(self, tensors: tuple[Tensor, ...], arrived: Any = None) -> None:
        """arrived: the CUDA event of the copy's end, None where nothing has to be waited for."""
        self._tensors = tensors
        self._arrived = arrived

    def take(self) -> tuple[Tensor, ...]:
        """The tensors, usable in the current stream of their device."""
        if self._arrived is not None:
            current = torch.cuda.current_stream(self._tensors[0].device)
            current.wait_event(self._arrived)
            for tensor in self._tensors:
                # The allocator knows only the copy's stream: it must not reuse the memory before this one is done.
                tensor.record_stream(current)
            self._arrived = None
        return self._tensors


class Transfers:
    """The streams on which copies run, kept from forward to forward: the allocator keeps memory for each stream."""

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, torch.device], tuple[Any, Any]] = {}

    def start(self, tensors: tuple[Tensor, ...], target: torch.device) -> Arriving:
        """Copy tensors of one device, computed in its current stream, to another device. Does not wait."""
        source = tensors[0].device
        if source == target:
            return Arriving(tensors)
        if not (source.type == target.type == "cuda" and torch.cuda.is_available()):
            return Arriving(tuple(tensor.to(target) for tensor in tensors))
        leave, enter = self._between(source, target)
        leave.wait_stream(torch.cuda.current_stream(source))
        # PyTorch orders a copy in the current streams of both devices: make these the copy's own.
        with torch.cuda.stream(leave), torch.cuda.stream(enter):
            copied = tuple(tensor.to(target, non_blocking=True) for tensor in tensors)
            arrived = torch.cuda.Event()
            arrived.record(enter)
        for tensor in tensors:
            tensor.record_stream(leave)
        return Arriving(copied, arrived)

    def _between(self, source: torch.device, target: torch.device) -> tuple[Any, Any]:
        """The streams of copies from one device to another: on the source, on the target."""
        pair = source, target
        if pair not in self._streams:
            self._streams[pair] = torch.cuda.Stream(source), torch.cuda.Stream(target)
        return self._streams[pair]
