"""FakeTensorMode for forwards that run in several threads or greenlets.

PyTorch's own mode keeps two flags on the object (whether a kernel is running, and what to undo on exit) and a cache
that is shared without a lock, so two threads under one mode disturb each other. Here the flags belong to a thread, and
operations take turns. A tensor has its size, dtype and device, and no content.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_iter

aten: Any = torch.ops.aten


class Observer(Protocol):
    """Told of operations while a mode is on, one at a time."""

    def began(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Before an operation that a card would run; the parts of a composite one come one by one."""
        ...

    def ended(self, op: Any, out: Any) -> None:
        """After it, with its output."""
        ...


class ThreadedFakeMode(FakeTensorMode):
    """Enter it in every thread. Entering it again where it is on, in another greenlet of the thread, does nothing."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._turn = threading.RLock()
        self.observers: list[Observer] = []
        super().__init__(allow_non_fake_inputs=True)

    @property
    def in_kernel_invocation(self) -> bool:
        return getattr(self._of_thread, "in_kernel", False)

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._of_thread.in_kernel = value

    @property
    def enter_stack(self) -> list[Any]:
        return self._of_thread.__dict__.setdefault("entered", [])

    @enter_stack.setter
    def enter_stack(self, value: list[Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._of_thread.entered = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self._turn:
            inside = getattr(self._of_thread, "inside", False)
            if inside or _is_composite(func):
                return self._answered(func, types, args, kwargs)
            self._of_thread.inside = True
            try:
                for observer in self.observers:
                    observer.began(func, args, kwargs)
                out = self._answered(func, types, args, kwargs)
                for observer in self.observers:
                    observer.ended(func, out)
                return out
            finally:
                self._of_thread.inside = False

    def _answered(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        own = _OWN.get(func)
        if getattr(kwargs.get("device"), "type", "cpu") != "cpu":
            # PyTorch's mode would compute on what it knows of a constant, and there is no card to do it on.
            for tensor in tree_iter(args):
                if isinstance(tensor, FakeTensor):
                    tensor.constant = None
        return self.dispatch(func, types, args, kwargs) if own is None else own(*args, **kwargs)


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor lies in page-locked memory."""
    return tensor.device.type == "cpu" and getattr(tensor.untyped_storage(), _PINNED, False)


def _is_pinned(tensor: Tensor, device: object = None) -> bool:
    return is_pinned(tensor)


def _pinned(tensor: Tensor, device: object = None) -> Tensor:
    copy = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    setattr(copy.untyped_storage(), _PINNED, True)
    return copy


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One fused kernel, as on a card; PyTorch's mode would write the softmax out. The heads' axis is inside."""
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)


def _value(tensor: Tensor) -> bool | int | float:
    """What `item()` gives for a tensor without content: its constant where PyTorch has kept it, or a number as good.

    A half is a noise level in the middle of every schedule.
    """
    constant = getattr(tensor, "constant", None)
    if constant is not None:
        return constant.item()
    if tensor.dtype == torch.bool:
        return False
    return 0.5 if tensor.is_floating_point() else 1


def _nonzero(tensor: Tensor) -> Tensor:
    """As many as there can be."""
    return torch.empty(tensor.numel(), tensor.ndim, dtype=torch.int64, device=tensor.device)


_PINNED = "_cards_pinned"
_OWN: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _value,
    aten.nonzero.default: _nonzero,
    aten._pin_memory.default: _pinned,
    aten.is_pinned.default: _is_pinned,
    aten.scaled_dot_product_attention.default: _attention,
}
"""Operations that PyTorch's mode cannot do without content or without a card."""


@cache
def _is_composite(func: Any) -> bool:
    """Whether PyTorch makes an operation of others, on every device. Questions about a tensor count as such."""
    if func in _OWN:
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.namespace == "prim" or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
