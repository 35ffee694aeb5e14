"""The scale of the softmax, plain or proportional to the sequence's length (CLEAR, section 4)."""

from __future__ import annotations

from math import log, sqrt

from .flux import TEXT_TOKENS, TRAINING_GRID

_TRAINING_TOKENS = TRAINING_GRID.tokens + TEXT_TOKENS


def proportional_gain(tokens: int, down_factor: int = 1) -> float:
    """The factor of proportional attention on the scores: sqrt(log_4608(L)).

    tokens: L, the text, image and reference tokens, without the down-sampled ones.
    down_factor: above 1 the authors' released code takes log_4608(10 L) instead.
    """
    length = tokens * 10 if down_factor > 1 else tokens
    # A sequence of one token has log 0: its softmax has one entry, so any positive scale is right.
    return sqrt(log(max(length, 2), _TRAINING_TOKENS))


def softmax_scale(head_dim: int, tokens: int, *, proportional: bool = False, down_factor: int = 1) -> float:
    """The factor on the scores q.k: 1/sqrt(d), or sqrt(log_4608(L) / d) for proportional attention."""
    gain = proportional_gain(tokens, down_factor) if proportional else 1.0
    return gain / sqrt(head_dim)
