"""The self-test of the fused kernel: a small call compared with the definition, before the first use of a device.

A kernel that fails to compile or gives a wrong result on a device is refused there with that reason, so that `auto`
falls back to another backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult
from ...layout import Grid, TokenLayout
from ...pattern import LocalPattern
from ...pooling import Pooled
from ...window import Window
from ..reference import ReferenceBackend

_TEXT, _IMAGE, _RADIUS, _POOLED, _HEADS = 70, Grid(11, 33), 16, 20, 2


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """What the kernel is compiled for, and where it runs."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    return_lse: bool


class SelfTest:
    """Self-tests of one kernel; each variant is tested once."""

    def __init__(self, run: Callable[[AttentionCall], AttentionResult]) -> None:
        self._run = run
        self._failures: BoundedCache[KernelVariant, str | None] = BoundedCache(64)

    def failure(self, variant: KernelVariant) -> str | None:
        """Why a variant cannot be used, as a clause; None where it passed. Tests it on the first call."""
        return self._failures.get(variant, lambda: self._test(variant))

    def _test(self, variant: KernelVariant) -> str | None:
        try:
            error = self._error(variant)
        except torch.OutOfMemoryError:
            raise  # says nothing about the kernel
        except Exception as problem:  # a compiler and a driver may raise anything
            lines = f"{type(problem).__name__}: {problem}".splitlines()
            return f"its kernel does not run on this card ({lines[0]})"
        allowed = max(1e-5, 4 * torch.finfo(variant.dtype).eps)
        if error <= allowed:
            return None
        return f"its self-test failed on this card: relative error {error:.1e}, allowed {allowed:.1e}"

    def _error(self, variant: KernelVariant) -> float:
        """The relative error of a small call that takes every path through the kernel."""
        call = _small_call(variant)
        exact = replace(
            call,
            query=call.query.float(),
            key=call.key.float(),
            value=call.value.float(),
            pooled=None if call.pooled is None else Pooled(call.pooled.key.float(), call.pooled.value.float()),
        )
        result, expected = self._run(call), ReferenceBackend().run(exact)
        error = (result.out.float() - expected.out).norm() / expected.out.norm()
        if result.lse is not None and expected.lse is not None:
            error = torch.maximum(error, (result.lse - expected.lse).norm() / expected.lse.norm())
        return float(error)


def _small_call(variant: KernelVariant) -> AttentionCall:
    """Random tensors: complete and partial blocks of text and extra tokens, full and partial KV tiles, a border."""
    pattern = LocalPattern.whole(TokenLayout(_TEXT, _IMAGE), Window(_RADIUS), pooled=_POOLED)
    sizes = [pattern.query_tokens, pattern.key_tokens, pattern.key_tokens, _POOLED, _POOLED]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, _HEADS, sum(sizes), variant.head_dim, generator=generator)
    query, key, value, *pooled = tokens.to(variant.device, variant.dtype).split(sizes, dim=2)
    scale = 1 / math.sqrt(variant.head_dim)
    return AttentionCall(query, key, value, pattern, scale=scale, pooled=Pooled(*pooled), return_lse=variant.return_lse)
