"""The optimizers that a distillation can use, as the authors' script sets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from .settings import ADAMW, ADAMW_8BIT, PRODIGY

WEIGHT_DECAY: Final = 1e-4
_BETAS = (0.9, 0.999)


# Tensor by tensor: all at once, as PyTorch's default does, takes as much memory again as the weights.
ADAMW_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType(
    {"betas": _BETAS, "weight_decay": WEIGHT_DECAY, "eps": 1e-8, "foreach": False}
)


STATE: Final[Mapping[str, float]] = MappingProxyType({ADAMW: 2.0, ADAMW_8BIT: 0.5, PRODIGY: 4.0})
"""What each keeps for a trained value, in values of float32."""


def adamw(weights: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(weights), learning_rate, **ADAMW_OPTIONS)


def make_optimizer(name: str, weights: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """name: one of `settings.OPTIMIZERS`. Raises ValueError where its library is not installed."""
    if name == ADAMW:
        return adamw(weights, learning_rate)
    try:
        return _adamw_8bit(weights, learning_rate) if name == ADAMW_8BIT else _prodigy(weights, learning_rate)
    except ImportError as error:
        package = "bitsandbytes" if name == ADAMW_8BIT else "prodigyopt"
        raise ValueError(
            f"optimizer {name!r} needs the package {package}, which cannot be imported ({error}). Install it into "
            f"ComfyUI's Python (pip install {package}), or choose {ADAMW!r}."
        ) from error


def _adamw_8bit(weights: Iterable[Tensor], learning_rate: float) -> Any:
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(list(weights), learning_rate, betas=_BETAS, weight_decay=WEIGHT_DECAY, eps=1e-8)


def _prodigy(weights: Iterable[Tensor], learning_rate: float) -> Any:
    """learning_rate: a factor on the rate that it finds; 1 as a rule."""
    from prodigyopt import Prodigy

    options: dict[str, Any] = {"betas": _BETAS, "weight_decay": WEIGHT_DECAY}
    return Prodigy(list(weights), learning_rate, use_bias_correction=True, safeguard_warmup=True, **options)
