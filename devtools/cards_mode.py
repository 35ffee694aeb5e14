"""FakeTensorMode for forwards that run in several threads or greenlets.

PyTorch's own mode keeps two flags on the object (whether a kernel is running, and what to undo on exit) and a cache
that is shared without a lock, so two threads under one mode disturb each other. Here the flags belong to a thread, and
operations take turns. What is computed on the CPU from CPU tensors alone is real. All other tensors have their size,
dtype and device, and no content.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

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

    @property
    def avoid_device_init(self) -> bool:
        """Always: `torch.cuda` says that it is available, and there is no driver to start."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*leaves(args), *leaves(kwargs.values())]
        inside = getattr(self._of_thread, "inside", False)
        if not inside and func not in _OWN and not any(map(_is_of_a_card, given)):
            # No fake tensor goes in and none comes out. So plans and noise levels, which are computed on the CPU, are
            # what they are without cards.
            return func(*args, **kwargs)
        with self._turn:
            if func not in _OWN and any(isinstance(leaf, Tensor) and type(leaf) is not FakeTensor for leaf in given):
                # PyTorch's mode would compute some operations on real tensors, and there is no card to do it on.
                args, kwargs = tree_map(self._without_content, (args, kwargs))
            if inside or func.namespace == "prim":
                return self._answered(func, types, args, kwargs)
            if is_composite(func):
                with self:  # PyTorch's mode would take the outcome from its cache, and not show the parts
                    return func.decompose(*args, **kwargs)
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

    def launch(self, kernel: Any, *tensors: Tensor) -> None:
        """A kernel that PyTorch knows nothing of, such as one of Triton's: observers are told of it."""
        with self._turn:
            for observer in self.observers:
                observer.began(kernel, tensors, {})

    def _answered(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        own = _OWN.get(func)
        return self.dispatch(func, types, args, kwargs) if own is None else own(*args, **kwargs)

    def _without_content(self, value: object) -> object:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        fake = self.from_tensor(value)
        setattr(fake.untyped_storage(), _MADE_OF, storage_of(value))
        setattr(fake.untyped_storage(), _PINNED, is_pinned(value))
        return fake

    def may_turn_const(self, t: Tensor) -> bool:
        """Never: PyTorch's mode would compute on constants."""
        return False


def leaves(values: Iterable[Any]) -> Iterator[Any]:
    """An operation's arguments, those in lists too."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from leaves(value)
        else:
            yield value


def _is_of_a_card(value: object) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type != "cpu")


def storage_of(tensor: Tensor) -> int:
    """Which storage a tensor has; of a fake that stands for a real tensor, that of the real one."""
    storage = tensor.untyped_storage()
    return getattr(storage, _MADE_OF, storage._cdata)


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor lies in page-locked memory."""
    return tensor.device.type == "cpu" and getattr(tensor.untyped_storage(), _PINNED, False)


def _is_pinned(tensor: Tensor, device: object = None) -> bool:
    return is_pinned(tensor)


def _pinned(tensor: Tensor, device: object = None) -> Tensor:
    copy = tensor.clone(memory_format=torch.contiguous_format)
    setattr(copy.untyped_storage(), _PINNED, True)
    return copy


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One fused kernel, as on a card, heads innermost; PyTorch's mode would write the softmax out."""
    if not isinstance(query, FakeTensor):
        return aten.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    *batch, heads, queries, _ = query.shape
    return query.new_empty(*batch, queries, heads, value.shape[-1]).transpose(-3, -2)


def _value(tensor: Tensor) -> bool | int | float:
    """What `item()` gives: where there is no content, a number as good.

    A half is a noise level in the middle of every schedule.
    """
    if not isinstance(tensor, FakeTensor):
        return aten._local_scalar_dense(tensor)
    if tensor.dtype == torch.bool:
        return False
    return 0.5 if tensor.is_floating_point() else 1


def _nonzero(tensor: Tensor) -> Tensor:
    """As many as there can be, where there is no content."""
    if not isinstance(tensor, FakeTensor):
        return aten.nonzero(tensor)
    return torch.empty(tensor.numel(), tensor.ndim, dtype=torch.int64, device=tensor.device)


_MADE_OF = "_cards_made_of"
_PINNED = "_cards_pinned"
_OWN: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _value,
    aten.nonzero.default: _nonzero,
    aten.pin_memory.default: _pinned,
    aten._pin_memory.default: _pinned,
    aten.is_pinned.default: _is_pinned,
    aten.scaled_dot_product_attention.default: _attention,
}
"""Operations that PyTorch's mode cannot do without content or without a card."""


@cache
def is_composite(func: Any) -> bool:
    """Whether PyTorch makes an operation of others, on every device."""
    if func in _OWN:
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
