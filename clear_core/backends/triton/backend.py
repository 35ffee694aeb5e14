"""One fused kernel over tiles read in place: the fast way on cards that have Triton.

Image and reference queries go through `triton_kernel.window_kernel`, text queries through PyTorch's own dense
kernels. Sizes, strides and the text's length are plain arguments, so a new image size compiles nothing.

Nobody's card is taken on trust: before the first call on a device the kernel's answer to a small question is
held against the reference, and a kernel that fails to compile or answers wrongly is refused with that reason.

Constraints: a GPU with Triton; head_dim 16, 32, 64 or 128; radius up to 2048; no attention mask.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult
from ...layout import Grid, TokenLayout
from ...pattern import LocalPattern
from ...pooling import Pooled
from ...softmax import dense_attention, merge
from ...window import Window
from ..reference import ReferenceBackend
from .tile_plan import GridPair, TilePlan, tile_plan

_HEAD_DIMS = (16, 32, 64, 128)
_LARGEST_RADIUS = 2048  # squares of distances around a window stay exact in float32
_SMALLEST_SCALE = 1e-6  # what hides a key must stay far below every score after scaling
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How one program works. tile, box: rows and columns of queries and of keys; block: keys of a list.

    descriptors: read through the chip's tensor memory accelerator.
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    block: int
    warps: int
    stages: int
    descriptors: bool


def config_for(capability: tuple[int, int], element_size: int) -> KernelConfig:
    """The configuration for a chip (its CUDA capability) and the bytes of an element.

    It depends on nothing that changes from image to image. Chosen by what the compiler says (no register
    spills, shared memory within every chip's limit, matrix instructions not serialised), not yet by the clock.
    """
    if element_size == 4:  # for exactness, not for speed: IEEE products do not use the matrix units
        return KernelConfig((4, 4), (4, 4), 16, 8, 1, descriptors=False)
    if capability >= (9, 0):
        return KernelConfig((8, 16), (8, 8), 64, 8, 3, descriptors=True)
    return KernelConfig((8, 16), (4, 8), 64, 8, 2, descriptors=False)


class TritonBackend:
    name = "triton"
    summary = "one fused kernel for cards that have Triton"

    def __init__(self) -> None:
        self._plans: BoundedCache[object, TilePlan] = BoundedCache(32)
        self._doubts: BoundedCache[object, str | None] = BoundedCache(64)

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not torch.cuda.is_available() and not _interpreted():
            return "there is no GPU that Triton can use"
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        if call.query.device.type != "cuda" and not _interpreted():
            return f"the tensors are on {call.query.device}, not on a GPU"
        if call.head_dim not in _HEAD_DIMS:
            return f"head_dim is {call.head_dim}; it has {', '.join(map(str, _HEAD_DIMS))}"
        if call.query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"the dtype is {call.query.dtype}; it has float32, float16 and bfloat16"
        if call.pattern.window.radius > _LARGEST_RADIUS:
            return f"the radius is {call.pattern.window.radius}; it has up to {_LARGEST_RADIUS}"
        if call.scale < _SMALLEST_SCALE:
            return f"the softmax scale is {call.scale}; it has {_SMALLEST_SCALE} and more"
        if call.mask is not None:
            return "it has no attention mask"
        if call.pattern.query_grids and not call.pattern.windowed_key_grids:
            return "there are no keys to see through the window"
        if call.query.device.type == "cuda":
            return self.doubt(call.query.device, call.query.dtype, call.head_dim, return_lse=call.return_lse)
        return None

    def doubt(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, return_lse: bool) -> str | None:
        """Why the kernel is not to be trusted on a device; None where it gave the reference's answer."""

        def ask() -> str | None:
            try:
                error = self._error(device, dtype, head_dim, return_lse)
            except torch.OutOfMemoryError:
                raise  # says nothing about the kernel
            except Exception as problem:  # a compiler and a driver may raise anything
                lines = f"{type(problem).__name__}: {problem}".splitlines()
                return f"its kernel does not run on this card ({lines[0]})"
            allowed = max(1e-5, 4 * torch.finfo(dtype).eps)
            return None if error <= allowed else f"its answer on this card is wrong by {error:.1e} of {allowed:.1e}"

        return self._doubts.get((device, dtype, head_dim, return_lse), ask)

    def executed_pairs(self, call: AttentionCall, config: KernelConfig | None = None) -> int:
        pattern = call.pattern
        config = config or config_for(_capability(call.query), call.query.element_size())
        lists = (pattern.text_key_tokens, pattern.shared_keys - pattern.text_key_tokens)
        shared = sum(-(-length // config.block) for length in lists)
        total = pattern.text_query_tokens * pattern.key_tokens
        for queries in pattern.query_grids:
            for index, keys in enumerate(pattern.windowed_key_grids):
                pair = GridPair(queries.grid, queries.rows, keys.grid, keys.rows)
                plan = self._plan(pair, pattern.window, config, call.query.device)
                total += plan.executed_pairs()
                if index == 0:
                    total += plan.tiles * config.tile[0] * config.tile[1] * shared * config.block
        return total

    def run(self, call: AttentionCall) -> AttentionResult:
        return self.launch(call, config_for(_capability(call.query), call.query.element_size()))

    def launch(self, call: AttentionCall, config: KernelConfig) -> AttentionResult:
        """Run with a configuration that need not be the table's."""
        pattern, query = call.pattern, call.query
        out = query.new_empty(call.batch, pattern.query_tokens, call.heads * call.head_dim)
        lse = None
        if call.return_lse:
            lse = query.new_empty(call.batch, call.heads, pattern.query_tokens, dtype=torch.float32)
        _text_queries(call, out, lse)
        sources = _Sources(call)
        for grid in pattern.query_grids:
            queries = _last_contiguous(query)[:, :, grid.span]
            part = AttentionResult(out[:, grid.span], None if lse is None else lse[:, :, grid.span])
            whole = len(sources.windowed) == 1
            results = []
            for index, keys in enumerate(sources.windowed):
                target = part if whole else _like(part, call.heads)
                pair = GridPair(grid.grid, grid.rows, keys.grid, keys.rows)
                plan = self._plan(pair, pattern.window, config, query.device)
                _launch(call, sources, queries, keys, plan, pair, config, target, lists=index == 0)
                results.append(target)
            if not whole:
                merged = merge(results)
                part.out.copy_(merged.out)
                if part.lse is not None and merged.lse is not None:
                    part.lse.copy_(merged.lse)
        return AttentionResult(out, lse)

    def _plan(self, pair: GridPair, window: Window, config: KernelConfig, device: torch.device) -> TilePlan:
        key = (pair, window, config.tile, config.box, device)
        return self._plans.get(key, lambda: tile_plan(pair, window, config.tile, config.box).to(device))

    def _error(self, device: torch.device, dtype: torch.dtype, head_dim: int, return_lse: bool) -> float:
        """The kernel's relative error on a small question that takes every path through it."""
        extra, heads = 20, 2
        layout = TokenLayout(70, Grid(11, 33))
        pattern = replace(LocalPattern.whole(layout, Window(16)), pooled=extra)
        generator = torch.Generator().manual_seed(0)
        sizes = [pattern.query_tokens, pattern.key_tokens, pattern.key_tokens, extra, extra]
        tokens = torch.randn(1, heads, sum(sizes), head_dim, generator=generator).to(device, dtype)
        query, key, value, *pooled = tokens.split(sizes, dim=2)
        scale = 1 / math.sqrt(head_dim)
        call = AttentionCall(query, key, value, pattern, scale=scale, pooled=Pooled(*pooled), return_lse=return_lse)
        exact = replace(
            call,
            query=query.float(),
            key=key.float(),
            value=value.float(),
            pooled=Pooled(*(tensor.float() for tensor in pooled)),
        )
        result, expected = self.run(call), ReferenceBackend().run(exact)
        error = (result.out.float() - expected.out).norm() / expected.out.norm()
        if result.lse is not None and expected.lse is not None:
            error = torch.maximum(error, (result.lse - expected.lse).norm() / expected.lse.norm())
        return float(error)


@dataclass(frozen=True, slots=True, eq=False)
class _Keys:
    """The keys and values of one grid that is seen through the window."""

    grid: Grid
    rows: Any
    key: Tensor
    value: Tensor


class _Sources:
    """The keys and values of a call by the way they are read: lists that all queries see, and grids."""

    def __init__(self, call: AttentionCall) -> None:
        pattern = call.pattern
        key, value = _last_contiguous(call.key), _last_contiguous(call.value)
        text, references = pattern.key_slices.text, pattern.shared_references
        self.windowed = [
            _Keys(keys.grid, keys.rows, key[:, :, keys.span], value[:, :, keys.span])
            for keys in pattern.windowed_key_grids
        ]
        self.text = (key[:, :, text], value[:, :, text])
        extra_key, extra_value = key[:, :, references], value[:, :, references]
        if call.pooled is not None:
            extra_key = torch.cat((call.pooled.key, extra_key), dim=2)
            extra_value = torch.cat((call.pooled.value, extra_value), dim=2)
        self.extra = (extra_key, extra_value)


def _text_queries(call: AttentionCall, out: Tensor, lse: Tensor | None) -> None:
    """Text queries see everything: PyTorch's own dense kernels."""
    count = call.pattern.text_query_tokens
    if count == 0:
        return
    rows, rows_lse = dense_attention(
        call.query[:, :, :count],
        call.key,
        call.value,
        call.scale,
        None,
        return_lse=call.return_lse,
        budget=call.budget,
    )
    out[:, :count].unflatten(2, (call.heads, -1)).copy_(rows.transpose(1, 2))
    if lse is not None and rows_lse is not None:
        lse[:, :, :count] = rows_lse


def _launch(
    call: AttentionCall,
    sources: _Sources,
    queries: Tensor,
    keys: _Keys,
    plan: TilePlan,
    pair: GridPair,
    config: KernelConfig,
    target: AttentionResult,
    *,
    lists: bool,
) -> None:
    """One grid's queries over one grid's keys and, with `lists`, over what every query sees."""
    from . import kernel as triton_kernel

    window_kernel: Any = triton_kernel.window_kernel
    text, extra = (sources.text, sources.extra) if lists else ((keys.key[:, :, :0],) * 2,) * 2
    parts = {
        "query": _Part(queries, (len(pair.query_rows), pair.query.width), config.tile),
        "key": _Part(keys.key, (len(keys.rows), keys.grid.width), config.box),
        "value": _Part(keys.value, (len(keys.rows), keys.grid.width), config.box),
        # An empty list is never read, but its source must point somewhere: any token will do.
        "text_key": _Part.list(text[0], keys.key, config.block),
        "text_value": _Part.list(text[1], keys.value, config.block),
        "extra_key": _Part.list(extra[0], keys.key, config.block),
        "extra_value": _Part.list(extra[1], keys.value, config.block),
    }
    tma = config.descriptors and all(part.fits_descriptor() for part in parts.values())
    out, lse = target
    window_kernel[(plan.tiles, call.batch * call.heads)](
        *(part.descriptor() if tma else part.tokens for part in parts.values()),
        plan.ranges,
        plan.boxes,
        out,
        out if lse is None else lse,
        *(stride for part in parts.values() for stride in part.tokens.stride()[:3]),
        *out.stride()[:2],
        *((0, 0) if lse is None else lse.stride()[:2]),
        text[0].shape[2],
        extra[0].shape[2],
        len(pair.query_rows),
        pair.query.width,
        len(keys.rows),
        keys.grid.width,
        pair.query_rows.start,
        keys.rows.start,
        pair.query.height,
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
        IEEE=queries.dtype == torch.float32,
        LSE=lse is not None,
        num_warps=config.warps,
        num_stages=config.stages,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Tokens [batch, heads, n, head_dim] that the kernel reads in boxes of a grid or in blocks of a list."""

    tokens: Tensor
    shape: tuple[int, ...]
    box: tuple[int, ...]

    @classmethod
    def list(cls, tokens: Tensor, anywhere: Tensor, block: int) -> _Part:
        present = tokens if tokens.shape[2] else anywhere[:, :, :1]
        return cls(present, (present.shape[2],), (block,))

    def fits_descriptor(self) -> bool:
        """The accelerator wants a 16-byte aligned start and strides."""
        size = self.tokens.element_size()
        return self.tokens.data_ptr() % 16 == 0 and all(stride * size % 16 == 0 for stride in self._strides())

    def descriptor(self) -> Any:
        from triton.tools.tensor_descriptor import TensorDescriptor

        batch, heads, _, head_dim = self.tokens.shape
        return TensorDescriptor(
            self.tokens, [batch, heads, *self.shape, head_dim], [*self._strides(), 1], [1, 1, *self.box, head_dim]
        )

    def _strides(self) -> Iterator[int]:
        """Of every dimension but the last: batch, heads, the grid's rows if it is one, tokens."""
        batch, heads, token, _ = self.tokens.stride()
        yield from (batch, heads)
        if len(self.shape) == 2:
            yield token * self.shape[1]
        yield token


def _like(result: AttentionResult, heads: int) -> AttentionResult:
    """Room for a partial result, log-sum-exp included, of the same queries."""
    batch, queries, _ = result.out.shape
    out = torch.empty_like(result.out, memory_format=torch.contiguous_format)
    return AttentionResult(out, out.new_empty(batch, heads, queries, dtype=torch.float32))


def _last_contiguous(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()


def _capability(tensor: Tensor) -> tuple[int, int]:
    """The chip's CUDA capability; (0, 0) for others, which read by addresses."""
    if tensor.device.type != "cuda" or torch.version.hip is not None:
        return (9, 0) if _interpreted() else (0, 0)
    return torch.cuda.get_device_capability(tensor.device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
