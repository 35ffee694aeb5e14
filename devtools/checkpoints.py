"""Demo model files: FLUX.1-dev's architecture at full width, one block of each kind, random weights.

FLUX is twelve billion parameters behind a licence. What a demonstration and a test need of it is its
shape: hidden size 3072, 24 heads, the 16-channel VAE, CLIP-L, all in files that ComfyUI's own loader
nodes accept. The weights are random, from fixed seeds, and scaled so that every layer has a say; the
pictures are textures, not photographs.

Runs with the host on the path: the tensors' names and shapes are asked of the host's own classes.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clear_core.whole_file import written_whole

HIDDEN = 3072
HEADS = 24
RADIUS = 8
DOWN_FACTOR = 4

FLUX = "diffusion_models/demo_flux_1_double_1_single.safetensors"
VAE = "vae/demo_ae.safetensors"
CLIP_L = "text_encoders/demo_clip_l.safetensors"
CLEAR = f"clear/clear_local_{RADIUS}_demo.safetensors"
CLEAR_DOWN = f"clear/clear_local_{RADIUS}_down_{DOWN_FACTOR}_demo.safetensors"
LORA = "loras/demo_lora.safetensors"

# Counts up when a recipe below changes: files made by an older one are made again.
_RECIPE = "1"
_RECIPE_KEY = "clear.demo"

AUTOENCODER: Mapping[str, Any] = MappingProxyType(
    {
        "double_z": True,
        "z_channels": 16,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
)
"""Of FLUX's, as ComfyUI's encoder and decoder take it."""

FLUX_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}

ALL = (FLUX, VAE, CLIP_L, CLEAR, CLEAR_DOWN, LORA)

Tensors = dict[str, Tensor]
Recipes = Mapping[str, Callable[[], tuple[Tensors, dict[str, str]]]]
"""File below the models folder -> what makes its tensors and metadata, in the order in which they need each other."""


def missing_demo_files(models: Path, names: Sequence[str] = ALL) -> list[str]:
    """Those of the demo files that are absent, cut short, or of an older recipe. Quick: reads headers only."""
    return [name for name in names if not _is_current(models / name)]


def make_demo_files(models: Path, say: Callable[[str], None] = print, names: Sequence[str] = ALL) -> None:
    """Put those of the demo files that are missing, or of an older recipe, below `models`."""
    recipes = _recipes(models)
    make_files(models, {name: recipes[name] for name in names}, say)


def make_clip_l(models: Path, say: Callable[[str], None] = print) -> None:
    """Put CLIP-L below `models`, and nothing else."""
    make_demo_files(models, say, (CLIP_L,))


def make_files(models: Path, recipes: Recipes, say: Callable[[str], None] = print) -> None:
    """Put every file that is missing, or of an older recipe, below `models`.

    A file appears complete or not at all. Same names, same bytes on every machine with the same torch.
    """
    for name in recipes:
        path = models / name
        if _is_current(path):
            continue
        started = time.perf_counter()
        tensors, metadata = recipes[name]()
        _save(path, tensors, metadata)
        size = path.stat().st_size / 1e6
        say(f"made {name} ({size:,.0f} MB, {time.perf_counter() - started:.1f} s)")


def _recipes(models: Path) -> Recipes:
    """CLEAR's files and the LoRA are made from FLUX's."""
    return {
        FLUX: lambda: (flux(), {}),
        VAE: lambda: (autoencoder(), {}),
        CLIP_L: lambda: (_clip_l(), {}),
        CLEAR: lambda: (nudged_attention(models / FLUX), variant(RADIUS)),
        CLEAR_DOWN: lambda: (nudged_attention(models / FLUX) | _spatial_weights(), variant(RADIUS, DOWN_FACTOR)),
        LORA: lambda: (random_lora(models / FLUX), {}),
    }


# ---- the recipes -------------------------------------------------------------------------------------


def flux(**overrides: Any) -> Tensors:
    """FLUX.1-dev, or with other sizes (`comfy.ldm.flux.model.FluxParams`) a relative of it."""
    return awakened(random_like(flux_shapes(**overrides)))


def flux_shapes(**overrides: Any) -> Tensors:
    """The same as meta tensors."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    model = Flux(
        **FLUX_SIZES | overrides,
        dtype=torch.bfloat16,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    return model.state_dict()


def awakened(tensors: Tensors) -> Tensors:
    """A random FLUX in which every block has a say."""
    for key, tensor in tensors.items():
        if key.endswith("norm.scale"):
            # Queries and keys a little long, so that attention picks instead of averaging everything.
            tensor.fill_(1.5)
        elif "mod.lin.weight" in key or "modulation.lin.weight" in key:
            # The gates: with a unit gain every block would be a whisper beside its own residual.
            tensor.mul_(3)
    return tensors


def autoencoder(channels: int = 16, *, quantised: bool = False) -> Tensors:
    """FLUX's autoencoder at its real size. quantised: with the convolutions around the latent that SD 1.5 has."""
    import comfy.ldm.models.autoencoder as models

    config = {**AUTOENCODER, "z_channels": channels}
    with torch.device("meta"):
        if quantised:
            model: Any = models.AutoencoderKL(ddconfig=config, embed_dim=channels)
        else:
            model = models.AutoencodingEngine(
                regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
                encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
                decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": config},
            )
    return random_like(model.state_dict())


