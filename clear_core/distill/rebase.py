"""Weights that were trained for one model, carried over to a fine-tune of it: what the fine-tune changed is added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def rebased(
    weights: Mapping[str, Tensor],
    own: Iterable[tuple[str, Tensor]],
    base: Callable[[str], Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """W_given + (W_model - W_base), tensor by tensor, float32 on the device: W_given itself where model and base agree.

    weights: trained for the base, by the names of a released file. own: the model's tensors under these names; each is
    done with before the next is taken. base: gives the base's tensor of a name.
    Raises ValueError where the base's tensor has another shape.
    """
    made = {}
    for name, tensor in own:
        before = base(name)
        if before.shape != tensor.shape:
            raise ValueError(
                f"{name} has the shape {list(before.shape)} in the base, {list(tensor.shape)} in the model. Choose the "
                "model that the weights were made for."
            )
        change = tensor.detach().to(device, torch.float32) - before.to(device, torch.float32)
        made[name] = weights[name].to(device, torch.float32) + change
    return made
