"""Load Large Image: a file of the input folder, whole or a part of it -> IMAGE, MASK, beyond Pillow's limit too."""

from __future__ import annotations

from comfy_api.latest import io

from . import host
from .options.region import LONGEST, Region
from .schema import CATEGORY, make


class CLEARLoadLarge(io.ComfyNode):
    """Load Image for files that Load Image refuses as too large."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARLoadLarge",
            display_name="Load Large Image",
            category=CATEGORY,
            description="Loads an image, or a part of it, as Load Image does, also beyond 179 megapixels, which Load "
            "Image refuses.",
            search_aliases=[
                "clear",
                "load",
                "16k",
                "8k",
                "tiff",
                "crop",
                "region",
                "large image",
                "decompression bomb",
            ],
            inputs=_inputs(),
            outputs=[io.Image.Output(display_name="IMAGE"), io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def validate_inputs(
        cls,
        image: str | None = None,
        left: int | None = None,
        top: int | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            region = Region(left or 0, top or 0, width or 0, height or 0)
            if image is not None:
                host.check_region(image, region)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, image: str, left: int, top: int, width: int, height: int) -> str:
        # A file replaced under the same name is read again.
        return host.image_fingerprint(image)

    @classmethod
    def execute(cls, image: str, left: int, top: int, width: int, height: int) -> io.NodeOutput:
        return io.NodeOutput(*host.load_region(image, Region(left, top, width, height)))


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    start, length = {"default": 0, "min": 0, "max": LONGEST - 1}, {"default": 0, "min": 0, "max": LONGEST}
    return [
        make(
            io.Combo.Input,
            "image",
            options=host.input_images(),
            upload=io.UploadType.image,
            tooltip="A file of the input folder: PNG, JPEG, TIFF and BMP of any size, others as Load Image.",
        ),
        make(io.Int.Input, "left", **start, tooltip="The first column to load, in pixels."),
        make(io.Int.Input, "top", **start, tooltip="The first row to load, in pixels."),
        make(io.Int.Input, "width", **length, tooltip="Columns to load. 0: up to the right edge."),
        make(io.Int.Input, "height", **length, tooltip="Rows to load. 0: up to the bottom edge."),
    ]
