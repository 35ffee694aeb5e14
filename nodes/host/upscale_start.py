"""What an upscale knows when it starts: its plan, told to the page, and the nodes whose progress it follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...clear_core.weights import ClearWeights
from ..insight.upscale_run import Part, stage_work
from ..options.bands import BandSettings
from ..options.clear import ApplyInputs, resolve_settings
from ..options.stages import Stage
from .flux_model import model_info
from .machine import machine
from .page.upscale import upscale_payload
from .upscale_progress import follow_upscale, send_upscale
from .vae import vae_plan


def start_upscale(
    node: str,
    model: Any,
    vae: Any,
    weights: ClearWeights | None,
    source: tuple[int, int],
    stages: Sequence[Stage],
    settings: BandSettings,
    steps: int,
    tiling: str,
    images: Sequence[Sequence[Mapping[Part, str]]],
) -> None:
    """node: that expands. source: width and height in pixels. images: of each, the nodes that compute each stage.

    Raises ValueError for a model that CLEAR does not work on.
    """
    info = model_info(model)
    clear = info.settings or resolve_settings(weights, ApplyInputs())
    vaes = {(stage.width, stage.height): vae_plan(vae, stage.width, stage.height, tiling) for stage in stages}
    work = [
        stage_work(stage, clear, info.size.layers, info.text, steps, vaes[stage.width, stage.height].way)
        for stage in stages
    ]
    for nodes in images:
        follow_upscale(node, stages, nodes, work)
    found = machine([device.name for device in settings.devices])
    plan = upscale_payload(
        source, stages, clear, settings, found, info.size.shape, lambda width, height: vaes[width, height]
    )
    send_upscale(node, {"plan": plan})
