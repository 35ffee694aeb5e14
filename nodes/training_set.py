"""CLEAR Training Set: images with prompts, or prompts alone -> latents and text embeddings on disk."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from comfy_api.latest import io

from . import host
from .options.training_set import (
    GENERATE,
    IMAGES,
    LARGEST,
    LARGEST_SEED,
    MOST_STEPS,
    NEEDS,
    SMALLEST,
    SOURCES,
    STEP,
    SetOptions,
    check_connected,
    prompt_lines,
)
from .schema import CATEGORY, CLEAR_TRAINING_SET, make

_NOT_CONNECTED = object()
_SHOWN = 12  # lines of the report on the node
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"name": "my_set", "source": IMAGES, "width": 1024, "height": 1024, "steps": 20, "seed": 0}
)


class CLEARTrainingSet(io.ComfyNode):
    """Makes what is missing of a set; what is there is not made again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARTrainingSet",
            display_name="CLEAR Training Set",
            category=CATEGORY,
            description="Makes training samples for distillation, latents and text embeddings, of a folder of images "
            "with prompts, or of images that a model makes of prompts. They stay on disk: a run that was cancelled "
            "goes on where it stopped.",
            search_aliases=["clear", "training", "distillation", "dataset", "train", "distill"],
            inputs=_inputs(),
            outputs=[
                CLEAR_TRAINING_SET.Output(display_name="CLEAR_TRAINING_SET"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        name: str | None = None,
        source: str | None = None,
        folder: str | None = None,
        prompts: str | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        vae: Any = _NOT_CONNECTED,
        model: Any = _NOT_CONNECTED,
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            known = {"name": name, "source": source, "width": width, "height": height, "steps": steps, "seed": seed}
            SetOptions(**{**_DEFAULTS, **{key: value for key, value in known.items() if value is not None}})
            if source is not None:
                check_connected(source, {"vae": vae, "model": model}[NEEDS[source]] is not _NOT_CONNECTED)
            if source == IMAGES and folder is not None:
                host.image_folder(folder)
            if source == GENERATE and prompts is not None:
                prompt_lines(prompts)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, folder: str | None = None, **_: Any) -> str:
        # Images that came, went or changed: only those are made.
        return host.folder_fingerprint(folder) if source == IMAGES and folder is not None else ""

    @classmethod
    def execute(
        cls,
        name: str,
        source: str,
        clip: Any,
        folder: str,
        prompts: str,
        width: int,
        height: int,
        steps: int,
        seed: int,
        vae: Any = None,
        model: Any = None,
    ) -> io.NodeOutput:
        options = SetOptions(name, source, width, height, steps, seed)
        check_connected(source, {"vae": vae, "model": model}[NEEDS[source]] is not None)
        say = host.node_text_sender(cls.hidden.unique_id)
        # Parts of each sample's key: with another model the samples are others.
        dynprompt, node_id = cls.hidden.dynprompt, cls.hidden.unique_id
        made_of = [host.upstream(dynprompt, node_id, each) for each in ("clip", NEEDS[source])]
        if source == IMAGES:
            samples, report = host.set_from_images(options, clip, vae, folder, made_of, say)
        else:
            samples, report = host.set_from_prompts(options, clip, model, prompt_lines(prompts), made_of, say)
        say(_beginning(report))
        return io.NodeOutput(samples, report)


def _beginning(report: str) -> str:
    """What of a report fits on a node."""
    lines = report.split("\n")
    more = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {more} more lines in report"] if more > 0 else [])])


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    side = {"default": 1024, "min": SMALLEST, "max": LARGEST, "step": STEP}
    return [
        make(
            io.String.Input,
            "name",
            default=_DEFAULTS["name"],
            tooltip="The samples lie in the folder clear_training_sets/NAME of ComfyUI's output folder.",
        ),
        make(
            io.Combo.Input,
            "source",
            options=list(SOURCES),
            default=IMAGES,
            tooltip="images in a folder: encodes your images with their prompts; needs vae. generate from prompts: the "
            "model makes the images, as KSampler with euler, simple and cfg 1 at guidance 3.5; needs model.",
        ),
        make(io.Clip.Input, "clip", tooltip="The text encoders of the model; for FLUX.1 CLIP-L and T5."),
        make(
            io.String.Input,
            "folder",
            default="",
            tooltip="For images: a folder on the machine of ComfyUI, with PNG, JPEG or WebP files. The prompt is in a "
            ".txt of the same name beside each, or in the metadata of a PNG that ComfyUI saved.",
        ),
        make(
            io.String.Input,
            "prompts",
            default="",
            multiline=True,
            tooltip="For generating: each line is the prompt of one image.",
        ),
        make(
            io.Int.Input, "width", **side, tooltip="Of every image, in pixels. Images are scaled to cover it and cut."
        ),
        make(
            io.Int.Input, "height", **side, tooltip="Of every image, in pixels. Images are scaled to cover it and cut."
        ),
        make(io.Int.Input, "steps", default=20, min=1, max=MOST_STEPS, tooltip="For generating: steps of each image."),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=False,  # unset, the page changes a seed after each run: another set each time
            tooltip="For generating: the seed of the first image; each further one has the next.",
        ),
        make(io.Vae.Input, "vae", optional=True, tooltip="For images: the VAE of the model that is distilled."),
        make(io.Model.Input, "model", optional=True, tooltip="For generating: FLUX with full attention."),
    ]
