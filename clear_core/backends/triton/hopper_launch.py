"""Launching the kernel for Hopper chips: from the tensors of a call to its arguments."""

from __future__ import annotations

from typing import Any

from ...call import AttentionResult
from ...layout import GridTokens
from ..on_device import multiprocessors
from .launch import LOG2_E, Launch, Reader, Source, WindowKernel
from .tile_plan import TilePlan

_HALF = (8, 8)
"""Rows and columns of queries that one consumer computes; a tile is two of them, side by side."""
_QUERY_STAGES = 2  # the next tile's queries arrive while this one's result leaves through the other buffer


class HopperKernel(WindowKernel):
    """The warp-specialised kernel on the tensors of one call; the usual one where memory is not aligned for it."""

    def _prepare(
        self, queries: GridTokens, keys: GridTokens, plan: TilePlan, target: AttentionResult, *, lists: bool
    ) -> Launch:
        call, config, lse = self._call, self._config, target.lse
        after = len(self._tokens)
        out = target.out.unflatten(2, (call.heads, -1)).transpose(1, 2)
        result = Source(after + 3, slice(None), out, queries.shape, _HALF)
        sources = self._sources(queries, keys, _HALF)
        if not all(source.fits_descriptor() for source in (*sources, result)):
            return super()._prepare(queries, keys, plan, target, lists=lists)
        items = plan.tiles * call.heads * call.batch
        text, extra = self._list_lengths(lists)
        return Launch(
            _hopper_kernel,
            (min(items, multiprocessors(call.query.device) or items), 1, 1),
            [
                *(source.reader(self._tokens, _descriptor(source)) for source in sources),
                *(Reader(after + index) for index in (0, 1, 2)),
                Reader(result.index, descriptor=_descriptor(result)),
                Reader(after + 4),
            ],
            (
                0 if lse is None else lse.stride(1),
                *divmod(text, config.block),
                *divmod(extra, config.block),
                call.pattern.circle.radius,
                call.scale * LOG2_E,
                items,
                call.heads,
                call.head_dim,
                *config.box,
                config.stages,
                _QUERY_STAGES,
                lse is not None,
            ),
            {"num_warps": config.warps, "enable_fp_fusion": True},
        )


def _descriptor(source: Source) -> Any:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    plain = source.descriptor()
    block, bits = plain.block_shape, 8 * source.tokens.element_size()
    layout = NVMMASharedLayout(min(128, block[-1] * bits // 8), bits, len(block))
    return TensorDescriptor(plain.base, plain.shape, plain.strides, block, layout)


def _hopper_kernel() -> Any:
    from . import hopper_kernel

    return hopper_kernel.hopper_kernel
