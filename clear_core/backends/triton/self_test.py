"""The self-test of the fused kernel: small calls compared with the definition, before the first use of a device.

A kernel that fails to compile or gives a wrong result on a device is refused there with that reason, so that `auto`
falls back to another backend. A device that has no room, or fails for another reason that passes, says nothing about
the kernel: it is tested again in the next call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult
from ...layout import Band, Grid, TokenLayout
from ...pattern import LocalPattern
from ...pooling import Pooled
from ...window import Window
from ..on_device import multiprocessors
from ..reference import ReferenceBackend

_PASSING = ("out of memory", "launch failure", "launch timed out", "busy or unavailable")
"""Words of a driver's errors that do not come from the kernel, or need not."""

_ROUNDS = 5  # tiles of a program: both buffers of its queries are used twice and more


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """What the kernel is compiled for, and where it runs."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    heads: int
    return_lse: bool


class SelfTest:
    """Self-tests of one kernel; each variant is tested once."""

    def __init__(self, test: Callable[[KernelVariant], str | None]) -> None:
        """test: why a variant cannot be used, or None. Raises PassingFailure where that need not be so again."""
        self._test = test
        self._failures: BoundedCache[KernelVariant, str | None] = BoundedCache(64)

    @classmethod
    def of(cls, run: Callable[[AttentionCall], AttentionResult]) -> SelfTest:
        """Self-tests in this process of the kernel that `run` launches."""
        return cls(lambda variant: kernel_failure(run, variant))

    def failure(self, variant: KernelVariant) -> str | None:
        """Why a variant cannot be used, as a clause; None where it passed. Tests it on the first call.

        Raises torch.OutOfMemoryError where the device has no room for the test.
        """
        try:
            return self._failures.get(variant, lambda: self._test(variant))
        except PassingFailure as passing:
            return str(passing)


def kernel_failure(run: Callable[[AttentionCall], AttentionResult], variant: KernelVariant) -> str | None:
    """What is wrong with a kernel in small calls, as a clause; None for nothing. run: launches it.

    Raises PassingFailure where the device failed in a way that passes, torch.OutOfMemoryError where it has no room.
    """
    try:
        errors = {name: error for call in _small_calls(variant) for name, error in _errors(run, call)}
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel; the caller knows what to do
    except Exception as problem:  # a compiler and a driver may raise anything
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        if any(word in str(problem).lower() for word in _PASSING):
            raise PassingFailure(f"its self-test could not run this time ({reason})") from problem
        return f"its kernel does not run on this card ({reason})"
    allowed = max(1e-5, torch.finfo(variant.dtype).eps)
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    if errors[worst] <= allowed:
        return None
    return f"its self-test failed on this card: relative error {errors[worst]:.1e} in {worst}, allowed {allowed:.1e}"


def _errors(run: Callable[[AttentionCall], AttentionResult], call: AttentionCall) -> Iterator[tuple[str, float]]:
    """The relative error of each kind of queries, so that many right ones do not hide a few wrong ones."""
    exact = replace(
        call,
        query=call.query.float(),
        key=call.key.float(),
        value=call.value.float(),
        pooled=None if call.pooled is None else Pooled(call.pooled.key.float(), call.pooled.value.float()),
    )
    run(call)  # compiles; the second call launches what was kept, as all later layers do
    result, expected = run(call), ReferenceBackend().run(exact)
    for name, queries in _kinds(call.pattern).items():
        queries = queries.to(result.out.device)
        yield f"the {name}", _relative(result.out[:, queries], expected.out[:, queries])
        if result.lse is not None and expected.lse is not None:
            error = _relative(result.lse[:, :, queries], expected.lse[:, :, queries])
            yield f"the log-sum-exp of the {name}", error


class PassingFailure(Exception):
    """A failure that need not come again."""


def _relative(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected).norm() / expected.norm())


def _small_calls(variant: KernelVariant) -> Iterator[AttentionCall]:
    """Random tensors: complete and partial blocks of text and extra tokens, full and partial KV tiles.

    An image of few tiles, with text and down-sampled tokens; then a band of an image with its halo, whose small window
    makes each single key count; then as many tiles as make a card's programs take several each.
    """
    scale = 1 / math.sqrt(variant.head_dim)
    whole = LocalPattern.whole(TokenLayout(70, Grid(11, 33)), Window(16), pooled=20)
    band = LocalPattern(TokenLayout(3, Grid(40, 21)), Window(4), Band(13, 24), Band(10, 27), text_queries=False)
    patterns = [whole, band]
    tiles = _ROUNDS * multiprocessors(variant.device) // variant.heads
    if tiles:  # of 16 columns
        patterns.append(LocalPattern.whole(TokenLayout(0, Grid(8, 16 * tiles)), Window(4)))
    generator = torch.Generator().manual_seed(0)
    for pattern in patterns:
        sizes = [pattern.query_tokens, pattern.key_tokens, pattern.key_tokens, pattern.pooled, pattern.pooled]
        tokens = torch.randn(1, variant.heads, sum(sizes), variant.head_dim, generator=generator)
        query, key, value, *pooled = tokens.to(variant.device, variant.dtype).split(sizes, dim=2)
        yield AttentionCall(
            query,
            key,
            value,
            pattern,
            scale=scale,
            pooled=Pooled(*pooled) if pattern.pooled else None,
            return_lse=variant.return_lse,
        )


def _kinds(pattern: LocalPattern) -> dict[str, Tensor]:
    """Indices of the queries of each kind: text, the first and last rows and columns of the image, the rest."""
    text = pattern.query_slices.text
    (grid,) = pattern.query_grids
    tokens = torch.arange(grid.start, grid.stop).view(grid.shape)
    kinds = {
        "text": torch.arange(text.start, text.stop),
        "top edge": tokens[0],
        "bottom edge": tokens[-1],
        "left edge": tokens[:, 0],
        "right edge": tokens[:, -1],
        "corners": torch.stack((tokens[0, 0], tokens[0, -1], tokens[-1, 0], tokens[-1, -1])),
        "image": tokens.flatten(),
    }
    return {name: queries for name, queries in kinds.items() if len(queries)}
