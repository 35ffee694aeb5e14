"""Nodes that CLEAR High-Res Upscale adds to the graph that it expands into. Users never place them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from .options.stages import MAX_STAGES
from .schema import CATEGORY, make

_STAGES = io.Custom("CLEAR_STAGES")


def internal_schema(**arguments: Any) -> io.Schema:
    """Of a node that the upscale adds: the page's two ways to leave it out of its search and menus.

    The second came with newer hosts.
    """
    return make(
        io.Schema,
        category=f"{CATEGORY}/internal",
        description="Part of CLEAR High-Res Upscale, which adds it automatically.",
        is_deprecated=True,
        is_dev_only=True,
        **arguments,
    )


class CLEARItem(io.ComfyNode):
    """One of the values on a link, which may carry a list; ComfyUI then calls the upscale once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return internal_schema(
            node_id="CLEARItem",
            display_name="CLEAR Item",
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
        return internal_schema(
            node_id="CLEARStages",
            display_name="CLEAR Stages",
            inputs=_images("The image of a stage."),
            outputs=[_STAGES.Output()],
        )

    @classmethod
    def execute(cls, **images: Any) -> io.NodeOutput:
        return io.NodeOutput(_in_order(images))


class CLEARBatch(io.ComfyNode):
    """Joins a stage's images of one size into a batch again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return internal_schema(
            node_id="CLEARBatch",
            display_name="CLEAR Batch",
            inputs=_images("An image of the batch."),
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, **images: Any) -> io.NodeOutput:
        return io.NodeOutput(torch.cat(_in_order(images)))


def numbered(images: Sequence[Any]) -> dict[str, Any]:
    """Links as the inputs of a node here: image_1, image_2 ..."""
    return {f"image_{i}": image for i, image in enumerate(images, 1)}


def _images(tooltip: str) -> list[io.Input]:
    """As many as are usual; the host also passes on image_7 and so on, of a tiny image or a large batch."""
    return [make(io.Image.Input, f"image_{i}", optional=True, tooltip=tooltip) for i in range(1, MAX_STAGES + 1)]


def _in_order(images: Mapping[str, Any]) -> list[Any]:
    given = [name for name, image in images.items() if image is not None]
    return [images[name] for name in sorted(given, key=lambda name: int(name.rpartition("_")[2]))]
