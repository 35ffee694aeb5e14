"""A LoRA of the small FLUX: every scene with red and blue exchanged.

A style that a program can judge: with the colours exchanged back, a picture is scored as any other. It is trained on
the dense model, as users' LoRAs are, and loaded by core's own loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .text import Texts
from .train import OutOfPlace, flow_loss, noised


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """What decides the result."""

    rank: int = 16
    steps: int = 300
    batch: int = 8
    learning_rate: float = 4e-3
    seed: int = 0


def exchanged(images: Tensor) -> Tensor:
    """Red and blue exchanged. images: [..., 3]; the same applied twice gives them back."""
    return images.flip(-1)


def trained_lora(
    model: Any, latents: Tensor, prompts: Sequence[int], texts: Texts, recipe: LoraRecipe
) -> dict[str, Tensor]:
    """The LoRA of a dense model, with the keys that core's loader knows, float32.

    model: a `comfy.ldm.flux.model.Flux` with 32-bit weights, left as it is. latents: [scenes, 16, height, width], in
    the model's units. prompts: which of `texts` each one shows.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    base = {name: one.detach() for name, one in model.named_parameters()}
    names = [
        name.removesuffix(".weight")
        for name, one in base.items()
        if one.ndim == 2 and "blocks" in name and "mod" not in name
    ]
    down, up = {}, {}
    for name in names:
        rows, columns = base[f"{name}.weight"].shape
        down[name] = torch.randn(recipe.rank, columns, generator=generator).mul_(columns**-0.5).requires_grad_()
        up[name] = torch.zeros(rows, recipe.rank).requires_grad_()
    optimizer = torch.optim.AdamW([*down.values(), *up.values()], lr=recipe.learning_rate, weight_decay=0.0)

    def adapted(*inputs: Tensor, **options: Any) -> Tensor:
        changed = {f"{name}.weight": base[f"{name}.weight"] + up[name] @ down[name] for name in names}
        return torch.func.functional_call(model, {**base, **changed}, inputs, options)

    which = torch.tensor(prompts)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, 2 * (1 - step / recipe.steps))
        chosen = torch.randint(len(latents), (recipe.batch,), generator=generator)
        text = which[chosen]
        with OutOfPlace():
            sample = noised(latents[chosen].float(), generator)
            loss = flow_loss(adapted, sample, texts.context[text].float(), texts.pooled[text].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        f"diffusion_model.{name}.lora_{part}.weight": tensor.detach().clone()
        for name in names
        for part, tensor in (("A", down[name]), ("B", up[name]))
    }
