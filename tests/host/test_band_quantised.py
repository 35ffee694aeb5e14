"""Bands over layers of the host's quantised formats: every one that this host knows and that runs on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from devtools.models import flux_model, inputs, run_forward

from host.comparing import error

FORMATS = ("float8_e4m3fn", "nvfp4")


def quantised_model(quant_format: str, *, full_precision: bool) -> Any:
    """A small FLUX MODEL whose blocks' linear layers are quantised. full_precision: only their weights are."""
    import comfy.ops
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout = QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
    shape = {"hidden_size": 128, "num_heads": 2, "axes_dim": [16, 24, 24]}
    model = flux_model(dtype=torch.bfloat16, **shape)
    operations = comfy.ops.mixed_precision_ops({}, compute_dtype=torch.bfloat16)
    flux = model.model.diffusion_model
    for block in [*flux.double_blocks, *flux.single_blocks]:
        for name, plain in [*block.named_modules()]:
            if not isinstance(plain, torch.nn.Linear):
                continue
            layer = operations.Linear(plain.in_features, plain.out_features, bias=plain.bias is not None)
            layer.weight = torch.nn.Parameter(
                QuantizedTensor.from_float(plain.weight.data, layout), requires_grad=False
            )
            layer.bias, layer.layout_type, layer.quant_format = plain.bias, layout, quant_format
            layer._full_precision_mm = full_precision
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, layer)
    return model


def in_bfloat16(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.bfloat16() if isinstance(value, Tensor) and name != "timestep" else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("full_precision", [True, False], ids=["weights", "weights and inputs"])
def test_quantised_layers_in_bands(
    nodes_api: Any, in_bands: Callable[..., Any], casts: Counter[Any], full_precision: bool
) -> None:
    from comfy.quant_ops import QUANT_ALGOS

    known = [quant_format for quant_format in FORMATS if quant_format in QUANT_ALGOS]
    assert known
    for quant_format in known:
        patched = nodes_api.apply(quantised_model(quant_format, full_precision=full_precision), radius=3)
        given = in_bfloat16(inputs(48, 18))
        expected = run_forward(patched, **given).float()
        for devices in ("cpu", "cpu,cpu"):
            banded = in_bands(patched, 6, devices)
            casts.clear()
            out = run_forward(banded, **given).float()
            # Where inputs are quantised too, each band has a scale of its own: the format's rounding differs.
            bound = 4e-3 if full_precision else {"float8_e4m3fn": 1e-2, "nvfp4": 6e-2}[quant_format]
            assert error(out, expected) < bound
            assert max(casts.values(), default=0) <= len(devices.split(","))
