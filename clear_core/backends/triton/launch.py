"""Launching the fused kernel: from the tensors of a call to the kernel's arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call import AttentionCall, AttentionResult
from ...layout import GridTokens
from .config import KernelConfig
from .tile_plan import TilePlan

_LOG2_E = math.log2(math.e)


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
        self._query = _last_contiguous(call.query)
        self._keys = _KeyValue(_last_contiguous(call.key), _last_contiguous(call.value))
        self._text = self._keys.cut(call.pattern.key_slices.text)
        self._extra = self._keys.cut(call.pattern.shared_references)
        if call.pooled is not None and not self._extra.key.shape[2]:
            # As they are: they may be a sixteenth of a large image, and every band of it would copy them.
            self._extra = _KeyValue(_last_contiguous(call.pooled.key), _last_contiguous(call.pooled.value))
        elif call.pooled is not None:
            self._extra = _KeyValue(
                torch.cat((call.pooled.key, self._extra.key), dim=2),
                torch.cat((call.pooled.value, self._extra.value), dim=2),
            )

    def launch(
        self, queries: GridTokens, keys: GridTokens, plan: TilePlan, target: AttentionResult, *, lists: bool
    ) -> None:
        """Attention of one query grid over one key grid and, with `lists`, over what every query sees.

        target: out and lse (or None) at the first of these queries.
        """
        from . import kernel  # Triton is heavy, and not everywhere

        call, config, none = self._call, self._config, slice(0, 0)
        text, extra = (self._text, self._extra) if lists else (self._keys.cut(none), self._keys.cut(none))
        window = self._keys.cut(keys.span)
        sources = [
            _Source(self._query[:, :, queries.span], queries.shape, config.tile),
            *(_Source(tokens, keys.shape, config.box) for tokens in window),
            *(_list_source(tokens, other, config.block) for tokens, other in zip(text, window, strict=True)),
            *(_list_source(tokens, other, config.block) for tokens, other in zip(extra, window, strict=True)),
        ]
        tma = config.descriptors and all(source.fits_descriptor() for source in sources)
        out, lse = target
        window_kernel: Any = kernel.window_kernel
        with _current(call.query.device):
            window_kernel[(plan.tiles, call.batch * call.heads)](
                *(source.descriptor() if tma else source.tokens for source in sources),
                plan.ranges,
                plan.boxes,
                out,
                out if lse is None else lse,
                *(stride for source in sources for stride in source.tokens.stride()[:3]),
                *out.stride()[:2],
                *((0, 0) if lse is None else lse.stride()[:2]),
                text.key.shape[2],
                extra.key.shape[2],
                *queries.shape,
                *keys.shape,
                queries.rows.start,
                keys.rows.start,
                queries.grid.height,
                keys.grid.height,
                call.pattern.window.radius,
                call.scale * _LOG2_E,
                HEADS=call.heads,
                D=call.head_dim,
                TILE_H=config.tile[0],
                TILE_W=config.tile[1],
                KEY_H=config.box[0],
                KEY_W=config.box[1],
                BLOCK=config.block,
                TMA=tma,
                IEEE=self._query.dtype == torch.float32,
                LSE=lse is not None,
                num_warps=config.warps,
                num_stages=config.stages,
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Tokens [batch, heads, n, head_dim] that the kernel reads in tiles of a grid or in blocks of a list.

    shape: rows and columns of the grid, or the length of the list. block: what is read at a time.
    """

    tokens: Tensor
    shape: tuple[int, ...]
    block: tuple[int, ...]

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


def _list_source(tokens: Tensor, other: Tensor, block: int) -> _Source:
    """A list as a source. An empty one is never read, but its address must be valid: the first token of `other`."""
    present = tokens if tokens.shape[2] else other[:, :, :1]
    return _Source(present, (present.shape[2],), (block,))


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _last_contiguous(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()
