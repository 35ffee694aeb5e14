"""Teaches ComfyUI's loaders the small FLUX. The demo's server loads this as a custom node; it is no part of the pack.

That server knows none of this repository's modules: nothing of them is imported here.

The host takes FLUX.1's 24 heads of 128 for granted. The size of a head is in every file: the length of its norms.
"""

from __future__ import annotations

from typing import Any

NODE_CLASS_MAPPINGS: dict[str, Any] = {}

_NORM = "double_blocks.0.img_attn.norm.key_norm.scale"


def install() -> None:
    """From here on `detect_unet_config` reads the number and the size of heads from the file. Twice does no harm."""
    import comfy.model_detection

    known = comfy.model_detection.detect_unet_config
    if getattr(known, "reads_heads", False):
        return

    def detect_unet_config(state_dict: Any, key_prefix: str, **options: Any) -> Any:
        config = known(state_dict, key_prefix, **options)
        norm = state_dict.get(key_prefix + _NORM)
        if config is not None and config.get("image_model") == "flux" and norm is not None:
            head = len(norm)
            # FLUX.1's proportions: an eighth for the index, the rest for height and width.
            config["axes_dim"] = [head // 8, head * 7 // 16, head * 7 // 16]
            config["num_heads"] = config["hidden_size"] // head
        return config

    detect_unet_config.reads_heads = True  # pyright: ignore[reportFunctionMemberAccess]
    comfy.model_detection.detect_unet_config = detect_unet_config


install()
