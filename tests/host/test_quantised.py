"""Layers whose files bring a `pre_quant_scale`: CLEAR's weights in them compute what they were trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import clear_tensors, flux_model, inputs, run_forward


class Smoothed(torch.nn.Module):
    """Stands in for the host's quantised Linear, which this host does not have: AWQ smoothing, nothing rounded."""

    def __init__(self, linear: Any, scale: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight / scale)
        self.bias = linear.bias
        self.pre_quant_scale = torch.nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x * self.pre_quant_scale, self.weight, self.bias)


def smooth(model: Any) -> Any:
    """Some of a model's distilled layers and one other, as such a file would bring them; the same function."""
    flux = model.model.diffusion_model
    generator = torch.Generator().manual_seed(8)
    for owner, name in (
        (flux.double_blocks[0].img_attn, "qkv"),
        (flux.double_blocks[0].img_attn, "proj"),
        (flux.single_blocks[1], "linear1"),
        (flux.single_blocks[1], "linear2"),
    ):
        linear = getattr(owner, name)
        setattr(owner, name, Smoothed(linear, 0.3 + torch.rand(linear.weight.shape[1], generator=generator)))
    return model


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_smoothed_layer_computes_what_the_plain_one_does(
    host: Any, nodes_api: Any, tmp_path: Path, strength: float
) -> None:
    plain, smoothed, given = flux_model(), smooth(flux_model()), inputs(12, 16)
    assert (run_forward(smoothed, **given) - run_forward(plain, **given)).norm() < 1e-5
    save_file(clear_tensors(plain), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    expected = run_forward(nodes_api.apply(plain, weights, strength=strength), **given)
    out = run_forward(nodes_api.apply(smoothed, weights, strength=strength), **given)
    assert (out - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_scale_that_no_weight_can_follow_is_refused(host: Any, nodes_api: Any, tmp_path: Path, value: float) -> None:
    model = smooth(flux_model())
    with torch.no_grad():
        model.model.diffusion_model.double_blocks[0].img_attn.proj.pre_quant_scale[3] = value
    save_file(clear_tensors(flux_model()), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    with pytest.raises(ValueError, match=r"pre_quant_scale of 0, infinity or NaN in double_blocks.0.img_attn.proj"):
        nodes_api.apply(model, weights)
    assert nodes_api.apply(model, weights, strength=0.0)
