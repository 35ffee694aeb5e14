"""Launching the fused kernel: from the tensors of a call to the kernel's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call import AttentionCall, AttentionResult
from ...layout import GridTokens
from .config import KernelConfig, triton_version
from .tile_plan import TilePlan

LOG2_E = math.log2(math.e)
_ALIGNMENT = 16  # bytes: what the tensor memory accelerator requires, and what Triton compiles different kernels for


class _KeyValue(NamedTuple):
    """Keys and values, each [batch, heads, tokens, head_dim]."""

    key: Tensor
    value: Tensor

    def cut(self, tokens: slice) -> _KeyValue:
        return _KeyValue(self.key[:, :, tokens], self.value[:, :, tokens])


class WindowKernel:
    """The kernel on the tensors of one call, in one configuration."""

    def __init__(self, call: AttentionCall, config: KernelConfig) -> None:
        self._call, self._config = call, config
        keys = _KeyValue(_last_contiguous(call.key), _last_contiguous(call.value))
        self._extra = _extra_tokens(call, keys)
        self._tokens = (_last_contiguous(call.query), *keys, *self._extra)

    def launch(
        self, queries: GridTokens, keys: GridTokens, plan: TilePlan, target: AttentionResult, *, lists: bool
    ) -> None:
        """Attention of one query grid over one key grid and, with `lists`, over what every query sees.

        target: out and lse (or None) at the first of these queries.
        """
        call, (out, lse) = self._call, target
        tensors = (*self._tokens, plan.ranges, plan.boxes, plan.geometry, out, out if lse is None else lse)
        addresses = [tensor.data_ptr() for tensor in tensors]

        def prepare() -> Launch:
            return self._prepare(queries, keys, plan, target, lists=lists)

        if any(address % _ALIGNMENT for address in addresses):  # rare; what Triton compiles depends on which they are
            launch = prepare()
        else:
            launch = call.pattern.remembered(
                (
                    *(queries.start, keys.start, lists, self._config, call.scale),
                    *(call.query.device, call.query.dtype, call.query.shape, out.stride()),
                    *[tokens.stride() for tokens in self._tokens],
                    *[tokens.dtype for tokens in self._extra],
                    None if lse is None else lse.stride(),
                ),
                prepare,
            )
        with _current(call.query.device):
            launch(tensors, addresses)

    def _prepare(
        self, queries: GridTokens, keys: GridTokens, plan: TilePlan, target: AttentionResult, *, lists: bool
    ) -> Launch:
        call, config, (out, lse) = self._call, self._config, target
        sources = self._sources(queries, keys, config.tile)
        tma = config.descriptors and all(source.fits_descriptor() for source in sources)
        after = len(self._tokens)  # the plan and the result come behind them
        return Launch(
            _window_kernel,
            (plan.tiles, call.batch * call.heads, 1),
            [
                *(source.reader(self._tokens, source.descriptor() if tma else None) for source in sources),
                *(Reader(after + index) for index in (0, 1, 3, 4)),
            ],
            (
                *(stride for source in sources for stride in source.tokens.stride()[:3]),
                *out.stride()[:2],
                *((0, 0) if lse is None else lse.stride()[:2]),
                *self._list_lengths(lists),
                *queries.shape,
                *keys.shape,
                queries.rows.start,
                keys.rows.start,
                queries.grid.height,
                keys.grid.height,
                call.pattern.circle.radius,
                call.scale * LOG2_E,
                call.heads,
                call.head_dim,
                *config.tile,
                *config.box,
                config.block,
                tma,
                call.query.dtype == torch.float32,
                lse is not None,
            ),
            {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True},
        )

    def _sources(self, queries: GridTokens, keys: GridTokens, tile: tuple[int, int]) -> list[Source]:
        """Queries, keys and values; keys and values of the text, and of the extra tokens."""
        config, (text, extra) = self._config, self._list_lengths(True)
        # Of which tensor, which tokens. Text comes first among the keys. An empty list is not read, but its address and
        # its length must be valid.
        listed = [(1, slice(0, max(1, text))), (2, slice(0, max(1, text)))]
        listed += [(3, slice(0, extra)), (4, slice(0, extra))] if self._extra else listed
        places = [(0, queries.span), (1, keys.span), (2, keys.span), *listed]
        blocks = (tile, config.box, config.box, *[(config.block,)] * 4)
        shapes = (queries.shape, keys.shape, keys.shape, *((span.stop,) for _, span in listed))
        return [
            Source(index, span, self._tokens[index][:, :, span], shape, block)
            for (index, span), shape, block in zip(places, shapes, blocks, strict=True)
        ]

    def _list_lengths(self, lists: bool) -> tuple[int, int]:
        """Text and extra tokens that every query sees."""
        pattern = self._call.pattern
        text = pattern.text_key_tokens
        return (text, pattern.shared_keys - text) if lists else (0, 0)


class Launch:
    """All of a launch but the tensors, for tensors of one kind: shapes, strides, dtypes, addresses that are aligned.

    Triton's own launch inspects every argument to find the compiled kernel, which takes longer than the rest of a
    launch. All that it inspects is the same for every launch of one object, so the kernel is kept.
    """

    def __init__(
        self,
        kernel: Callable[[], Any],
        grid: tuple[int, int, int],
        readers: list[Reader],
        rest: tuple[object, ...],
        options: dict[str, int],
    ) -> None:
        """kernel: imports it, for Triton is heavy and not everywhere. rest: the arguments behind the tensors."""
        self._kernel, self._grid, self._readers, self._rest, self._options = kernel, grid, readers, rest, options
        self._compiled: Any = None

    def __call__(self, tensors: tuple[Tensor, ...], addresses: list[int]) -> None:
        """tensors: that the readers count by. addresses: theirs."""
        if self._compiled is not None:
            made = [reader.of(_At(addresses[reader.index] + reader.offset)) for reader in self._readers]
            self._compiled[self._grid](*made, *self._rest)
            return
        made = [reader.of(reader.part(tensors)) for reader in self._readers]
        compiled = self._kernel()[self._grid](*made, *self._rest, **self._options)
        if _takes_all_arguments():
            self._compiled = compiled


class _At:
    """Memory, as Triton's launch asks for it. A view of a tensor takes ten times as long to make."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


