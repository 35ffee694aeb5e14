"""Nodes that CLEAR High-Res Upscale adds to the graph that it expands into. Users never place them."""

from __future__ import annotations

from typing import Any, Final

from comfy_api.latest import io

from .schema import CATEGORY, make

MAX_STAGES = 6
_STAGES = io.Custom("CLEAR_STAGES")
# The page's two ways to leave a node out of its search and menus; the second came with newer hosts.
HIDDEN: Final = {"is_deprecated": True, "is_dev_only": True}


class CLEARItem(io.ComfyNode):
    """One of the values on a link, which may carry a list; ComfyUI then calls the upscale once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARItem",
            display_name="CLEAR Item",
            category=f"{CATEGORY}/internal",
            **HIDDEN,
            description="Part of CLEAR High-Res Upscale, which adds it automatically.",
            inputs=[
                make(io.AnyType.Input, "values", tooltip="What is linked to the upscale."),
                make(io.Int.Input, "number", default=0, min=0, tooltip="Index into the values."),
            ],
            outputs=[io.AnyType.Output()],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, values: list[Any], number: list[int]) -> io.NodeOutput:
        # As the host does for lists of different length: the shorter one repeats its last value.
        return io.NodeOutput(values[min(number[0], len(values) - 1)])


class CLEARStages(io.ComfyNode):
    """Collects the stages' images, of different sizes, into one value: an expanded graph cannot return a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARStages",
            display_name="CLEAR Stages",
            category=f"{CATEGORY}/internal",
            **HIDDEN,
            description="Part of CLEAR High-Res Upscale, which adds it automatically.",
            inputs=[
                make(io.Image.Input, f"image_{i}", optional=True, tooltip="The image of a stage.")
                for i in range(1, MAX_STAGES + 1)
            ],
            outputs=[_STAGES.Output()],
        )

    @classmethod
    def execute(cls, **images: Any) -> io.NodeOutput:
        # A tiny image takes more stages than there are inputs to show; the host passes on all of them.
        given = [name for name, image in images.items() if image is not None]
        return io.NodeOutput([images[name] for name in sorted(given, key=lambda name: int(name.rpartition("_")[2]))])
