"""CLEAR ControlNet: CONTROL_NET -> CONTROL_NET with an attention window of its own."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.backends import AUTO, backend_names
from . import host
from .options.clear import MAX_RADIUS, ClearSettings, check_window
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEARControlNet(io.ComfyNode):
    """Goes between the ControlNet's loader and Apply ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARControlNet",
            display_name="CLEAR ControlNet",
            category=CATEGORY,
            description="Gives a ControlNet for FLUX.1 an attention window as well, so that it does not slow down "
            "large images. Without this node a ControlNet works too, with full attention.",
            search_aliases=["clear", "controlnet", "control net", "union", "canny", "tile"],
            inputs=[
                make(
                    io.ControlNet.Input,
                    "control_net",
                    tooltip="A ControlNet for FLUX.1: InstantX, Shakker, XLabs and the like.",
                ),
                make(
                    io.Int.Input,
                    "radius",
                    default=32,
                    min=1,
                    max=MAX_RADIUS,
                    tooltip="Radius of the ControlNet's attention window, in image tokens of 16 pixels. ControlNets "
                    "were not trained with a window: 32 is close to full attention, 16 is faster.",
                ),
                make(
                    io.Combo.Input,
                    "backend",
                    options=list(backend_names()),
                    default=AUTO,
                    advanced=True,
                    tooltip="Implementation of the attention. auto: the fastest that runs on this machine. The result "
                    "is the same.",
                ),
            ],
            outputs=[io.ControlNet.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=CACHED_PER_NODE_ID,
        )

    @classmethod
    def validate_inputs(cls, radius: int | None = None, backend: str | None = None) -> bool | str:
        try:
            check_window(1 if radius is None else radius, backend or AUTO)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, control_net: Any, radius: int, backend: str) -> io.NodeOutput:
        settings = ClearSettings(window=check_window(radius, backend), backend=backend)
        windowed, report = host.window_control(control_net, settings, node_id=cls.hidden.unique_id)
        return io.NodeOutput(windowed, ui={"text": (report.headline,)})
