"""What the tests of both nodes save."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIB = 2**20
PNGINFO: dict[str, Any] = {"workflow": {"nodes": [], "title": "ü 日本"}, "clear_attention": {"runs": [1.5, None]}}
PROMPT: dict[str, Any] = {"1": {"class_type": "LoadImage", "inputs": {"image": "日本.png"}}}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Also below 0 and above 1, as a VAE gives it."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
