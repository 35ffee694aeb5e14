"""FLUX models from the host's own classes, as MODELs that nodes can patch and samplers can run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor


@dataclass
class Golden:
    """One file of the authors' own output, and the tiny model that made it."""

    name: str
    tensors: dict[str, Tensor]
    height: int
    width: int
    text: int
    radius: int
    down_factor: int
    proportional: bool
    ntk_factor: float
    config: dict[str, Any]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Golden:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(
            path.stem,
            tensors,
            int(meta["h"]),
            int(meta["w"]),
            int(meta["txt"]),
            int(meta["window"]),
            int(meta["down"]),
            meta["prop"] == "1",
            float(meta["ntk"]),
            json.loads(meta["cfg"]),
            meta,
        )

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, cloned: the host's converter swaps some of them in place."""
        return {k[len(prefix) :]: v.clone() for k, v in self.tensors.items() if k.startswith(prefix)}

    def model(self) -> Any:
        """The base model as a MODEL, without CLEAR's weights."""
        import comfy.model_detection

        config = self.config
        dim = config["attention_head_dim"] * config["num_attention_heads"]
        model = flux_model(
            depth=config["num_layers"],
            depth_single_blocks=config["num_single_layers"],
            hidden_size=dim,
            num_heads=config["num_attention_heads"],
            context_in_dim=config["joint_attention_dim"],
            vec_in_dim=config["pooled_projection_dim"],
            axes_dim=config["axes_dims_rope"],
            guidance_embed=config["guidance_embeds"],
        )
        state = comfy.model_detection.convert_diffusers_mmdit(self.part("base."), "")
        missing, unexpected = model.model.diffusion_model.load_state_dict(state, strict=False)
        assert not missing and not unexpected, (missing, unexpected)
        return model

    def forward(self, model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """The output of a patched MODEL for this file's inputs, packed as `x` is: [batch, tokens, channels]."""
        of = {name: tensor.to(dtype) for name, tensor in self.tensors.items()}
        latent = unpacked(of["x"], self.height)
        out = run_forward(model, latent, *(of[name] for name in ("t", "context", "y", "guidance")))
        return packed(out)


def packed(latent: Tensor) -> Tensor:
    """A latent [batch, channels, height, width] as FLUX's tokens: [batch, height / 2 * width / 2, 4 * channels]."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(tokens: Tensor, height: int) -> Tensor:
    """The latent of FLUX's tokens. height: of their grid."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)


def sinusoids(frequencies: Tensor) -> Callable[[Tensor, int], Tensor]:
    """The host's `timestep_embedding` with other frequencies, [128]: their last bit moves outputs by 1e-5."""

    def embedding(t: Tensor, dim: int) -> Tensor:
        assert dim == 2 * len(frequencies)
        angles = (1000.0 * t)[:, None].float() * frequencies[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(t)

    return embedding


def flux_model(*, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A FLUX.1 MODEL of any size from the host's classes, random but the same each time. Tiny by default."""
    import comfy.ldm.flux.model
    import comfy.supported_models

    config: dict[str, Any] = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "mlp_ratio": 4.0,
        "theta": 10000,
        "qkv_bias": True,
        "depth": 1,
        "depth_single_blocks": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "context_in_dim": 24,
        "vec_in_dim": 12,
        "axes_dim": [4, 6, 6],
        "guidance_embed": True,
    }
    config.update(overrides)
    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        config.setdefault("txt_ids_dims", [])  # hosts from 0.8 on ask for it
    return _model(comfy.supported_models.Flux(config), device, dtype)


def flux2_model(**overrides: Any) -> Any:
    """A tiny FLUX.2 MODEL: four position axes, a patch of one latent cell, one modulation for all blocks."""
    import comfy.ldm.flux.model
    import comfy.supported_models

    config: dict[str, Any] = {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "mlp_ratio": 3.0,
        "theta": 2000,
        "qkv_bias": False,
        "depth": 1,
        "depth_single_blocks": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "context_in_dim": 24,
        "vec_in_dim": None,
        "axes_dim": [4, 4, 4, 4],
        "guidance_embed": True,
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }
    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        config["txt_ids_dims"] = [3]
    return _model(comfy.supported_models.Flux2(config | overrides), "cpu", torch.float32)


def chroma_model(**overrides: Any) -> Any:
    """A tiny Chroma MODEL: FLUX.1's blocks, modulated by one small network."""
    import comfy.ldm.chroma.model
    import comfy.supported_models

    config: dict[str, Any] = {
        "image_model": "chroma",
        "in_channels": 64,
        "out_channels": 64,
        "patch_size": 2,
        "mlp_ratio": 4.0,
        "theta": 10000,
        "qkv_bias": True,
        "depth": 1,
        "depth_single_blocks": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "context_in_dim": 24,
        "axes_dim": [4, 6, 6],
        "in_dim": 64,
        "out_dim": 32,
        "hidden_dim": 16,
        "n_layers": 1,
    }
    if "txt_ids_dims" in comfy.ldm.chroma.model.ChromaParams.__dataclass_fields__:
        config |= {"txt_ids_dims": [], "vec_in_dim": None}
    return _model(comfy.supported_models.Chroma(config | overrides), "cpu", torch.float32)


def _model(supported: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """A MODEL of one of the host's configurations, its weights random but the same each time."""
    import comfy.model_patcher
    import comfy.ops

    supported.custom_operations = comfy.ops.disable_weight_init
    supported.set_inference_dtype(dtype, None)
    device = torch.device(device)
    base = supported.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in base.diffusion_model.named_parameters():
            fan = parameter.shape[-1] if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator, device=device, dtype=dtype)
            parameter.copy_(1 + 0.1 * noise if name.endswith("scale") else noise * (0.5 / fan**0.5))
    return comfy.model_patcher.ModelPatcher(base, device, device)


FULL_SIZE: dict[str, Any] = {
    "depth": 19,
    "depth_single_blocks": 38,
    "hidden_size": 3072,
    "num_heads": 24,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "axes_dim": [16, 56, 56],
}
"""FLUX.1-dev: 12 billion parameters."""


def run_forward(
    model: Any,
    latent: Tensor,
    timestep: Tensor,
    context: Tensor,
    pooled_text: Tensor | None = None,
    guidance: Tensor | None = None,
    **extra: Any,
) -> Tensor:
    """One forward of a patched MODEL, loaded and called through the host as a sampler does; the velocity."""
    import comfy.model_management
    import comfy.sampler_helpers

    comfy.model_management.load_models_gpu([model])
    options = {**model.model_options, "transformer_options": dict(model.model_options["transformer_options"])}
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    # Taken from the transformer itself: dividing the sampler's x - denoised by sigma would lose digits.
    velocity: list[Tensor] = []
    hook = model.model.diffusion_model.register_forward_hook(lambda module, args, out: velocity.append(out))
    try:
        with torch.no_grad():
            model.model.apply_model(
                latent,
                timestep,
                c_crossattn=context,
                y=pooled_text,
                guidance=guidance,
                transformer_options=options["transformer_options"],
                **extra,
            )
    finally:
        hook.remove()
    return velocity[0]


def inputs(
    height: int, width: int, text: int = 9, batch: int = 1, channels: int = 16, seed: int = 1
) -> dict[str, Tensor]:
    """Random inputs of one forward for `flux_model`: a latent of height x width (two to a token)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "latent": torch.randn(batch, channels, height, width, generator=generator),
        "timestep": torch.full((batch,), 0.6),
        "context": torch.randn(batch, text, 24, generator=generator),
        "pooled_text": torch.randn(batch, 12, generator=generator),
        "guidance": torch.full((batch,), 3.5),
    }


def sample(
    model: Any,
    height: int,
    width: int,
    *,
    steps: int = 2,
    text: int = 9,
    seed: int = 5,
    cond: dict[str, Any] | None = None,
    prompt: dict[str, Tensor] | None = None,
    noise: Tensor | None = None,
    start: Tensor | None = None,
    denoise: float = 1.0,
    first: tuple[Any, int] | None = None,
    **options: Any,
) -> Tensor:
    """A whole sampling run of a MODEL through the host's guider, Euler, CFG 1. The final latent.

    cond: what nodes would have put into the conditioning. prompt: the context and the pooled text, for a model of other
    widths than the tiny one's. noise: [batch, 16, height, width], else drawn from the seed for one image. start: a
    latent of that shape to be sampled again, of which `denoise` is noised, as by BasicScheduler. first: another MODEL
    for so many of the first steps, as by SplitSigmas and two samplers.
    """
    import comfy.samplers

    given = prompt or inputs(height, width, text)
    positive = [[given["context"], {"pooled_output": given["pooled_text"], "guidance": 3.5, **(cond or {})}]]
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", int(steps / denoise))[-(steps + 1) :]
    if noise is None:
        noise = torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(seed))
    sampler = comfy.samplers.sampler_object("euler")
    latent = torch.zeros_like(noise) if start is None else start

    def sampled(by: Any, noise: Tensor, latent: Tensor, sigmas: Tensor) -> Tensor:
        guider = comfy.samplers.CFGGuider(by)
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed, **options)

    if first is not None:
        other, count = first
        latent = sampled(other, noise, latent, sigmas[: count + 1])
        noise, sigmas = torch.zeros_like(noise), sigmas[count:]
    return sampled(model, noise, latent, sigmas)


def clear_tensors(model: Any, *, factor: int = 1, seed: int = 3) -> dict[str, Tensor]:
    """A complete set of CLEAR weights for a MODEL, random."""
    flux = model.model.diffusion_model
    generator = torch.Generator().manual_seed(seed)
    hidden = flux.hidden_size
    tensors: dict[str, Tensor] = {}
    for prefix, blocks, names in (
        ("transformer_blocks", flux.double_blocks, ("to_q", "to_k", "to_v", "to_out.0")),
        ("single_transformer_blocks", flux.single_blocks, ("to_q", "to_k", "to_v")),
    ):
        for i in range(len(blocks)):
            for name in names:
                tensors[f"{prefix}.{i}.attn.{name}.weight"] = torch.randn(hidden, hidden, generator=generator) * 0.2
                tensors[f"{prefix}.{i}.attn.{name}.bias"] = torch.randn(hidden, generator=generator) * 0.2
            if factor > 1:
                weight = torch.rand(1, 1, 1, factor, 1, factor, 1, generator=generator)
                tensors[f"{prefix}.{i}.attn.processor.spatial_weight"] = weight / weight.sum()
    return tensors
