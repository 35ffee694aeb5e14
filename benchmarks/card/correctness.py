"""Every backend that takes a call, against float64, on sampled queries: first and last of each kind, and the middle.

The bound is twice the error of PyTorch's own dense kernel on the same numbers in the same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clear_core.backends import BACKENDS, Backend
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import chip_of, config_for, interpreted
from clear_core.call import AttentionCall, AttentionResult
from clear_core.flux import HEAD_DIM
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled, mean_weight, pool_key_value
from clear_core.window import Window

from .scale import Scale
from .supervise import Row

_SAMPLED = 64  # queries of each kind
_TEXT = 77  # no multiple of a block


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a call is like.

    rows: of the image among the queries, None for all. packed: query, key and value are views of one tensor.
    """

    name: str
    grid: Grid
    radius: int
    references: tuple[Grid, ...] = ()
    down_factor: int = 1
    rows: Band | None = None
    packed: bool = False

    def call(self, scale: Scale, dtype: torch.dtype) -> AttentionCall:
        layout, window = TokenLayout(_TEXT, self.grid, self.references), Window(self.radius)
        pattern = LocalPattern.whole(layout, window)
        if self.rows is not None:
            pattern = pattern.part(
                query_rows=self.rows,
                key_rows=self.rows.grown(window.halo, self.grid),
                replicated_queries=False,
                replicated_keys=True,
            )
        query, key, value = self._tokens(scale, dtype, pattern)
        pooled = None if self.down_factor == 1 else self._pooled(key, value)
        if pooled is not None:
            pattern = replace(pattern, pooled=pooled.tokens)
        return AttentionCall(
            query, key, value, pattern, scale=HEAD_DIM**-0.5, pooled=pooled, return_lse=self.rows is not None
        )

    def _tokens(self, scale: Scale, dtype: torch.dtype, pattern: LocalPattern) -> tuple[Tensor, ...]:
        generator = torch.Generator(scale.device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=scale.device, dtype=torch.float32).to(dtype)

        if self.packed:  # as the host's first projection leaves them
            return random(1, pattern.key_tokens, 3, scale.heads, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
        counts = (pattern.query_tokens, pattern.key_tokens, pattern.key_tokens)
        return tuple(random(1, scale.heads, count, HEAD_DIM) for count in counts)

    def _pooled(self, key: Tensor, value: Tensor) -> Pooled:
        image = slice(_TEXT, _TEXT + self.grid.tokens)
        return pool_key_value(key[:, :, image], value[:, :, image], self.grid, mean_weight(self.down_factor))


def scenarios(side: int, radius: int) -> list[Scenario]:
    square, odd = Grid(side, side), Grid(side - 3, side // 2 + 5)
    band = Band(side // 3, side // 3 + max(2, side // 16))
    return [
        Scenario("whole", square, radius),
        Scenario("packed q, k, v", square, radius, packed=True),
        Scenario("odd size", odd, radius),
        Scenario("down-sampled, 4", square, radius, down_factor=4),
        Scenario("references", square, radius, references=(Grid(side // 2, side // 2), Grid(side // 4, side // 3))),
        Scenario("band", square, radius, rows=band),
    ]


def rows(scale: Scale) -> Iterator[Row]:
    small, large = scale.sides[-2:]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for scenario in scenarios(small, scale.radii[1]):
            yield from _scenario(scenario, scale, dtype)
    for scenario in (Scenario("whole", Grid(large, large), 16), Scenario("packed", Grid(large, large), 8, packed=True)):
        yield from _scenario(scenario, scale, scale.dtype)


def _scenario(scenario: Scenario, scale: Scale, dtype: torch.dtype) -> Iterator[Row]:
    facts = {
        "case": scenario.name,
        "tokens": f"{scenario.grid.width} x {scenario.grid.height}",
        "radius": scenario.radius,
        "dtype": str(dtype).removeprefix("torch."),
    }
    with torch.inference_mode():
        call = scenario.call(scale, dtype)
        samples = [Sample.of(call, queries) for queries in _sampled(call.pattern)]
        allowed = 2 * max(sample.dense_error for sample in samples)
        for backend in BACKENDS:
            if backend.name == "reference":
                continue
            reason = _refusal(backend, call)
            if reason is not None:
                yield {**facts, "backend": backend.name, "refused": reason}
                continue
            for name, run in _kernels(backend, call).items():
                yield {**facts, "backend": name, **_judged(run(call), samples, allowed, dtype)}


def _judged(result: AttentionResult, samples: Iterable[Sample], allowed: float, dtype: torch.dtype) -> Row:
    error = max(relative_error(result.out[:, sample.queries], sample.out) for sample in samples)
    row: Row = {"error": error, "allowed": allowed, "right": error <= allowed}
    if result.lse is not None:
        worst = max(float((result.lse[:, :, sample.queries].double() - sample.lse).abs().max()) for sample in samples)
        row |= {"lse off by": worst, "right": row["right"] and worst <= max(1e-5, torch.finfo(dtype).eps)}
    return row


def _kernels(backend: Backend, call: AttentionCall) -> dict[str, Callable[[AttentionCall], AttentionResult]]:
    """A backend's ways to compute a call: on Hopper chips the fused kernel has two."""
    usual = config_for(chip_of(call.query.device), call.query.element_size())
    if not isinstance(backend, TritonBackend) or backend.config(call) == usual:
        return {backend.name: backend.run}
    return {f"{backend.name}, for Hopper": backend.run, backend.name: partial(backend.launch, config=usual)}


def _refusal(backend: Backend, call: AttentionCall) -> str | None:
    if backend.name == "triton" and interpreted() and call.query.dtype == torch.bfloat16:
        return "Triton's interpreter has no bfloat16"
    return backend.unavailable() or backend.refusal(call)


class Sample(NamedTuple):
    """Some queries of a call in float64. out: [batch, queries, heads * head_dim]. lse: [batch, heads, queries].

    dense_error: the relative error of PyTorch's dense kernel for them, in the call's dtype.
    """

    queries: slice
    out: Tensor
    lse: Tensor
    dense_error: float

    @classmethod
    def of(cls, call: AttentionCall, queries: slice) -> Sample:
        pooled = call.pooled
        key = call.key if pooled is None else torch.cat((pooled.key, call.key), 2)
        value = call.value if pooled is None else torch.cat((pooled.value, call.value), 2)
        mask, query = call.pattern.mask(call.query.device, queries), call.query[:, :, queries]
        outs: list[Tensor] = []
        lses: list[Tensor] = []
        for head in range(call.heads):  # one at a time: the scores of 8192 px take 0.1 GB each
            scores = query[:, head].double() @ key[:, head].double().mT * call.scale
            scores.masked_fill_(~mask, -math.inf)
            lses.append(scores.logsumexp(-1))
            outs.append(scores.softmax(-1) @ value[:, head].double())
        out, lse = torch.stack(outs, 2).flatten(2), torch.stack(lses, 1)
        dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=call.scale)
        return cls(queries, out, lse, relative_error(dense.transpose(1, 2).flatten(2), out))


def _sampled(pattern: LocalPattern) -> Iterator[slice]:
    text = pattern.text_query_tokens
    if text:
        yield slice(0, min(text, _SAMPLED))
    for grid in pattern.query_grids:
        middle = grid.start + grid.tokens // 2
        for start in {grid.start, max(grid.start, middle - _SAMPLED), max(grid.start, grid.stop - _SAMPLED)}:
            yield slice(start, min(start + _SAMPLED, grid.stop))


def relative_error(result: Tensor, expected: Tensor) -> float:
    """In the 2-norm. expected: float64."""
    return float((result.double() - expected).norm() / expected.norm())
