"""Save Large Image: IMAGE -> PNG or TIFF, written in bands of rows, with the workflow in it."""

from __future__ import annotations

from typing import Final

from comfy_api.latest import io
from torch import Tensor

from . import host
from .insight.thumbnail import thumbnail
from .options.limits import one_of
from .schema import CATEGORY, make

_PNG, _TIFF = "png", "tiff"
_FORMATS: Final = (_PNG, _TIFF)


class CLEARSaveLarge(io.ComfyNode):
    """Save Image for images of which memory holds no second copy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARSaveLarge",
            display_name="Save Large Image",
            category=CATEGORY,
            description="Saves images as Save Image does, but row by row: 16384 x 16384 pixels take less than 100 MB "
            "of memory beside the image. Writes PNG or TIFF.",
            search_aliases=["clear", "save", "16k", "8k", "tiff", "png", "large image", "export"],
            inputs=_inputs(),
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format: str | None = None) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            if format is not None:
                one_of("format", format, _FORMATS)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str, format: str) -> io.NodeOutput:
        one_of("format", format, _FORMATS)
        metadata = host.image_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        saved = host.save_large(images, filename_prefix, format, metadata)
        if format == _PNG:
            return io.NodeOutput(ui={"images": saved})
        # Browsers show no TIFF: the page gets small pictures, and who asks the API finds the files beside them.
        return io.NodeOutput(ui={"images": [thumbnail(image) for image in images], "clear_files": saved})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(io.Image.Input, "images", tooltip="The images to save."),
        make(
            io.String.Input,
            "filename_prefix",
            default="CLEAR",
            tooltip="The prefix of the file names, as in Save Image: it may name folders, %date:yyyy-MM-dd%, or values "
            "of nodes such as %KSampler.seed%.",
        ),
        make(
            io.Combo.Input,
            "format",
            options=list(_FORMATS),
            default=_PNG,
            tooltip="png: opens its workflow when dropped onto the page. tiff: programs read parts of it quickly; the "
            "page cannot open its workflow.",
        ),
    ]
