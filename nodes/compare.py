"""Compare Images: the similarity of two images in numbers, their difference, and both under a slider on the node."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from comfy_api.latest import io
from torch import Tensor

from ..clear_core.evaluation.similarity import MS_SSIM_SIDE, SSIM_SIDE, Similarity, pixels_to_do, similarity
from . import host
from .insight.slider_images import slider_pairs
from .schema import CACHED_PER_NODE_ID, CATEGORY, make

_MAX_GAIN = 255.0


class CLEARCompare(io.ComfyNode):
    """Compares dense attention with CLEAR, or any two images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARCompare",
            display_name="Compare Images",
            category=CATEGORY,
            description="Measures the similarity of two images (PSNR, SSIM, MS-SSIM), shows where they differ, and "
            "shows both under a slider.",
            search_aliases=["clear", "compare", "difference", "psnr", "ssim", "ms-ssim", "quality", "slider", "a/b"],
            inputs=_inputs(),
            outputs=[io.String.Output(display_name="text"), io.Image.Output(display_name="difference")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=CACHED_PER_NODE_ID,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, gain: float | None = None) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            if gain is not None:
                _check_gain(gain)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, image_a: Tensor, image_b: Tensor, gain: float) -> io.NodeOutput:
        _check_gain(gain)
        _check_values("image_a", image_a)
        _check_values("image_b", image_b)
        a, b = (_without_alpha(images) for images in (image_a, image_b))
        _check_pair(a, b)
        count, (height, width) = max(len(a), len(b)), a.shape[1:3]
        bar = host.ProgressBar(count * pixels_to_do(height, width))
        difference = torch.empty(count, *a.shape[1:])
        found = []
        for i in range(count):
            # Images on a GPU or in another dtype are copied one at a time, not the whole batch.
            one, other = (images[i if len(images) > 1 else 0].to("cpu", torch.float32) for images in (a, b))
            torch.sub(one, other, out=difference[i]).abs_().mul_(gain).clamp_(max=1.0)
            found.append(similarity(one, other, bar.update))
        lines = [*_numbers(found), *_missing(found, height, width)]
        if 4 in (image_a.shape[-1], image_b.shape[-1]):
            lines.append("Transparency (alpha) was not compared.")
        text = "\n".join(lines)
        host.node_text_sender(cls.hidden.unique_id)(text)
        # A key of this pack's own: the page itself would draw "images" a second time.
        return io.NodeOutput(text, difference, ui={"text": (text,), "clear_compare": tuple(slider_pairs(a, b))})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(io.Image.Input, "image_a", tooltip="The reference image, such as one made without CLEAR."),
        make(
            io.Image.Input,
            "image_b",
            tooltip="The other image, of the same size. In batches: as many images as image_a, or one for all.",
        ),
        make(
            io.Float.Input,
            "gain",
            default=4.0,
            min=1.0,
            max=_MAX_GAIN,
            step=0.5,
            tooltip="Brightness of the difference image; the numbers do not change. 1 is the plain difference, 4 shows "
            "differences that the eye could find, 32 also shows rounding.",
        ),
    ]


def _check_gain(gain: float) -> None:
    if not (math.isfinite(gain) and 1 <= gain <= _MAX_GAIN):
        raise ValueError(f"gain is {gain}; allowed is 1 to {_MAX_GAIN:g}, 4 is usual")


def _check_values(name: str, images: Tensor) -> None:
    """Raises ValueError unless there are pixels and all of them are numbers."""
    if images.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(images.shape)}. Connect an image with pixels.")
    for number, image in enumerate(images, 1):
        # Takes no memory, unlike isfinite, and lets no NaN through.
        if not all(math.isfinite(extreme) for extreme in image.aminmax()):
            raise ValueError(
                f"{name} has pixels that are not numbers (NaN or infinite), image {number} of {len(images)}: making it "
                "failed. Make it again; where a VAE in half precision is the cause, start ComfyUI with --fp32-vae."
            )


def _without_alpha(images: Tensor) -> Tensor:
    return images[..., :3] if images.shape[-1] == 4 else images


def _check_pair(a: Tensor, b: Tensor) -> None:
    """Raises ValueError unless the images can be compared pixel by pixel."""
    if a.shape[1:3] != b.shape[1:3]:
        sizes = [f"{images.shape[2]} x {images.shape[1]}" for images in (a, b)]
        raise ValueError(
            f"image_a is {sizes[0]} pixels and image_b is {sizes[1]}; they must have the same size. Put an Upscale "
            "Image node before one of them, or make both at the same size."
        )
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"image_a has {a.shape[-1]} channels and image_b has {b.shape[-1]}; they must have the same (alpha aside). "
            "Connect two colour images."
        )
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(
            f"image_a is a batch of {len(a)} and image_b of {len(b)}; they must have the same length, "
            "or one of them must be a single image, which is then compared with all others. Take images out with "
            "ImageFromBatch."
        )


def _numbers(found: Sequence[Similarity]) -> list[str]:
    """A line for each pair of images."""
    lines = []
    for number, one in enumerate(found, 1):
        parts = [f"PSNR {one.psnr:.2f} dB"]
        named = (("SSIM", one.ssim), ("MS-SSIM", one.ms_ssim))
        parts += [f"{name} {value:.4f}" for name, value in named if value is not None]
        line = "identical, no pixel differs" if math.isinf(one.psnr) else ", ".join(parts)
        lines.append(f"image {number}: {line}" if len(found) > 1 else line)
    return lines


def _missing(found: Sequence[Similarity], height: int, width: int) -> list[str]:
    """What could not be computed, and why."""
    lines = []
    if any(one.ssim is None for one in found):
        lines.append(f"No SSIM: its window needs {SSIM_SIDE} pixels a side.")
    if any(one.ms_ssim is None for one in found):
        lines.append(
            f"No MS-SSIM: its last scale is a sixteenth of the size, so it needs {MS_SSIM_SIDE} pixels a side; this is "
            f"{width} x {height}."
        )
    return lines
