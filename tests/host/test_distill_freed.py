"""A step of the distillation keeps nothing of its graph."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch

from devtools.models import flux_model

from host.distill_jobs import student_of


def test_the_students_outputs_are_freed_after_the_backward(nodes_api: Any) -> None:
    """They were kept through the hooks in the options that each block's graph has: 10 MB a step of the small FLUX."""
    model, trained = (nodes_api.module(name) for name in ("nodes.host.distill.model", "clear_core.distill.trained"))
    transformer = flux_model(depth=2, depth_single_blocks=3).model.diffusion_model
    student = student_of(nodes_api, transformer)
    values = trained.FullWeights(dict(student.own_weights(torch.float32, torch.device("cpu"))))
    generator = torch.Generator().manual_seed(1)
    given = {
        "context": torch.randn(1, 5, 24, generator=generator),
        "y": torch.randn(1, 12, generator=generator),
        "guidance": torch.tensor([3.5]),
    }
    latent = torch.randn(1, 16, 16, 16, generator=generator)

    def step() -> list[weakref.ref[torch.Tensor]]:
        with torch.enable_grad():
            made = student.student(values, model.Inputs(latent, torch.tensor([0.5]), given))
            loss = made.out.square().mean() + sum(one.square().mean() for one in made.attention.values())
        model.add_gradients(loss, list(values.parameters.values()))
        return [weakref.ref(made.out), *map(weakref.ref, made.attention.values())]

    kept = step()
    gc.collect()
    assert len(kept) > 1 and [one() for one in kept] == [None] * len(kept)
