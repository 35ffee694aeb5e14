"""Activation checkpointing for ComfyUI's blocks, which add their residuals in place.

`torch.utils.checkpoint` gives wrong gradients for them, silently: the recomputed block starts from inputs that the
first run has changed. Here the block gets clones, and its graph exists only within the backward of that block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

Block = Callable[..., tuple[Tensor, ...]]
"""Takes the activations, which it may change in place, and returns new ones."""


@contextmanager
def in_place_allowed() -> Iterator[None]:
    """Gradients through operations that change tensors which autograd has saved. Not to be nested, and for one block.

    PyTorch 2.13 tells saved tensors by object, address and version. Over several blocks all three can come again, and a
    tensor is taken for one of an earlier block.
    """
    with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        yield


def recomputed(
    block: Block,
    activations: Sequence[Tensor],
    parameters: Sequence[Tensor],
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, ...]:
    """`block(*activations)`, run again in the backward instead of kept; gradients for activations and parameters.

    parameters: leaves that the block uses. The block must compute the same both times.
    around: entered for the forward, and again for the backward, from the block's second run to its gradients: a context
    in which the block's frozen weights are there.
    """
    out: tuple[Tensor, ...] = _Recomputed.apply(block, around, len(activations), *activations, *parameters)
    return out


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, around: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.block, ctx.around, ctx.count = block, around, count
        ctx.save_for_backward(*tensors)
        with torch.no_grad(), around():
            return block(*[tensor.clone() for tensor in tensors[:count]])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        activations = [tensor.detach().requires_grad_() for tensor in tensors[: ctx.count]]
        wanted = [*activations, *tensors[ctx.count :]]
        with ctx.around(), in_place_allowed():
            # Clones: a leaf that requires gradients cannot be changed in place.
            outputs = ctx.block(*[tensor.clone() for tensor in activations])
            used = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if grad is not None]
            # Within the context: it drops the clones of what the block has overwritten when it ends.
            found = torch.autograd.grad([out for out, _ in used], wanted, [grad for _, grad in used], allow_unused=True)
        return None, None, None, *found
