"""CLEAR High-Res Upscale: an image carried up in stages, each enlarged, noised and painted anew with CLEAR.

The node makes the graph that a person would wire by hand, from core nodes and this pack's, and lets ComfyUI run it:
so every stage has its preview and progress, can be cancelled, and finished stages are kept when one runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from . import host
from .options.bands import MAX_BANDS, check_bands
from .options.clear import MAX_NTK_FACTOR, within
from .options.stages import Stage, plan_stages
from .schema import CATEGORY, CLEAR_WEIGHTS, make

_SHIFT = 1.1  # ln 3: the fixed time shift of the authors' recipe, whatever the size
_TILE = {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}
_MAX_STAGES = 6
_LIMITS = {
    "target_megapixels": (0.1, 268.5),
    "denoise": (0.05, 1.0),
    "guidance": (0.0, 100.0),
    "ntk_factor": (0.0, MAX_NTK_FACTOR),
}
_STAGES = io.Custom("CLEAR_STAGES")


class CLEARHighRes(io.ComfyNode):
    """One node for the recipe; the workflow that wires it by hand is shipped beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARHighRes",
            display_name="CLEAR High-Res Upscale",
            category=CATEGORY,
            description="Carries an image up to 4K, 8K or more in stages: enlarges it, adds noise and paints it anew "
            "at the larger size, so that it gains detail and not only pixels.",
            search_aliases=["clear", "upscale", "sdedit", "img2img", "4k", "8k", "16k", "high resolution"],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(display_name="image"),
                io.Image.Output(display_name="stages", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        devices: str | None = None,
        bands: int | None = None,
        target_megapixels: float | None = None,
        denoise: float | None = None,
        guidance: float | None = None,
        ntk_factor: float | None = None,
        sampler_name: str | None = None,
        scheduler: str | None = None,
    ) -> bool | str:
        numbers = (target_megapixels, denoise, guidance, ntk_factor)
        try:
            check_bands(devices, bands, None)
            for (name, (low, high)), value in zip(_LIMITS.items(), numbers, strict=True):
                if value is not None:
                    within(name, value, low, high)
            # The nodes of the stages are made while the prompt runs: ComfyUI checks nothing of theirs.
            for name, value, known in (
                ("sampler_name", sampler_name, host.SAMPLERS),
                ("scheduler", scheduler, host.SCHEDULERS),
            ):
                if value is not None and value not in known:
                    raise ValueError(f"{name} is {value!r:.60}; choose one that KSampler has, such as {known[0]}")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: Any,
        image: Any,
        target_megapixels: float,
        stages: int,
        weights: Any = None,
        upscale_model: Any = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        patched = host.has_clear(model)
        if not patched and weights is None:
            raise ValueError(
                "The model has no CLEAR and no weights are connected: connect Load CLEAR Weights to weights, or put "
                "Apply CLEAR Attention before this node."
            )
        if patched and weights is not None:
            raise ValueError(
                "The model already has CLEAR: disconnect weights, or connect the model from before Apply CLEAR "
                "Attention."
            )
        planned = plan_stages(image.shape[2], image.shape[1], target_megapixels, stages)
        graph = host.GraphBuilder()
        given = {
            "model": model,
            "vae": vae,
            "positive": positive,
            "image": image,
            "weights": weights,
            "upscale_model": upscale_model,
        }
        if host.keeps_outputs():
            # Wires, not values: ComfyUI finds a finished stage again by what is wired to it.
            wires = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
            number = host.call_number(graph)
            given |= {
                name: graph.node("CLEARItem", values=wires[name], number=number).out(0)
                for name, value in given.items()
                if value is not None
            }
        done = []
        for stage in planned:
            image = given["image"] = _stage(graph, stage, given, inputs)
            done.append(image)
        listed = graph.node("CLEARStages", **{f"image_{i}": one for i, one in enumerate(done, 1)})
        return io.NodeOutput(image, listed.out(0), expand=graph.finalize())


