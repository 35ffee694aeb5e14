"""The student's attention, forward and backward: dense under a mask, as training computes it, beside tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from clear_core.attention import local_attention
from clear_core.distill.attention import StudentAttention
from clear_core.flux import HEAD_DIM, TEXT_TOKENS, token_grid
from clear_core.layout import TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

from .timing import medians

SIZES, RADIUS, HEADS = (512, 1024), 16, 2


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a forward and its backward."""

    pixels: int
    dense_s: float
    tiles_s: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rows(repeats: int) -> Iterator[Row]:
    for pixels in SIZES:
        layout = TokenLayout(TEXT_TOKENS, token_grid(pixels, pixels))
        student = StudentAttention(layout, Window(RADIUS))
        pattern, mask = LocalPattern.whole(layout, Window(RADIUS)), student.mask()
        tokens = [torch.randn(1, HEADS, layout.tokens, HEAD_DIM, requires_grad=True) for _ in range(3)]

        def both(attend: Callable[..., Tensor], tokens: list[Tensor] = tokens) -> None:
            torch.autograd.grad(attend(*tokens).square().mean(), tokens)

        def dense(q: Tensor, k: Tensor, v: Tensor, student: StudentAttention = student, mask: Tensor = mask) -> Tensor:
            return student(q, k, v, mask, None)

        def tiles(q: Tensor, k: Tensor, v: Tensor, pattern: LocalPattern = pattern) -> Tensor:
            return local_attention(q, k, v, pattern, backend="sdpa").out

        functions = {"dense": lambda f=both, d=dense: f(d), "tiles": lambda f=both, t=tiles: f(t)}
        found = medians(functions, torch.device("cpu"), repeats)
        yield Row(pixels, found["dense"], found["tiles"])


def table(found: list[Row]) -> str:
    lines = [f"{'image':>6} {'dense, masked s':>16} {'tiles s':>8} {'tiles / dense':>14}"]
    lines += [
        f"{row.pixels:>6} {row.dense_s:>16.2f} {row.tiles_s:>8.2f} {row.tiles_s / row.dense_s:>14.2f}" for row in found
    ]
    return "\n".join(lines)
