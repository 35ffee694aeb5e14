"""InceptionV3 for FID and IS, and LPIPS, both as torchmetrics has them, from files: nothing is fetched implicitly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.evaluation.measures import Measure, NotAvailableError
from ....clear_core.evaluation.metrics import INCEPTION, LPIPS, LPIPS_SIDE
from .weights import Files

_FEATURES, _LOGITS = 2048, 1008
_ROOM = 2**31  # bytes of a device, for a batch through either network


def inception(files: Files) -> Measure:
    """Features and unbiased logits of images. Raises NotAvailableError."""
    path = files.path(INCEPTION)
    network_class = _torchmetrics("image.fid", "NoTrainInceptionV3")

    @cache  # loaded when the first rows are computed: none are where all are kept
    def network() -> Any:
        try:
            made = network_class("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        except ModuleNotFoundError as error:
            raise NotAvailableError(
                "the package torch-fidelity, which has InceptionV3 as FID needs it, is not installed. Run pip install "
                "torch-fidelity with ComfyUI's Python"
            ) from error
        return _placed(made)

    def rows(images: Sequence[Tensor]) -> Tensor:
        out = torch.empty(len(images), _FEATURES + _LOGITS)
        for at, image in enumerate(images):  # one at a time: each has its own size
            pixels = image.movedim(-1, 0)[None].to(_device())
            out[at] = torch.cat(network()._torch_fidelity_forward(pixels), 1)[0].cpu()
        return out

    return Measure(f"{files.identity(INCEPTION)}, resized with antialiasing", _FEATURES + _LOGITS, rows, _FEATURES)


def lpips(files: Files) -> Measure:
    """The distance of pairs; NaN where the sizes differ or a side is too short. Raises NotAvailableError."""
    path = files.path(LPIPS)
    network_class = _torchmetrics("functional.image.lpips", "_LPIPS")

    @cache
    def network() -> Any:
        # Its linear layers come with torchmetrics; `pnet_rand` keeps it from fetching the backbone.
        made = network_class(pretrained=True, net="alex", pnet_rand=True)
        backbone = torch.load(path, map_location="cpu", weights_only=True)
        for part in made.net.children():
            for number, layer in part.named_children():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.load_state_dict({name: backbone[f"features.{number}.{name}"] for name in ("weight", "bias")})
        return _placed(made)

    def rows(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        out = torch.full((len(pairs), 1), math.nan)
        for at, (a, b) in enumerate(pairs):
            if a.shape == b.shape and min(a.shape[:2]) >= LPIPS_SIDE:
                one, other = (image.to(_device()).movedim(-1, 0)[None] / 255 for image in (a, b))
                out[at] = network()(one, other, normalize=True).cpu().flatten()
        return out

    return Measure(files.identity(LPIPS), 1, rows)


def _torchmetrics(module: str, name: str) -> Callable[..., Any]:
    from importlib import import_module

    try:
        return getattr(import_module(f"torchmetrics.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise NotAvailableError(
            f"torchmetrics has no {name} ({error}). Run pip install -r requirements.txt, the file of this pack, with "
            "ComfyUI's Python"
        ) from error


def _device() -> torch.device:
    return comfy.model_management.get_torch_device()


def _placed(network: torch.nn.Module) -> torch.nn.Module:
    comfy.model_management.free_memory(_ROOM, _device())
    return network.eval().to(_device())
