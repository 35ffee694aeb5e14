"""Apply CLEAR Attention: MODEL -> MODEL whose image attention is a circular window."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.backends import backend_names
from ..clear_core.weights import ClearWeights
from . import host
from .options.blocks import parse_blocks
from .options.clear import (
    MAX_DOWN_FACTOR,
    MAX_NTK_FACTOR,
    MAX_RADIUS,
    REFERENCE_VIEWS,
    ApplyInputs,
    check_choices,
    check_ntk,
    check_range,
    resolve_settings,
)
from .options.limits import within
from .schema import CACHED_PER_NODE_ID, CATEGORY, CLEAR_WEIGHTS, make

_NEW = ApplyInputs()


class CLEARApply(io.ComfyNode):
    """Patches a clone of a FLUX.1 model; the input stays unchanged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARApply",
            display_name="Apply CLEAR Attention",
            category=CATEGORY,
            description="Replaces FLUX.1's full image attention by a circular attention window around each image "
            "token, so that the time for large images grows in proportion to their pixels.",
            search_aliases=[
                "clear",
                "linear attention",
                "local attention",
                "flux high resolution",
                "4k",
                "8k",
                "hires fix",
            ],
            inputs=_inputs(),
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=CACHED_PER_NODE_ID,
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
        # None: the value comes through a link and is not known yet; `execute` checks it.
        try:
            check_choices(backend or _NEW.backend, references or _NEW.references)
            parse_blocks(_NEW.blocks if blocks is None else blocks)
            if start_percent is not None and end_percent is not None:
                check_range(start_percent, end_percent)
            if strength is not None:
                within("strength", strength, 0.0, 1.0)
            if ntk_factor is not None:
                check_ntk(ntk_factor)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, weights: ClearWeights | None = None, **inputs: Any) -> io.NodeOutput:
        settings = resolve_settings(weights, ApplyInputs(**inputs))
        patched, report = host.apply_clear(model, settings, weights, host.node_text_sender(cls.hidden.unique_id))
        return io.NodeOutput(patched, ui={"text": (report.headline,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX.1 model: dev, schnell, Krea, Fill, Canny, Depth or Kontext. FLUX.2 and Chroma without "
            "weights, or with those distilled for them.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "weights",
            optional=True,
            tooltip="The distilled attention weights. Without them the attention window is untrained, which costs "
            "quality.",
        ),
        make(
            io.Int.Input,
            "radius",
            default=_NEW.radius,
            min=0,
            max=MAX_RADIUS,
            tooltip="Radius of the attention window, in image tokens of 16 pixels. 0: the radius that the weights were "
            "trained with (8, 16 or 32). A larger window keeps more context and takes longer.",
        ),
        make(
            io.Int.Input,
            "down_factor",
            default=_NEW.down_factor,
            min=0,
            max=MAX_DOWN_FACTOR,
            advanced=True,
            tooltip="Global context: every image token also attends to the image's keys and values pooled over f x f "
            "tokens. 0: as the weights were trained, 1: off, 4: the trained value. Prevents repeated patterns.",
        ),
        make(
            io.Float.Input,
            "strength",
            default=_NEW.strength,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Strength of the distilled weights. 1: fully applied, 0: the model's own weights, attention window "
            "only.",
        ),
        make(
            io.Combo.Input,
            "backend",
            options=list(backend_names()),
            default=_NEW.backend,
            advanced=True,
            tooltip="Implementation of the attention. auto: the fastest that runs on this machine. The result is the "
            "same.",
        ),
        make(
            io.Float.Input,
            "ntk_factor",
            default=_NEW.ntk_factor,
            min=0.0,
            max=MAX_NTK_FACTOR,
            step=0.5,
            advanced=True,
            tooltip="NTK scaling of the rotary position embedding, for images larger than FLUX was trained on. 0: by "
            "the size of the image, 10 with proportional attention from 12 megapixels (4096 x 3072), else 1. "
            "1: none.",
        ),
        make(
            io.Boolean.Input,
            "proportional_attention",
            default=_NEW.proportional_attention,
            advanced=True,
            tooltip="Scales attention with the number of tokens, so that it stays as sharp as at 1K. Off: from 12 "
            "megapixels on if ntk_factor is 0, otherwise never.",
        ),
        make(
            io.Float.Input,
            "start_percent",
            default=_NEW.start_percent,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Start of the attention window in the sampling schedule; full attention before it. 0: the first "
            "step.",
        ),
        make(
            io.Float.Input,
            "end_percent",
            default=_NEW.end_percent,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="End of the attention window in the sampling schedule; full attention after it. 1: the last step.",
        ),
        make(
            io.Combo.Input,
            "references",
            options=list(REFERENCE_VIEWS),
            default=_NEW.references,
            # Optional, so that prompts written without it stay valid.
            optional=True,
            advanced=True,
            tooltip="How the image attends to reference images (Kontext). window: a window at the same position. all "
            "tokens: every reference token; slower, for subjects that move.",
        ),
        make(
            io.String.Input,
            "blocks",
            default=_NEW.blocks,
            optional=True,
            advanced=True,
            tooltip="Transformer blocks that use the attention window: all, double, single, or a list such as s0-18, "
            "d3. The others keep full attention and the model's own weights.",
        ),
    ]
