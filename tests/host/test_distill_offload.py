"""Gradients on a card too small for the model: the host copies weights to it for each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from devtools.models import flux_model

from host.distill_jobs import student_of


class Copies:
    """The host's copying of weights, all into one buffer for each shape: a copy lives until the next is made."""

    def __init__(self) -> None:
        self.made = 0
        self._buffers: dict[Any, Tensor] = {}

    def __call__(self, layer: Any, given: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.made += 1
        copies = self._copy(layer.weight), None if layer.bias is None else self._copy(layer.bias)
        return (*copies, None) if kwargs.get("offloadable") else copies

    def _copy(self, tensor: Tensor) -> Tensor:
        buffer = self._buffers.setdefault(tensor.shape, torch.empty(tensor.shape))
        # By numpy, so that autograd does not see it: the host copies on a stream of its own.
        buffer.numpy()[...] = tensor.detach().numpy()
        return buffer


def gradients(nodes_api: Any, transformer: Any, output: str) -> dict[str, Tensor]:
    """Of the authors' loss, for trained values away from their start."""
    model, trained = (
        nodes_api.module(f"{name}") for name in ("nodes.host.distill.model", "clear_core.distill.trained")
    )
    student = student_of(nodes_api, transformer)
    generator = torch.Generator().manual_seed(1)
    if output == "LoRA":
        values = trained.Lora(student.shapes, 4, 1, 0)
    else:
        values = trained.FullWeights(dict(student.own_weights(torch.float32, torch.device("cpu"))))
    for parameter in values.parameters.values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    given = {
        "context": torch.randn(1, 5, 24, generator=generator),
        "y": torch.randn(1, 12, generator=generator),
        "guidance": torch.tensor([3.5]),
    }
    latent, target = (torch.randn(1, 16, 16, 16, generator=generator) for _ in range(2))
    student.end_to_end(values, model.Inputs(latent, torch.tensor([0.5]), given), target)
    return {name: parameter.grad for name, parameter in values.parameters.items()}


@pytest.mark.parametrize("output", ["weights", "LoRA"])
def test_copies_that_are_overwritten_do_not_change_the_gradients(
    nodes_api: Any, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(nodes_api, flux_model(depth=2, depth_single_blocks=3).model.diffusion_model, output)
    transformer = flux_model(depth=2, depth_single_blocks=3).model.diffusion_model
    for layer in transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.comfy_cast_weights = True  # type: ignore[assignment]
            layer.weight_function = [lambda weight: weight]  # type: ignore[assignment]
    copies = Copies()
    monkeypatch.setattr("comfy.ops.cast_bias_weight", copies)
    got = gradients(nodes_api, transformer, output)
    assert copies.made > 100
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() < 1e-5 * gradient.norm(), name
