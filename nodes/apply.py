"""Apply CLEAR Attention: MODEL -> MODEL whose image attention is a circular window."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.backends import AUTO, backend_names
from ..clear_core.weights import ClearWeights
from . import host
from .options.blocks import ALL, parse_blocks
from .options.clear import (
    MAX_DOWN_FACTOR,
    MAX_NTK_FACTOR,
    MAX_RADIUS,
    REFERENCE_VIEWS,
    check_choices,
    check_range,
    resolve_settings,
    within,
)
from .schema import CATEGORY, CLEAR_WEIGHTS, SPEAKS_ON_ITS_NODE, make


class CLEARApply(io.ComfyNode):
    """Patches a FLUX.1 model; the one that came in stays as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARApply",
            display_name="Apply CLEAR Attention",
            category=CATEGORY,
            description="Makes FLUX.1 look at a circle around each place of the image instead of at the whole image, "
            "so that large images cost time in proportion to their pixels.",
            search_aliases=["clear", "linear attention", "local attention", "flux high resolution", "4k", "8k"],
            inputs=_inputs(),
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=SPEAKS_ON_ITS_NODE,
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent: float | None = None,
        end_percent: float | None = None,
        backend: str | None = None,
        references: str | None = None,
        blocks: str | None = None,
        strength: float | None = None,
        ntk_factor: float | None = None,
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            check_choices(backend or AUTO, references or "window")
            parse_blocks(ALL if blocks is None else blocks)
            if start_percent is not None and end_percent is not None:
                check_range(start_percent, end_percent)
            if strength is not None:
                within("strength", strength, 0.0, 1.0)
            if ntk_factor is not None:
                within("ntk_factor", ntk_factor, 1.0, MAX_NTK_FACTOR)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: Any, weights: ClearWeights | None = None, references: str = "window", **inputs: Any
    ) -> io.NodeOutput:
        settings = resolve_settings(weights, references=references, **inputs)
        patched, report = host.apply_clear(model, settings, weights, node_id=cls.hidden.unique_id)
        return io.NodeOutput(patched, ui={"text": (report.headline,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX.1 model: dev, schnell, Krea, Fill, Canny, Depth or Kontext. FLUX.2 and Chroma without "
            "weights.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "weights",
            optional=True,
            tooltip="The distilled attention weights. Without them the window is used untrained, which costs quality.",
        ),
        make(
            io.Int.Input,
            "radius",
            default=0,
            min=0,
            max=MAX_RADIUS,
            tooltip="How far each place of the image looks, in tokens of 16 pixels. 0: as the weights were trained "
            "(8, 16 or 32). Larger keeps more of the whole in view and takes longer.",
        ),
        make(
            io.Int.Input,
            "down_factor",
            default=0,
            min=0,
            max=MAX_DOWN_FACTOR,
            advanced=True,
            tooltip="Also show each place a coarse view of the whole image, one token for f x f. "
            "0: as the weights were trained, 1: none, 4: the trained value. Cures repeated patterns.",
        ),
        make(
            io.Float.Input,
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the distilled weights. 1: all of them, 0: the model's own weights with the window alone.",
        ),
        make(
            io.Combo.Input,
            "backend",
            options=list(backend_names()),
            default="auto",
            advanced=True,
            tooltip="What computes the attention. auto takes the fastest that runs here; the result is the same.",
        ),
        make(
            io.Float.Input,
            "ntk_factor",
            default=1.0,
            min=1.0,
            max=MAX_NTK_FACTOR,
            step=0.5,
            advanced=True,
            tooltip="Stretches positions for images larger than FLUX was trained on. 1 up to 2K, 10 for 4K and over.",
        ),
        make(
            io.Boolean.Input,
            "proportional_attention",
            default=False,
            advanced=True,
            tooltip="Keeps attention as sharp on large images as on 1K ones. On for 4K and over.",
        ),
        make(
            io.Float.Input,
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling the window begins; before it, attention is dense. 0: from the first step.",
        ),
        make(
            io.Float.Input,
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling the window ends; after it, attention is dense. 1: to the last step.",
        ),
        make(
            io.Combo.Input,
            "references",
            options=list(REFERENCE_VIEWS),
            default="window",
            # Optional, so that prompts written without it stay valid.
            optional=True,
            advanced=True,
            tooltip="How the image sees reference images (Kontext): a window at the same place, or all of them, "
            "which is slower and follows things that move.",
        ),
        make(
            io.String.Input,
            "blocks",
            default=ALL,
            optional=True,
            advanced=True,
            tooltip="Which of the model's blocks use the window; the others stay as they were, dense and with the "
            "model's own weights. all, double, single, or a list such as s0-18, d3.",
        ),
    ]