def _clip_l() -> Tensors:
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    folder = Path(comfy.sd1_clip.__file__).parent
    config = json.loads((folder / "sd1_clip_config.json").read_text(encoding="utf-8"))
    model = comfy.clip_model.CLIPTextModel(
        config, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
    )
    return random_like(model.state_dict())


def nudged_attention(flux: Path) -> Tensors:
    """CLEAR weights for a FLUX's file: its own image attention, one tenth of it replaced by noise, as if distilled."""
    out: Tensors = {}
    with safe_open(str(flux), framework="pt") as base:
        blocks = sorted({tuple(key.split(".")[:2]) for key in base.keys() if "_blocks." in key})  # noqa: SIM118
        for block, index in blocks:
            for kind in ("weight", "bias"):
                if block == "double_blocks":
                    key = f"transformer_blocks.{index}.attn"
                    qkv = base.get_tensor(f"{block}.{index}.img_attn.qkv.{kind}").chunk(3)
                    out[f"{key}.to_out.0.{kind}"] = base.get_tensor(f"{block}.{index}.img_attn.proj.{kind}")
                else:
                    key = f"single_transformer_blocks.{index}.attn"
                    hidden = base.get_slice(f"{block}.{index}.linear2.bias").get_shape()[0]
                    qkv = base.get_tensor(f"{block}.{index}.linear1.{kind}")[: 3 * hidden].chunk(3)
                out |= {f"{key}.{name}.{kind}": part for name, part in zip(("to_q", "to_k", "to_v"), qkv, strict=True)}
    return {key: _nudged(key, tensor) for key, tensor in out.items()}


def _spatial_weights() -> Tensors:
    f = DOWN_FACTOR
    out: Tensors = {}
    for kind in ("transformer_blocks", "single_transformer_blocks"):
        key = f"{kind}.0.attn.processor.spatial_weight"
        noise = torch.randn(1, 1, 1, f, 1, f, 1, generator=seeded(key))
        out[key] = ((1 + 0.2 * noise) / f**2).to(torch.bfloat16)
    return out


def random_lora(flux: Path, seed: str = "") -> Tensors:
    """Rank 4 on attention and MLP of both kinds of block, in kohya's names, strong enough to see. flux: FLUX's file."""
    rank = 4
    out: Tensors = {}
    with safe_open(str(flux), framework="pt") as base:
        for layer in (
            "double_blocks.0.img_attn.qkv",
            "double_blocks.0.img_mlp.0",
            "single_blocks.0.linear1",
            "single_blocks.0.linear2",
        ):
            rows, columns = base.get_slice(f"{layer}.weight").get_shape()
            name = "lora_unet_" + layer.replace(".", "_")
            down = torch.randn(rank, columns, generator=seeded(name + "down" + seed)) / columns**0.5
            up = torch.randn(rows, rank, generator=seeded(name + "up" + seed))
            out[f"{name}.lora_down.weight"] = down.to(torch.bfloat16)
            out[f"{name}.lora_up.weight"] = up.to(torch.bfloat16)
            out[f"{name}.alpha"] = torch.tensor(float(rank))
    return out


def variant(radius: int, down_factor: int = 1) -> dict[str, str]:
    """The metadata of a file of CLEAR weights."""
    return {"clear.radius": str(radius), "clear.down_factor": str(down_factor)}


# ---- random numbers and files ------------------------------------------------------------------------


def random_like(shapes: Mapping[str, Tensor]) -> Tensors:
    """Norms one, biases zero, everything else normal and divided by the square root of its fan-in."""
    out: Tensors = {}
    for key, meta in shapes.items():
        if meta.ndim < 2:
            one = key.endswith(("weight", "scale"))
            out[key] = torch.full(meta.shape, 1.0 if one else 0.0, dtype=torch.bfloat16)
            continue
        fan_in = meta[0].numel()
        noise = torch.randn(meta.shape, generator=seeded(key))
        out[key] = noise.mul_(fan_in**-0.5).to(torch.bfloat16)
    return out


def _nudged(key: str, tensor: Tensor) -> Tensor:
    noise = torch.randn(tensor.shape, generator=seeded(key))
    values = tensor.float()
    spread = values.std() if tensor.ndim > 1 else 0.1
    return (values + 0.1 * spread * noise).to(tensor.dtype)


def seeded(key: str) -> torch.Generator:
    """A generator of its own for each tensor: no tensor depends on the order in which they are made."""
    return torch.Generator().manual_seed(zlib.crc32(key.encode()))


def _is_current(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get(_RECIPE_KEY) == _RECIPE
    except Exception:  # absent, cut short, or something else by that name: make it again
        return False


def _save(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(path) as part:
            whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(whole, str(part), metadata | {_RECIPE_KEY: _RECIPE})
    except OSError as error:
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e9
        raise SystemExit(f"cannot write {path} ({need:.1f} GB): {error}. Make room and start again.") from error


if __name__ == "__main__":
    from comfy.cli_args import args

    args.cpu = True  # only shapes are asked of the host: no need to wake a GPU
    # The models folder, then the files to make; all without any.
    make_demo_files(Path(sys.argv[1]), names=sys.argv[2:] or ALL)
