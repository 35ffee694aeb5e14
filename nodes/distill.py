"""Distill CLEAR Weights: MODEL, CLEAR_TRAINING_SET -> CLEAR_WEIGHTS, and a file of them or of a LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.distill.settings import (
    ADAMW,
    BLOCKS,
    BOTH,
    LARGEST_LOSS_WEIGHT,
    LARGEST_RANK,
    LARGEST_SHIFT,
    LAYERS,
    METHODS,
    OPTIMIZERS,
    OUTPUTS,
    WEIGHTS,
    Settings,
)
from ..clear_core.weights import ClearWeights
from . import host
from .insight.picture import as_image, page_theme
from .insight.training_page import TrainingPage
from .options.clear import MAX_DOWN_FACTOR, MAX_RADIUS
from .schema import CATEGORY, CLEAR_TRAINING_SET, CLEAR_WEIGHTS, make

_USUAL = Settings()
_KEYS = (
    "radius",
    "down_factor",
    "method",
    "output",
    "rank",
    "steps",
    "batch",
    "learning_rate",
    "optimizer",
    "seed",
    "cooldown",
    "timestep_shift",
    "flow_weight",
    "output_weight",
    "attention_weight",
    "micro_batch",
    "layers",
)
_LOSS_WEIGHTS = {
    "flow_weight": "End to end: weight of the distance to the image and its noise in the loss. 1: as CLEAR's authors "
    "trained. 0: the student follows the teacher alone, with less noise in its training.",
    "output_weight": "End to end: weight of the distance to the teacher's output. 0.5: as CLEAR's authors trained.",
    "attention_weight": "End to end: weight of the distance to the teacher's attention in every fourth block. 0.5: as "
    "CLEAR's authors trained.",
}


class CLEARDistill(io.ComfyNode):
    """Trains the student beside the connected model, which stays as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARDistill",
            display_name="Distill CLEAR Weights",
            category=CATEGORY,
            description="Trains CLEAR attention weights, or a LoRA, for the connected model: it is the teacher, and "
            "the student learns to give the same through the attention window. Cancel keeps what was done; running "
            "again goes on.",
            search_aliases=["clear", "distillation", "train", "training", "finetune", "lora training"],
            inputs=_inputs(),
            outputs=[CLEAR_WEIGHTS.Output(display_name="CLEAR_WEIGHTS"), io.Image.Output(display_name="curves")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        radius: int | None = None,
        down_factor: int | None = None,
        method: str | None = None,
        output: str | None = None,
        rank: int | None = None,
        steps: int | None = None,
        batch: int | None = None,
        learning_rate: float | None = None,
        optimizer: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        save_every: int | None = None,
        cooldown: float | None = None,
        timestep_shift: float | None = None,
        flow_weight: float | None = None,
        output_weight: float | None = None,
        attention_weight: float | None = None,
        micro_batch: int | None = None,
        layers: str | None = None,
    ) -> bool | str:
        # None comes through a link and is not known yet; `execute` checks it.
        given = (radius, down_factor, method, output, rank, steps, batch, learning_rate, optimizer, seed)
        given += (cooldown, timestep_shift, flow_weight, output_weight, attention_weight, micro_batch, layers)
        try:
            known: dict[str, Any] = {k: v for k, v in zip(_KEYS, given, strict=True) if v is not None}
            host.DistillJob("unknown" if name is None else name, Settings(**known), save_every or 1)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        training_set: Any,
        name: str,
        save_every: int,
        resume: bool,
        start_from: ClearWeights | None = None,
        start_base: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        job = host.DistillJob(name, Settings(**settings), save_every, resume)
        node_id, prompt = cls.hidden.unique_id, cls.hidden.dynprompt
        if job.settings.layers == BLOCKS and prompt is not None and host.output_is_used(prompt, node_id, 0):
            raise ValueError(f"layers is {BLOCKS!r}, but CLEAR_WEIGHTS is connected: {_no_weights(job.settings)}")
        result, pictures = host.distill(job, model, training_set, start_from, start_base, node_id)
        title = f"{result.file.name}: radius {job.settings.radius}, {job.settings.output}"
        subtitle = f"{len(result.history)} steps from {result.note}; {len(training_set)} images"
        page = TrainingPage(title, subtitle, result.history, pictures).page(page_theme(host.page_is_light()))
        image = as_image(page)
        # Connected only now, after a run that the host has kept, it must not pass for weights.
        weights = result.weights or host.ExecutionBlocker(f"{result.file.name}: {_no_weights(job.settings)}")
        return io.NodeOutput(weights, image, ui=ui.PreviewImage(image, cls=cls))


