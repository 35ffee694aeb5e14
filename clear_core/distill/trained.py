"""What distillation trains: the attention projections' weights in full, or a LoRA beside frozen layers.

Layers are named as in a released file, without the ending: `transformer_blocks.0.attn.to_q`. Parameters are float32
leaves on the device where they are stored; they are moved and cast where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pooling import mean_weight
from ..weights import BlockId, block_of_key
from .weights import as_leaves, spatial_key


class Trained(Protocol):
    """parameters: by name. replaces: whether a layer's own output is not needed."""

    parameters: dict[str, Tensor]
    replaces: bool

    def output(self, name: str, x: Tensor, own: Tensor | None) -> Tensor:
        """A layer's output for x [..., in]; own: by the frozen weights, [..., out]. None only where `replaces`."""
        ...

    def pooling(self, block: BlockId) -> Tensor | None:
        """The block's pooling weight [f, f]; None without down-sampled tokens."""
        ...


class FullWeights:
    """Weights and biases of all projections, and the pooling weights."""

    replaces = True

    def __init__(self, start: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """start: by the names of a released file; they are copied."""
        self.parameters = as_leaves(start, device)

    def output(self, name: str, x: Tensor, own: Tensor | None) -> Tensor:
        weight, bias = (self.parameters.get(f"{name}.{end}") for end in ("weight", "bias"))
        assert weight is not None
        return F.linear(x, weight.to(x), bias.to(x) if bias is not None else None)

    def pooling(self, block: BlockId) -> Tensor | None:
        return self.parameters.get(spatial_key(block))


class Untrained:
    """The frozen layers, under the window: what a student is before any training."""

    replaces = False

    def __init__(self, down_factor: int) -> None:
        self.parameters: dict[str, Tensor] = {}
        self._mean = mean_weight(down_factor) if down_factor > 1 else None

    def output(self, name: str, x: Tensor, own: Tensor | None) -> Tensor:
        assert own is not None
        return own

    def pooling(self, block: BlockId) -> Tensor | None:
        return self._mean


class Lora(Untrained):
    """Two matrices beside every layer, at strength 1. Pooling weights stay means: a LoRA file has no place for
    them, and means are what Apply CLEAR Attention takes without a weights file."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        rank: int,
        down_factor: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """shapes: of the layers' weights, [out, in], by name. Starts as zero."""
        super().__init__(down_factor)
        generator = torch.Generator().manual_seed(seed)
        for name, (outputs, inputs) in shapes.items():
            down = torch.empty(rank, inputs).uniform_(-1, 1, generator=generator) / inputs**0.5
            self.parameters[f"{name}.lora_A.weight"] = down.to(device).requires_grad_()
            self.parameters[f"{name}.lora_B.weight"] = torch.zeros(outputs, rank, device=device).requires_grad_()

    def output(self, name: str, x: Tensor, own: Tensor | None) -> Tensor:
        assert own is not None
        down, up = (self.parameters[f"{name}.lora_{part}.weight"].to(x) for part in "AB")
        return own + F.linear(F.linear(x, down), up)


def merged(own: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's parameters added to the weights that they stand beside, both by their names: float32, on the CPU.

    own: float32, on the CPU.
    """
    made = dict(own)
    for key, up in lora.items():
        if key.endswith(".lora_B.weight"):
            name = key.removesuffix(".lora_B.weight")
            down = lora[f"{name}.lora_A.weight"]
            made[f"{name}.weight"] = made[f"{name}.weight"] + (up.detach() @ down.detach()).to("cpu", torch.float32)
    return made


def by_block(trained: Trained) -> dict[BlockId, dict[str, Tensor]]:
    """The parameters that each block uses, by their names."""
    found: dict[BlockId, dict[str, Tensor]] = {}
    for name, tensor in trained.parameters.items():
        found.setdefault(block_of_key(name), {})[name] = tensor
    return found
