"""One fused kernel over tiles read in place: the fast way on NVIDIA and AMD cards that have Triton.

Image queries go through `triton_kernel.window_kernel`; text queries through PyTorch's own dense kernels.
Sizes, strides and the text's length are plain arguments, so a new image size compiles nothing.

Not measured on a GPU yet, so `auto` does not choose it.

Constraints: a GPU with Triton; head_dim 16, 32, 64 or 128; no attention mask; no reference images.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..call import AttentionCall, AttentionResult
from ..softmax import dense_attention

_HEAD_DIMS = (16, 32, 64, 128)
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
    if capability[0] in (9, 10):
        return KernelConfig((8, 16), (8, 8), 64, 8, 3, descriptors=True)
    return KernelConfig((8, 16), (4, 8), 32, 8, 2, descriptors=False)


class TritonBackend:
    name = "triton"
    summary = "one fused kernel for NVIDIA and AMD cards that have Triton; not measured yet"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not torch.cuda.is_available() and not _interpreted():
            return "there is no GPU that Triton can use"
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        pattern = call.pattern
        if call.query.device.type != "cuda" and not _interpreted():
            return f"the tensors are on {call.query.device}, not on a GPU"
        if call.head_dim not in _HEAD_DIMS:
            return f"head_dim is {call.head_dim}; it has {', '.join(map(str, _HEAD_DIMS))}"
        if call.query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"the dtype is {call.query.dtype}; it has float32, float16 and bfloat16"
        if call.mask is not None:
            return "it has no attention mask"
        if pattern.layout.references:
            return "it has no reference images"
        return None

    def run(self, call: AttentionCall) -> AttentionResult:
        return launch(call)


def launch(call: AttentionCall, config: KernelConfig | None = None) -> AttentionResult:
    """Run the kernel; `config` overrides the table, for tuning."""
    from . import triton_kernel

    window_kernel: Any = triton_kernel.window_kernel

    pattern = call.pattern
    query, width, text = call.query, pattern.layout.image.width, pattern.layout.text
    if config is None:
        config = config_for(_capability(query), query.element_size())
    out = torch.empty(
        call.batch, pattern.query_tokens, call.heads * call.head_dim, device=query.device, dtype=query.dtype
    )
    lse = (
        torch.empty(call.batch, call.heads, pattern.query_tokens, device=query.device, dtype=torch.float32)
        if call.return_lse
        else None
    )
    first = pattern.text_query_tokens
    if first:
        rows, rows_lse = dense_attention(
            query[:, :, :first],
            call.key,
            call.value,
            call.scale,
            None,
            return_lse=call.return_lse,
            budget=call.budget,
        )
        out[:, :first].unflatten(2, (call.heads, -1)).copy_(rows.transpose(1, 2))
        if lse is not None and rows_lse is not None:
            lse[:, :, :first] = rows_lse

    queries, key, value = _last_contiguous(query), _last_contiguous(call.key), _last_contiguous(call.value)
    # An empty list is never read, but its source must point somewhere: any token will do.
    pooled_key, pooled_value = key[:, :, :1], value[:, :, :1]
    if call.pooled is not None:
        pooled_key, pooled_value = call.pooled.key.contiguous(), call.pooled.value.contiguous()
    query_rows, key_rows = len(pattern.query_rows), len(pattern.key_rows)
    parts = {
        "query": _Part(queries[:, :, first:], (query_rows, width), config.tile),
        "key": _Part(key[:, :, text:], (key_rows, width), config.box),
        "value": _Part(value[:, :, text:], (key_rows, width), config.box),
        "text_key": _Part(key[:, :, : max(1, text)], (max(1, text),), (config.block,)),
        "text_value": _Part(value[:, :, : max(1, text)], (max(1, text),), (config.block,)),
        "pooled_key": _Part(pooled_key, (pooled_key.shape[2],), (config.block,)),
        "pooled_value": _Part(pooled_value, (pooled_value.shape[2],), (config.block,)),
    }
    tma = config.descriptors and all(part.fits_descriptor() for part in parts.values())
    sources = [part.descriptor() if tma else part.tokens for part in parts.values()]
    tiles = -(-query_rows // config.tile[0]) * -(-width // config.tile[1])
    no_lse = lse if lse is not None else out
    window_kernel[(tiles, call.batch * call.heads)](
        *sources,
        out,
        no_lse,
        *queries.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *pooled_key.stride()[:3],
        *out.stride()[:2],
        *((lse.stride()[:2]) if lse is not None else (0, 0)),
        text,
        pattern.pooled,
        query_rows,
        key_rows,
        width,
        pattern.query_rows.start - pattern.key_rows.start,
        first,
        pattern.window.radius,
        call.scale * _LOG2_E,
        HEADS=call.heads,
        D=call.head_dim,
        TILE_H=config.tile[0],
        TILE_W=config.tile[1],
        KEY_H=config.box[0],
        KEY_W=config.box[1],
        BLOCK=config.block,
        TMA=tma,
        IEEE=query.dtype == torch.float32,
        LSE=lse is not None,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return AttentionResult(out, lse)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Tokens [batch, heads, n, head_dim] that the kernel reads in boxes of a grid or in blocks of a list."""

    tokens: Tensor
    shape: tuple[int, ...]
    box: tuple[int, ...]

    def fits_descriptor(self) -> bool:
        """The accelerator wants a 16-byte aligned start and strides."""
        size = self.tokens.element_size()
        strides = (*self.tokens.stride()[:3], self.tokens.stride(2) * self.shape[-1])
        return self.tokens.data_ptr() % 16 == 0 and all(stride * size % 16 == 0 for stride in strides)

    def descriptor(self) -> Any:
        from triton.tools.tensor_descriptor import TensorDescriptor

        batch, heads, _, head_dim = self.tokens.shape
        s_b, s_h, s_n, s_d = self.tokens.stride()
        inner = [s_n] if len(self.shape) == 1 else [s_n * self.shape[1], s_n]
        shape = [batch, heads, *self.shape, head_dim]
        return TensorDescriptor(self.tokens, shape, [s_b, s_h, *inner, s_d], [1, 1, *self.box, head_dim])


def _last_contiguous(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()


def _capability(tensor: Tensor) -> tuple[int, int]:
    """The chip's CUDA capability; (0, 0) for others, which read by addresses."""
    if tensor.device.type != "cuda" or torch.version.hip is not None:
        return (9, 0) if _interpreted() else (0, 0)
    return torch.cuda.get_device_capability(tensor.device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
