"""A FLUX model on simulated cards, and a sampling run of it through the host's guider, as a sampler node does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .models import flux_model

SHAPE: dict[str, Any] = {
    "depth": 2,
    "depth_single_blocks": 2,
    "hidden_size": 128,
    "num_heads": 2,
    "axes_dim": [16, 24, 24],
}
"""As narrow as FLUX can be with heads of 64, which every fused kernel takes."""


def model_on(device: torch.device, *, dtype: torch.dtype = torch.bfloat16, fp8: bool = False, **shape: Any) -> Any:
    """A MODEL whose weights lie in main memory until the host loads them onto `device`.

    fp8: keep the weights of linear layers in 8 bits, as the host does with `weight_dtype` fp8_e4m3fn.
    """
    model = flux_model(dtype=dtype, **{**SHAPE, **shape})
    model.load_device = device
    if fp8:
        keep_in_fp8(model, dtype)
    return model


def keep_in_fp8(model: Any, dtype: torch.dtype) -> None:
    """Cast the weights of a MODEL's linear layers to 8 bits, to be cast in use to `dtype`, that of the activations."""
    model.model.manual_cast_dtype = dtype
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
        if isinstance(module, torch.nn.Linear):
            module.to(torch.float8_e4m3fn)


def control_net_on(device: torch.device, model: Any, kind: str) -> Any:
    """A ControlNet for a MODEL of `model_on`.

    kind: "instantx" (latent in, double and single blocks) or "xlabs" (picture in, double blocks).
    """
    import comfy.controlnet
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    instant = kind == "instantx"
    config: dict[str, Any] = {**model.model.model_config.unet_config, "dtype": torch.bfloat16, "device": "cpu"}
    config |= {"depth": 1, "depth_single_blocks": 1 if instant else 0}
    if instant:
        config |= {"latent_input": True, "num_union_modes": 3, "control_latent_channels": 16}
    net = ControlNetFlux(operations=comfy.ops.disable_weight_init, **config)
    ratio = 1 if instant else 8
    return comfy.controlnet.ControlNet(
        net, compression_ratio=ratio, load_device=device, manual_cast_dtype=None, extra_conds=["y", "guidance"]
    )


class _Noise:
    """As RandomNoise gives it."""

    seed = 5

    def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
        return torch.randn(latent["samples"].shape)


def sampling_inputs(
    model: Any,
    height: int,
    width: int,
    *,
    steps: int = 1,
    text: int = 9,
    batch: int = 1,
    cfg: float = 1.0,
    cond: dict[str, Any] | None = None,
    negative_text: int = 0,
) -> dict[str, Any]:
    """The inputs of SamplerCustomAdvanced for a latent of `height` x `width` cells.

    cond: what nodes put into both conditionings. negative_text: tokens of the negative prompt; 0 for as many.
    """
    import comfy.samplers

    def prompt(tokens: int) -> list[Any]:
        rest = {"pooled_output": torch.randn(1, 12), "guidance": 3.5, **(cond or {})}
        return [[torch.randn(1, tokens, 24), rest]]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(text), prompt(negative_text or text))
    guider.set_cfg(cfg)
    return {
        "noise": _Noise(),
        "guider": guider,
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps),
        "latent_image": {"samples": torch.zeros(batch, 16, height, width)},
    }


def sample_on(model: Any, height: int, width: int, **options: Any) -> Tensor:
    """The final latent on the model's device, as a sampler node has it. Options are those of `sampling_inputs`."""
    given = sampling_inputs(model, height, width, **options)
    latent = given["latent_image"]["samples"]
    noise = given["noise"].generate_noise(given["latent_image"])
    return given["guider"].sample(noise, latent, given["sampler"], given["sigmas"], disable_pbar=True, seed=5)
