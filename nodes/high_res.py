"""CLEAR High-Res Upscale: upscales an image in stages, each enlarged, noised and denoised with CLEAR.

The node expands into the graph that a user would wire by hand from core nodes and this pack's. So every stage has
ComfyUI's preview and progress and can be cancelled, and finished stages stay cached for the next run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from . import host
from .high_res_parts import MAX_STAGES
from .options.bands import MAX_BANDS, check_bands
from .options.clear import MAX_NTK_FACTOR, within
from .options.stages import Stage, plan_stages
from .schema import CATEGORY, CLEAR_WEIGHTS, make

_SHIFT = 1.1  # ln 3: the fixed time shift of the authors' recipe, whatever the size
_TILE = {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}
_LIMITS = {
    "target_megapixels": (0.1, 268.5),
    "denoise": (0.05, 1.0),
    "guidance": (0.0, 100.0),
    "ntk_factor": (0.0, MAX_NTK_FACTOR),
}


class CLEARHighRes(io.ComfyNode):
    """The authors' upscaling recipe in one node; a workflow that wires it by hand is shipped too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARHighRes",
            display_name="CLEAR High-Res Upscale",
            category=CATEGORY,
            description="Upscales an image to 4K, 8K or more in stages. Each stage enlarges it, adds noise and "
            "denoises it at the larger size, so that it gains detail and not only pixels.",
            search_aliases=[
                *("clear", "upscale", "ultimate sd upscale", "hires fix", "highres fix", "high resolution"),
                *("4k", "8k", "16k", "sdedit", "img2img"),
            ],
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
            # ComfyUI does not validate the nodes of an expanded graph.
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
            # Links, not values: ComfyUI's cache finds a finished stage by what is linked to it.
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
    """Add the nodes of one stage; the link to its image. given: what the sockets got. inputs: the widgets' values."""
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


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(io.Model.Input, "model", tooltip="FLUX.1, as loaded or patched by Apply CLEAR Attention and LoRA nodes."),
        make(io.Vae.Input, "vae", tooltip="FLUX's VAE (ae.safetensors)."),
        make(
            io.Conditioning.Input, "positive", tooltip="What the image shows, ideally the prompt that it was made with."
        ),
        make(io.Image.Input, "image", tooltip="About one megapixel: made by FLUX without CLEAR, or any photograph."),
        make(
            io.Float.Input,
            "target_megapixels",
            default=16.8,
            min=_LIMITS["target_megapixels"][0],
            max=_LIMITS["target_megapixels"][1],
            step=0.1,
            tooltip="Size of the result: 4.2 for 2048 x 2048, 16.8 for 4096, 67.1 for 8192, 268.5 for 16384. "
            "The aspect ratio is kept.",
        ),
        make(
            io.Int.Input,
            "stages",
            default=0,
            min=0,
            max=MAX_STAGES,
            tooltip="Number of stages. 0: as few as possible, each with at most four times the pixels of the one "
            "before.",
        ),
        make(
            io.Float.Input,
            "denoise",
            default=0.7,
            min=_LIMITS["denoise"][0],
            max=_LIMITS["denoise"][1],
            step=0.01,
            tooltip="Denoising strength of each stage. 0.7 adds much detail; 0.3 to 0.5 stays close to the image.",
        ),
        make(io.Int.Input, "steps", default=20, min=1, max=1000, tooltip="Sampling steps of each stage."),
        make(
            io.Float.Input,
            "guidance",
            default=7.5,
            min=_LIMITS["guidance"][0],
            max=_LIMITS["guidance"][1],
            step=0.1,
            tooltip="FLUX guidance: how strictly the prompt is followed. 7.5 keeps large images sharp.",
        ),
        make(
            io.Float.Input,
            "ntk_factor",
            default=0.0,
            min=_LIMITS["ntk_factor"][0],
            max=_LIMITS["ntk_factor"][1],
            step=0.5,
            advanced=True,
            tooltip="NTK scaling of the rotary position embedding. 0: by size, 10 from 4K. If the model already has "
            "CLEAR, set it on that node.",
        ),
        make(
            io.Boolean.Input,
            "proportional_attention",
            default=True,
            advanced=True,
            tooltip="Scales attention with the number of tokens, so that it stays as sharp as at 1K. If the model "
            "already has CLEAR, set it on that node.",
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
            tooltip="As in KSampler.",
        ),
        make(
            io.Combo.Input,
            "scheduler",
            options=list(host.SCHEDULERS),
            default="simple",
            advanced=True,
            tooltip="As in KSampler.",
        ),
        make(
            io.String.Input,
            "devices",
            default="auto",
            advanced=True,
            tooltip="Devices that compute the image, as in CLEAR Multi-GPU. auto: all GPUs of this machine.",
        ),
        make(
            io.Int.Input,
            "bands",
            default=0,
            min=0,
            max=MAX_BANDS,
            advanced=True,
            tooltip="Number of bands. 0: as many as memory requires; see CLEAR Multi-GPU.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "weights",
            optional=True,
            tooltip="The distilled attention weights, for a model without Apply CLEAR Attention.",
        ),
        make(
            io.UpscaleModel.Input,
            "upscale_model",
            optional=True,
            tooltip="An upscale model to use before each stage, instead of Lanczos alone.",
        ),
    ]
