"""How far an output is from the expected one."""

from __future__ import annotations

from torch import Tensor


def error(out: Tensor, expected: Tensor) -> float:
    """The relative error in the 2-norm."""
    return float((out - expected).norm() / expected.norm())
