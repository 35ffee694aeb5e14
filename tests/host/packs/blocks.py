"""A block replacement that calls the block without options, and a wrapper that answers for the whole forward."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP


def without_options(model: Any, index: int) -> Any:
    patched = model.clone()

    def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        return extra["original_block"]({**args, "transformer_options": {}})

    patched.set_model_patch_replace(block, "dit", "single_block", index)
    return patched


def answering(model: Any) -> Any:
    patched = model.clone()

    def answer(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros_like(x)

    found = patched.model_options["transformer_options"].setdefault("wrappers", {})
    found[WrappersMP.DIFFUSION_MODEL] = {"blocks": [answer]}  # before all that the MODEL itself has
    return patched
