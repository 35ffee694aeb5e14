"""CLEAR Attention Map: where one query of one layer looks, dense and through CLEAR's window, side by side."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.weights import BlockId
from . import host
from .insight.canvas import percent as in_percent
from .insight.map_figure import MapPage, map_picture
from .insight.probe import Shares
from .options.blocks import parse_blocks
from .schema import CACHED_PER_NODE_ID, CATEGORY, make

_MAX_HEAD = 127


class CLEARAttentionMap(io.ComfyNode):
    """Runs one forward of the model, up to the layer that is asked for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARAttentionMap",
            display_name="CLEAR Attention Map",
            category=CATEGORY,
            description="Shows where one place of the image looks in one layer of the model, dense and through CLEAR's "
            "window side by side, and how much of it lies in the window.",
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
        question = host.Question(_one_block(block), head, percent, x, y)
        answer = host.ask_attention(model, positive, latent_image, question, seed=seed)
        text = _described(question, answer)
        image = map_picture(_page(question, answer))
        host.node_text_sender(cls.hidden.unique_id)(text)
        preview = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui={**preview, "text": (text,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX model. From Apply CLEAR Attention, its window and weights count; without, radius 16 is "
            "drawn over the model's own attention.",
        ),
        make(io.Conditioning.Input, "positive", tooltip="The prompt, with guidance and what else a sampler would get."),
        make(
            io.Latent.Input,
            "latent_image",
            tooltip="What the model looks at: a picture through VAE Encode, or a sampler's result. Noise is added as "
            "percent says. Of a batch the first is taken.",
        ),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the noise that is added; as in the sampler that made the latent, to see what it saw.",
        ),
        make(
            io.Float.Input,
            "percent",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="When in sampling to look. 0: the first step, noise alone. 1: the end, no noise. 0.5 shows layout "
            "and objects.",
        ),
        make(
            io.String.Input,
            "block",
            default="s18",
            tooltip="Which block: d and a number for a double block (d0 to d18 in FLUX.1), s for a single one (s0 to "
            "s37). s18 is in the middle.",
        ),
        make(
            io.Int.Input,
            "head",
            default=-1,
            min=-1,
            max=_MAX_HEAD,
            tooltip="Which attention head, 0 to 23 in FLUX.1. -1: the mean of all.",
        ),
        make(
            io.Float.Input,
            "x",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The place that looks, across the image. 0: left, 0.5: the middle, 1: right.",
        ),
        make(
            io.Float.Input,
            "y",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The place that looks, down the image. 0: top, 0.5: the middle, 1: bottom.",
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


def _page(question: host.Question, answer: host.Answer) -> MapPage:
    look, radius = answer.look, answer.settings.window.radius
    own = f"CLEAR, radius {radius}" if answer.patched else f"A window of radius {radius}; this model has no CLEAR"
    own += " (this layer runs dense)" if answer.left_dense else ""
    return MapPage(
        title=f"Where a place of the image looks: {_layer(question, answer)}",
        subtitle=f"{answer.family}, at {question.percent:g} of the schedule (sigma {answer.sigma:.3g}); row "
        f"{look.row}, column {look.column} of {look.layout.image} tokens",
        names=("Dense", own),
        look=look,
        down_factor=answer.settings.down_factor,
        window=answer.settings.window,
        picture=answer.picture,
        verdict=_verdict(answer),
    )


def _layer(question: host.Question, answer: host.Answer) -> str:
    head = f"mean of {answer.heads} heads" if question.head < 0 else f"head {question.head}"
    return f"{question.block.kind} block {question.block.index}, {head}"


def _verdict(answer: host.Answer) -> str:
    look = answer.look
    return (
        f"Inside the window: {in_percent(look.inside)} of what the dense query looks at in the image. "
        f"The window is {in_percent(look.window_tokens / look.layout.image.tokens)} of the image."
    )


def _described(question: host.Question, answer: host.Answer) -> str:
    look, settings = answer.look, answer.settings
    lines = [
        f"{answer.family}, {_layer(question, answer)}, at {question.percent:g} of the schedule (sigma "
        f"{answer.sigma:.3g}), query at row {look.row}, column {look.column} of {look.layout.image} tokens",
        f"dense: {_listed(look.dense_shares, 'image')}",
        f"radius {settings.window.radius}: {_listed(look.local_shares, 'window')}",
        _verdict(answer),
    ]
    if not answer.patched:
        lines.append(f"This model has no CLEAR: radius {settings.window.radius}, the usual one, was taken.")
    if answer.left_dense:
        lines.append(f"This layer runs dense, {answer.left_dense}. The window is shown for comparison.")
    if answer.banded:
        lines.append("CLEAR Multi-GPU was left out: this ran without bands, on one device.")
    return "\n".join(lines)


def _listed(shares: Shares, image: str) -> str:
    parts = [("text", shares.text), (image, shares.image)]
    parts += [
        (name, share) for name, share in (("references", shares.references), ("coarse view", shares.coarse)) if share
    ]
    return ", ".join(f"{name} {in_percent(share)}" for name, share in parts)
