"""Which tensors distillation trains, by the names of a released file, and how they start."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..pooling import mean_weight
from ..weights import BlockId, attention_keys, block_of_key

_DOUBLE = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")


def block_keys(double: int, single: int) -> list[str]:
    """Weights of all linear layers of the blocks but the modulations, in diffusers names, block after block."""
    keys = [f"transformer_blocks.{i}.{name}.weight" for i in range(double) for name in _DOUBLE]
    return keys + [f"single_transformer_blocks.{i}.{name}.weight" for i in range(single) for name in _SINGLE]


def processor_key(block: BlockId, name: str) -> str:
    """Name of a tensor that a block's attention has beside its projections."""
    prefix = "transformer_blocks" if block.kind == "double" else "single_transformer_blocks"
    return f"{prefix}.{block.index}.attn.processor.{name}"


def spatial_key(block: BlockId) -> str:
    """Name of the pooling weight of a block."""
    return processor_key(block, "spatial_weight")


def start_from(teacher: Mapping[str, Tensor], blocks: tuple[int, int], down_factor: int) -> dict[str, Tensor]:
    """The student's weights before the first step: the teacher's own, and means as pooling weights.

    teacher: its projections under the names of `attention_keys`. blocks: numbers of double and of single blocks.
    Returns float32 tensors in the order of a released file's names.
    """
    made = {key: teacher[key].float() for key in attention_keys(*blocks) if key in teacher}
    if down_factor > 1:
        for block in dict.fromkeys(map(block_of_key, made)):
            made[spatial_key(block)] = mean_weight(down_factor)
    return made


def as_leaves(tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Copies in float32 that require gradients; pooling weights as [f, f]."""
    leaves = {}
    for key, tensor in tensors.items():
        made = tensor.detach().to(device, torch.float32, copy=True)
        if key.endswith("spatial_weight"):
            factor = round(made.numel() ** 0.5)
            made = made.reshape(factor, factor)
        leaves[key] = made.requires_grad_()
    return leaves