class Reader:
    """How the kernel reads a tensor, or some of its tokens: by address, or through a descriptor.

    index: of the tensor. span: which of its tokens; None for all. offset: of their address, in bytes. descriptor: one
    that Triton has checked, for other tokens of this kind.
    """

    def __init__(self, index: int, span: slice | None = None, offset: int = 0, descriptor: Any = None) -> None:
        self.index, self.offset = index, offset
        self._span, self._type = span, type(descriptor)
        self._fields = None if descriptor is None else {**vars(descriptor), "base": None}

    def part(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """What it reads of tensors of this kind."""
        return tensors[self.index] if self._span is None else tensors[self.index][:, :, self._span]

    def of(self, memory: Tensor | _At) -> Any:
        """The argument for memory of this kind."""
        if self._fields is None:
            return memory
        made = object.__new__(self._type)  # without the checks, which take ten times as long
        made.__dict__.update(self._fields, base=memory)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Tokens [batch, heads, n, head_dim] that the kernel reads in tiles of a grid or in blocks of a list.

    index, span: they are those of tensor `index`. shape: rows and columns of the grid, or the length of the list.
    block: what is read at a time.
    """

    index: int
    span: slice
    tokens: Tensor
    shape: tuple[int, ...]
    block: tuple[int, ...]

    def reader(self, tensors: tuple[Tensor, ...], descriptor: Any) -> Reader:
        """How the kernel reads these tokens of tensors of this kind."""
        return Reader(self.index, self.span, self.tokens.data_ptr() - tensors[self.index].data_ptr(), descriptor)

    def fits_descriptor(self) -> bool:
        """Whether start and strides are aligned to 16 bytes, as the tensor memory accelerator requires."""
        size = self.tokens.element_size()
        return self.tokens.data_ptr() % 16 == 0 and all(stride * size % 16 == 0 for stride in self._strides())

    def descriptor(self) -> Any:
        from triton.tools.tensor_descriptor import TensorDescriptor

        batch, heads, _, head_dim = self.tokens.shape
        return TensorDescriptor(
            self.tokens, [batch, heads, *self.shape, head_dim], [*self._strides(), 1], [1, 1, *self.block, head_dim]
        )

    def _strides(self) -> Iterator[int]:
        """Of every dimension but the last: batch, heads, the grid's rows if it is one, tokens."""
        batch, heads, token, _ = self.tokens.stride()
        yield from (batch, heads)
        if len(self.shape) == 2:
            yield token * self.shape[1]
        yield token


def _window_kernel() -> Any:
    from . import kernel

    return kernel.window_kernel


def _takes_all_arguments() -> bool:
    """Whether a compiled kernel takes what Triton's own launch passes on to it: every argument, constants included.

    So from 3.3 on; later versions are not known yet. On AMD kernels also depend on how large a tensor's memory is.
    """
    return (3, 3) <= triton_version() < (3, 10) and torch.version.hip is None


def _extra_tokens(call: AttentionCall, keys: _KeyValue) -> tuple[Tensor, ...]:
    """Keys and values beside the text that every query sees; nothing where there are none."""
    references, pooled = call.pattern.shared_references, call.pooled
    shared = keys.cut(references) if references.stop > references.start else ()
    if pooled is None:
        return shared
    if not shared:
        # As they are: they may be a sixteenth of a large image, and every band of it would copy them.
        return _last_contiguous(pooled.key), _last_contiguous(pooled.value)
    return tuple(torch.cat(tensors, dim=2) for tensors in zip((pooled.key, pooled.value), shared, strict=True))


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _last_contiguous(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()