def _stage(graph: Any, stage: Stage, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """The nodes of one stage; the wire of its image. given: what the sockets got. inputs: the widgets' values."""
    model, vae, image = given["model"], given["vae"], given["image"]
    size = {"width": stage.width, "height": stage.height}
    if given["upscale_model"] is not None:
        image = graph.node("ImageUpscaleWithModel", upscale_model=given["upscale_model"], image=image).out(0)
    image = graph.node("ImageScale", image=image, upscale_method="lanczos", crop="center", **size).out(0)
    latent = graph.node("VAEEncodeTiled", pixels=image, vae=vae, **_TILE).out(0)
    if given["weights"] is not None:
        model = graph.node(
            "CLEARApply",
            model=model,
            weights=given["weights"],
            radius=0,
            down_factor=0,
            strength=1.0,
            backend="auto",
            ntk_factor=inputs["ntk_factor"] or stage.ntk_factor,
            proportional_attention=inputs["proportional_attention"],
            start_percent=0.0,
            end_percent=1.0,
            references="window",
        ).out(0)
    model = graph.node("ModelSamplingFlux", model=model, max_shift=_SHIFT, base_shift=_SHIFT, **size).out(0)
    guided = graph.node("FluxGuidance", conditioning=given["positive"], guidance=inputs["guidance"]).out(0)
    sampled = graph.node(
        "CLEARTiledSampler",
        noise=graph.node("RandomNoise", noise_seed=inputs["seed"]).out(0),
        guider=graph.node("BasicGuider", model=model, conditioning=guided).out(0),
        sampler=graph.node("KSamplerSelect", sampler_name=inputs["sampler_name"]).out(0),
        sigmas=graph.node(
            "BasicScheduler",
            model=model,
            scheduler=inputs["scheduler"],
            steps=inputs["steps"],
            denoise=inputs["denoise"],
        ).out(0),
        latent_image=latent,
        devices=inputs["devices"],
        bands=inputs["bands"],
        text_merge="exact",
    ).out(0)
    return graph.node("VAEDecodeTiled", samples=sampled, vae=vae, **_TILE).out(0)


class CLEARItem(io.ComfyNode):
    """One of the values on a wire, which may carry a list; ComfyUI then calls the upscale once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARItem",
            display_name="CLEAR Item",
            category=f"{CATEGORY}/internal",
            description="Part of CLEAR High-Res Upscale, which adds it by itself.",
            inputs=[
                make(io.AnyType.Input, "values", tooltip="What is wired to the upscale."),
                make(io.Int.Input, "number", default=0, min=0, tooltip="Which of several values is meant."),
            ],
            outputs=[io.AnyType.Output()],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, values: list[Any], number: list[int]) -> io.NodeOutput:
        # As the host does for lists of different length: the shorter one repeats its last value.
        return io.NodeOutput(values[min(number[0], len(values) - 1)])


class CLEARStages(io.ComfyNode):
    """Collects the stages' images, of different sizes, into one value: an expanded graph gives out no lists."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARStages",
            display_name="CLEAR Stages",
            category=f"{CATEGORY}/internal",
            description="Part of CLEAR High-Res Upscale, which adds it by itself.",
            inputs=[
                make(io.Image.Input, f"image_{i}", optional=True, tooltip="The image of a stage.")
                for i in range(1, _MAX_STAGES + 1)
            ],
            outputs=[_STAGES.Output()],
        )

    @classmethod
    def execute(cls, **images: Any) -> io.NodeOutput:
        # A tiny image takes more stages than there are inputs to show; the host passes on all of them.
        given = [name for name, image in images.items() if image is not None]
        return io.NodeOutput([images[name] for name in sorted(given, key=lambda name: int(name.rpartition("_")[2]))])


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(io.Model.Input, "model", tooltip="FLUX.1; as loaded, or patched by Apply CLEAR Attention and LoRA nodes."),
        make(io.Vae.Input, "vae", tooltip="FLUX's VAE (ae.safetensors)."),
        make(io.Conditioning.Input, "positive", tooltip="What the image shows; best the prompt it was made with."),
        make(io.Image.Input, "image", tooltip="About one megapixel, made by plain FLUX or any photograph."),
        make(
            io.Float.Input,
            "target_megapixels",
            default=16.8,
            min=_LIMITS["target_megapixels"][0],
            max=_LIMITS["target_megapixels"][1],
            step=0.1,
            tooltip="Size of the result: 4.2 for 2048 x 2048, 16.8 for 4096, 67.1 for 8192, 268.5 for 16384. "
            "Proportions are kept.",
        ),
        make(
            io.Int.Input,
            "stages",
            default=0,
            min=0,
            max=_MAX_STAGES,
            tooltip="Enlargements on the way. 0: as few as possible, none of more than four times the pixels.",
        ),
        make(
            io.Float.Input,
            "denoise",
            default=0.7,
            min=_LIMITS["denoise"][0],
            max=_LIMITS["denoise"][1],
            step=0.01,
            tooltip="How much is painted anew. 0.7 adds much detail; 0.3 to 0.5 stays close to the image.",
        ),
        make(io.Int.Input, "steps", default=20, min=1, max=1000, tooltip="Sampling steps of each stage."),
        make(
            io.Float.Input,
            "guidance",
            default=7.5,
            min=_LIMITS["guidance"][0],
            max=_LIMITS["guidance"][1],
            step=0.1,
            tooltip="How strictly the prompt is followed. 7.5 keeps large images sharp.",
        ),
        make(
            io.Float.Input,
            "ntk_factor",
            default=0.0,
            min=_LIMITS["ntk_factor"][0],
            max=_LIMITS["ntk_factor"][1],
            step=0.5,
            advanced=True,
            tooltip="Stretches positions. 0: by size, 10 from 4K on. For a model that already has CLEAR set it there.",
        ),
        make(
            io.Boolean.Input,
            "proportional_attention",
            default=True,
            advanced=True,
            tooltip="Keeps attention as sharp on large images as on small ones. For a model that already has CLEAR set "
            "it there.",
        ),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="The same seed gives the same image.",
        ),
        make(
            io.Combo.Input,
            "sampler_name",
            options=list(host.SAMPLERS),
            default="euler",
            advanced=True,
            tooltip="As for KSampler.",
        ),
        make(
            io.Combo.Input,
            "scheduler",
            options=list(host.SCHEDULERS),
            default="simple",
            advanced=True,
            tooltip="As for KSampler.",
        ),
        make(
            io.String.Input,
            "devices",
            default="auto",
            advanced=True,
            tooltip="Who shares the image, as on CLEAR Multi-GPU. auto: all GPUs of this machine.",
        ),
        make(
            io.Int.Input,
            "bands",
            default=0,
            min=0,
            max=MAX_BANDS,
            advanced=True,
            tooltip="Into how many bands of rows the image is cut. 0: as many as memory asks for; see CLEAR Multi-GPU.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "weights",
            optional=True,
            tooltip="The distilled attention weights, for a model that Apply CLEAR Attention has not patched.",
        ),
        make(
            io.UpscaleModel.Input,
            "upscale_model",
            optional=True,
            tooltip="Enlarges with this model before each stage instead of Lanczos alone.",
        ),
    ]