def _no_weights(settings: Settings) -> str:
    return (
        "a LoRA of more than the attention has no CLEAR weights. Disconnect the output, load the LoRA's file with Load "
        f"LoRA, and set radius {settings.radius} and down_factor {settings.down_factor} on Apply CLEAR Attention."
    )


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="The teacher: FLUX.1 or a fine-tune of it, FLUX.2 or Chroma, with LoRAs if you like, without Apply "
            "CLEAR Attention. An fp8 model saves memory.",
        ),
        make(CLEAR_TRAINING_SET.Input, "training_set", tooltip="What to train on: CLEAR Training Set."),
        make(
            io.Int.Input,
            "radius",
            default=_USUAL.radius,
            min=1,
            max=MAX_RADIUS,
            tooltip="Radius of the attention window, in image tokens of 16 pixels. 16 suits most images; 8 is faster, "
            "32 is closest to the teacher.",
        ),
        make(
            io.Int.Input,
            "down_factor",
            default=_USUAL.down_factor,
            min=1,
            max=MAX_DOWN_FACTOR,
            tooltip="Global context: the image's keys and values pooled over f x f tokens. 1: none, 4: as the released "
            "weights.",
        ),
        make(
            io.Combo.Input,
            "method",
            options=list(METHODS),
            default=BOTH,
            tooltip="layer by layer: each block learns on its own, quick and small. end to end: the loss of CLEAR's "
            "authors, twice the time. both: half of the steps each.",
        ),
        make(
            io.Combo.Input,
            "output",
            options=list(OUTPUTS),
            default=WEIGHTS,
            tooltip="weights: a file for Load CLEAR Weights, in models/clear. LoRA: a file for ComfyUI's Load LoRA, in "
            "models/loras; smaller, for any number of these at once.",
        ),
        make(io.Int.Input, "rank", default=_USUAL.rank, min=1, max=LARGEST_RANK, tooltip="Of the LoRA; else not used."),
        make(
            io.Int.Input,
            "steps",
            default=_USUAL.steps,
            min=1,
            max=10**6,
            tooltip="Steps of training. With another number a finished run goes on, unless method is both.",
        ),
        make(io.Int.Input, "batch", default=_USUAL.batch, min=1, max=10**6, tooltip="Images of a step."),
        make(
            io.Float.Input,
            "learning_rate",
            default=_USUAL.learning_rate,
            min=1e-7,
            max=10.0,
            step=1e-7,  # as the host's own training node: the page rounds to it
            tooltip="How far a step moves the weights. 0.0001 suits AdamW, 1 suits Prodigy.",
        ),
        make(
            io.Combo.Input,
            "optimizer",
            options=list(OPTIMIZERS),
            default=ADAMW,
            tooltip="AdamW 8-bit takes less memory and needs the package bitsandbytes. Prodigy finds the learning rate "
            "itself and needs the package prodigyopt.",
        ),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,  # unset, the page changes a seed after each run, and no run goes on
            tooltip="Of the noise, and of the order of the images.",
        ),
        make(io.String.Input, "name", default="my_clear_weights", tooltip="Of the file, without .safetensors."),
        make(
            io.Int.Input,
            "save_every",
            default=100,
            min=1,
            max=10**6,
            tooltip="Steps between two saves of the state in output/clear_distillation. A picture is shown then.",
        ),
        make(
            io.Boolean.Input,
            "resume",
            default=True,
            tooltip="Goes on from the state of a run of the same name and settings. Off: starts anew.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "start_from",
            optional=True,
            tooltip="Weights to begin with, such as the released ones for a fine-tune of FLUX.1-dev. They are used if "
            "they bring the student closer to the teacher than the model's own.",
        ),
        make(
            io.Model.Input,
            "start_base",
            optional=True,
            tooltip="The model that the weights of start_from were made for: FLUX.1-dev for the released ones. What "
            "your model has changed of it is then added to them as a third start to choose from. It is read, layer by "
            "layer in main memory, and not loaded.",
        ),
        make(
            io.Float.Input,
            "cooldown",
            optional=True,  # workflows saved before it was there have no value for it
            default=_USUAL.cooldown,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="The last share of the steps, in which the learning rate falls to zero: less noise in the result. "
            "0: a constant rate, as CLEAR's authors trained.",
        ),
        make(
            io.Float.Input,
            "timestep_shift",
            optional=True,
            default=_USUAL.timestep_shift,
            min=1 / LARGEST_SHIFT,
            max=LARGEST_SHIFT,
            step=0.05,
            advanced=True,
            tooltip="Over 1, more of the training is at high noise, where an image's composition is decided. 1: all "
            "noise levels alike, as CLEAR's authors trained.",
        ),
        *(_loss_weight(name, tooltip) for name, tooltip in _LOSS_WEIGHTS.items()),
        make(
            io.Int.Input,
            "micro_batch",
            optional=True,
            default=_USUAL.micro_batch,
            min=1,
            max=10**6,
            advanced=True,
            tooltip="Images of a step that are computed together. More is faster where images are small, and takes "
            "more memory; the result is the same.",
        ),
        make(
            io.Combo.Input,
            "layers",
            optional=True,
            options=list(LAYERS),
            default=_USUAL.layers,
            advanced=True,
            tooltip="attention: the projections of the image's attention, as CLEAR's authors trained. blocks: all "
            "linear layers of the transformer's blocks, text and MLPs too: closer to the teacher, for output LoRA.",
        ),
    ]


def _loss_weight(name: str, tooltip: str) -> io.Input:
    return make(
        io.Float.Input,
        name,
        optional=True,
        default=getattr(_USUAL, name),
        min=0.0,
        max=LARGEST_LOSS_WEIGHT,
        step=0.05,
        advanced=True,
        tooltip=tooltip,
    )
