"""What each layer of a forward on simulated cards takes: kernels, copies, casts, waiting hosts, threads, workspaces."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .cards import Cards
from .cards_mode import aten, is_pinned, leaves, storage_of

LOADING, AROUND = "loading", "around the blocks"
"""Layers' names of what happens before the model's forward begins, and in it outside of its blocks."""

_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
_ANSWERS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
"""Operations for whose answer the host waits."""
_NO_KERNEL = {aten._unsafe_view.default, aten.lift_fresh.default, aten.is_pinned.default, *_COPIES, *_ANSWERS}


@dataclass(slots=True)
class Counts:
    """Of one layer, over all cards.

    copies, copied_bytes: by (from, to), such as ("cpu", "cuda:0"). casts: changes of dtype, of weights or of anything
    else. weight_copies: of those between devices, of weights. waits: of the host for a card.
    """

    kernels: int = 0
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    copied_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    casts: int = 0
    weight_casts: int = 0
    weight_copies: int = 0
    waits: int = 0


class Ledger:
    """An observer that counts by layer. Also says which operation met tensors of two devices, and where.

    threads: the most that ran at once beside the one that called the forward. workspaces: pairs of a thread and a
    stream that multiplied matrices; cuBLAS keeps a workspace for each.
    """

    def __init__(self, cards: Cards) -> None:
        self.layers: dict[str, Counts] = defaultdict(Counts)
        self.threads = 0
        self.workspaces: set[tuple[int, int, int]] = set()
        self._cards = cards
        self._before = 0
        self._block: ContextVar[str | None] = ContextVar("block", default=None)  # greenlets have their own, as threads
        self._forwards = 0
        self._weights: set[int] = set()

    @property
    def layer(self) -> str:
        """Where the thread or greenlet is that asks."""
        return self._block.get() or (AROUND if self._forwards else LOADING)

    def in_forward(self) -> Counts:
        """Everything since the model's forward began."""
        total = Counts()
        for name, found in self.layers.items():
            if name != LOADING:
                for each in Counts.__slots__:
                    setattr(total, each, getattr(total, each) + getattr(found, each))
        return total

    def began(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises RuntimeError for tensors of two devices."""
        if self._forwards:
            self.threads = max(self.threads, threading.active_count() - self._before)
        tensors = [value for value in leaves((*args, *kwargs.values())) if isinstance(value, Tensor)]
        counts = self.layers[self.layer]
        if op in _COPIES:
            self._copy(counts, op, args, kwargs)
            return
        device = self._device(op, counts, args, tensors, kwargs)
        if device is None or device.type != "cuda":
            return
        counts.waits += op in _ANSWERS
        if op in _PRODUCTS:
            stream = self._cards.cuda.current_stream(device)
            self.workspaces.add((threading.get_ident(), device.index, stream.stream_id))
        counts.kernels += not (op in _NO_KERNEL or op.is_view or op.name().startswith("aten::empty"))

    def ended(self, op: Any, out: Any) -> None: ...

    def _device(
        self, op: Any, counts: Counts, args: Sequence[Any], tensors: list[Tensor], kwargs: dict[str, Any]
    ) -> torch.device | None:
        """Where an operation runs."""
        if not tensors:
            return kwargs.get("device")
        # A number on the CPU goes to the card as an argument of the kernel.
        own = {tensor.device for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"}
        if op in _INDEXED and args[0].device.type == "cuda":
            indices = [index for index in args[1] if index is not None]
            for index in indices:
                if index.device.type == "cpu":
                    self._count_copy(counts, index, args[0].device, pinned=is_pinned(index))
            counts.waits += sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
            own.discard(torch.device("cpu"))
        if len(own) > 1:
            raise RuntimeError(f"{op.name()} in {self.layer} met tensors of {', '.join(sorted(map(str, own)))}")
        return next(iter(own), torch.device("cpu"))

    def _copy(self, counts: Counts, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Between devices, to another dtype, or within a card."""
        if op is aten.copy_.default:
            target, source = args[0], args[1]
            device, dtype = target.device, target.dtype
            pinned = is_pinned(source if source.device.type == "cpu" else target)
            pinned = pinned and bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            (source,) = args
            device, dtype = torch.device(kwargs.get("device") or source.device), kwargs.get("dtype") or source.dtype
            # PyTorch makes the copy in the CPU's memory pageable.
            pinned = source.device.type == "cpu" and is_pinned(source) and bool(kwargs.get("non_blocking"))
        weight = storage_of(source) in self._weights
        if dtype != source.dtype:
            counts.casts += 1
            counts.weight_casts += weight
        if device != source.device:
            counts.weight_copies += weight
            self._count_copy(counts, source, device, pinned=pinned)
        elif device.type == "cuda":
            counts.kernels += 1

    @staticmethod
    def _count_copy(counts: Counts, source: Tensor, device: torch.device, *, pinned: bool) -> None:
        pair = (str(source.device), str(device))
        counts.copies[pair] += 1
        counts.copied_bytes[pair] += source.numel() * source.element_size()
        # A copy between cards, or from pinned memory, is queued; any other one has the host wait.
        counts.waits += "cpu" in pair and not pinned

    def waited(self, device: str) -> None:
        """The host waited for a card by itself."""
        self.layers[self.layer].waits += 1

    def run_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The method of a transformer that the host calls once for each forward, so that work in it is known."""

        @wraps(forward)
        def counted(transformer: Any, *args: Any, **kwargs: Any) -> Any:
            import comfy.model_management as host

            for loaded in host.current_loaded_models:
                module = loaded.model.model
                self._weights |= {storage_of(weight) for weight in module.parameters()}
            self._before = threading.active_count()
            self._forwards += 1
            try:
                return forward(transformer, *args, **kwargs)
            finally:
                self._forwards -= 1

        return counted

    def run_block(self, forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """The method of a block, so that work in it is known."""

        @wraps(forward)
        def counted(block: Any, *args: Any, **kwargs: Any) -> Any:
            index = kwargs.get("transformer_options", {}).get("block_index")
            if index is None:  # a ControlNet has the same blocks
                return forward(block, *args, **kwargs)
            before = self._block.set(f"{kind} {index}")
            try:
                return forward(block, *args, **kwargs)
            finally:
                self._block.reset(before)

        return counted


@contextmanager
def counted(cards: Cards) -> Iterator[Ledger]:
    """Count what runs on the cards from here on."""
    from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
    from comfy.ldm.flux.model import Flux

    ledger = Ledger(cards)
    with ExitStack() as stack:
        stack.enter_context(patch.object(Flux, "forward", ledger.run_forward(Flux.forward)))
        for block, kind in ((DoubleStreamBlock, "double"), (SingleStreamBlock, "single")):
            stack.enter_context(patch.object(block, "forward", ledger.run_block(block.forward, kind)))
        stack.enter_context(patch.object(cards.cuda, "on_synchronize", ledger.waited))
        cards.mode.observers.insert(0, ledger)
        try:
            yield ledger
        finally:
            cards.mode.observers.remove(ledger)
