"""CLEAR Attention Map: the attention of one query in one layer, dense and through CLEAR's window, side by side."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.show.numbers import percent as in_percent
from ..clear_core.weights import BlockId
from . import host
from .insight.attention_row import AttentionMass
from .insight.map_figure import MapFigure, map_page
from .insight.map_picture import map_picture
from .insight.picture import as_image, page_theme
from .options.blocks import parse_blocks
from .schema import CACHED_PER_NODE_ID, CATEGORY, make

_MAX_HEAD = 127


class CLEARAttentionMap(io.ComfyNode):
    """Runs one forward of the model, up to the chosen layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARAttentionMap",
            display_name="CLEAR Attention Map",
            category=CATEGORY,
            description="Shows what one image token attends to in one layer of the model, with full attention and with "
            "CLEAR's attention window side by side, and how much of the full attention lies in the window.",
            search_aliases=["clear", "attention", "heat map", "heatmap", "visualize", "explain", "head", "layer"],
            inputs=_inputs(),
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="text")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            not_idempotent=CACHED_PER_NODE_ID,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, percent: float | None = None, block: str | None = None, x: float | None = None, y: float | None = None
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            _check_shares(percent=percent, x=x, y=y)
            if block is not None:
                _one_block(block)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: Any,
        seed: int,
        percent: float,
        block: str,
        head: int,
        x: float,
        y: float,
    ) -> io.NodeOutput:
        _check_shares(percent=percent, x=x, y=y)
        request = host.ProbeRequest(_one_block(block), head, percent, x, y)
        result = host.probe_attention(model, positive, latent_image, request, seed=seed)
        text = _described(request, result)
        figure = _figure(request, result)
        page = map_page(figure, page_theme(host.page_is_light()))
        image = as_image(page)
        host.node_text_sender(cls.hidden.unique_id)(text)
        (saved,) = ui.PreviewImage(image, cls=cls).values
        # A key of this pack's own: the page itself would draw "images" a second time.
        return io.NodeOutput(image, text, ui={"text": (text,), "clear_map": (map_picture(figure, page, saved),)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX model. Connect it through Apply CLEAR Attention to use its window and weights; otherwise "
            "the node shows a window of radius 16 over the model's own attention.",
        ),
        make(
            io.Conditioning.Input,
            "positive",
            tooltip="The prompt, with guidance and all else that a sampler would get.",
        ),
        make(
            io.Latent.Input,
            "latent_image",
            tooltip="The image to probe: a picture through VAE Encode, or the result of a sampler. The node adds noise "
            "according to percent. From a batch it takes the first image.",
        ),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the added noise. Use the seed of the sampler that made the latent to reproduce its "
            "attention.",
        ),
        make(
            io.Float.Input,
            "percent",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Position in the sampling schedule. 0: the first step, pure noise. 1: the end, no noise. 0.5 shows "
            "layout and objects.",
        ),
        make(
            io.String.Input,
            "block",
            default="s18",
            tooltip="The transformer block: d and a number for a double block (d0 to d18 in FLUX.1), s for a single "
            "block (s0 to s37). s18 is in the middle.",
        ),
        make(
            io.Int.Input,
            "head",
            default=-1,
            min=-1,
            max=_MAX_HEAD,
            tooltip="The attention head, 0 to 23 in FLUX.1. -1: the mean of all heads.",
        ),
        make(
            io.Float.Input,
            "x",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Horizontal position of the query token. 0: left, 0.5: middle, 1: right.",
        ),
        make(
            io.Float.Input,
            "y",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Vertical position of the query token. 0: top, 0.5: middle, 1: bottom.",
        ),
    ]


def _check_shares(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{name} is {value}; allowed is 0 to 1")


def _one_block(text: str) -> BlockId:
    """Raises ValueError unless the text names a single block."""
    try:
        (span,) = parse_blocks(text).spans
    except ValueError:
        span = None
    if span is None or span[1] != span[2]:
        raise ValueError(
            f"block is {text!r:.60}; write one block: d and a number for a double block, s for a single one, counted "
            "from 0, such as d3 or s12"
        )
    return BlockId(span[0], span[1])


def _figure(request: host.ProbeRequest, result: host.ProbeResult) -> MapFigure:
    row, radius = result.row, result.settings.window.radius
    own = f"CLEAR, radius {radius}" if result.patched else f"A window of radius {radius}; this model has no CLEAR"
    own += " (this layer runs dense)" if result.left_dense else ""
    return MapFigure(
        title=f"Attention of one image token: {_layer(request, result)}",
        subtitle=f"{result.family}, at {request.percent:g} of the schedule (sigma {result.sigma:.3g}); query at row "
        f"{row.row}, column {row.column} of {row.layout.image} image tokens",
        names=("Dense", own),
        row=row,
        down_factor=result.settings.down_factor,
        window=result.settings.window,
        picture=result.picture,
        verdict=_verdict(result),
    )


def _layer(request: host.ProbeRequest, result: host.ProbeResult) -> str:
    head = f"mean of {result.heads} heads" if request.head < 0 else f"head {request.head}"
    return f"{request.block.kind} block {request.block.index}, {head}"


def _verdict(result: host.ProbeResult) -> str:
    row = result.row
    return (
        f"{in_percent(row.inside)} of the dense attention to the image lies in the window, which covers "
        f"{in_percent(row.window_tokens / row.layout.image.tokens)} of the image."
    )


def _described(request: host.ProbeRequest, result: host.ProbeResult) -> str:
    row, settings = result.row, result.settings
    lines = [
        f"{result.family}, {_layer(request, result)}, at {request.percent:g} of the schedule (sigma "
        f"{result.sigma:.3g}), query at row {row.row}, column {row.column} of {row.layout.image} image tokens",
        f"dense: {_listed(row.dense_mass, 'image')}",
        f"radius {settings.window.radius}: {_listed(row.local_mass, 'window')}",
        _verdict(result),
    ]
    if not result.patched:
        lines.append(f"This model has no CLEAR; the node uses radius {settings.window.radius} as an example.")
    if result.left_dense:
        lines.append(f"This layer runs dense, {result.left_dense}. The window is shown for comparison.")
    if result.banded:
        lines.append("CLEAR Multi-GPU was left out: this forward ran without bands, on one device.")
    return "\n".join(lines)


def _listed(mass: AttentionMass, image: str) -> str:
    parts = [("text", mass.text), (image, mass.image)]
    more = (("references", mass.references), ("down-sampled tokens", mass.pooled))
    parts += [(name, share) for name, share in more if share]
    return ", ".join(f"{name} {in_percent(share)}" for name, share in parts)
