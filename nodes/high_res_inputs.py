"""The inputs of CLEAR High-Res Upscale, in their released order."""

from __future__ import annotations

from comfy_api.latest import io

from . import host
from .band_inputs import devices_input, machines_input
from .options.bands import MAX_BANDS
from .options.clear import MAX_NTK_FACTOR
from .options.stages import LARGEST_SIDE, MAX_STAGES
from .options.target import LARGEST_SCALE, LEAST_SCALE, LEAST_SIDE, MEGAPIXELS, SIZE_BY, Target
from .options.vae import AUTO, TILINGS
from .schema import CLEAR_WEIGHTS, make

LIMITS = {
    "target_megapixels": (0.1, 268.5),
    "denoise": (0.05, 1.0),
    "guidance": (0.0, 100.0),
    "ntk_factor": (0.0, MAX_NTK_FACTOR),
    "scale": (LEAST_SCALE, LARGEST_SCALE),
}


def high_res_inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(io.Model.Input, "model", tooltip="FLUX.1, as loaded or patched by Apply CLEAR Attention and LoRA nodes."),
        make(io.Vae.Input, "vae", tooltip="FLUX's VAE (ae.safetensors)."),
        make(
            io.Conditioning.Input, "positive", tooltip="What the image shows, ideally the prompt that it was made with."
        ),
        make(
            io.Image.Input,
            "image",
            tooltip="About one megapixel: made by FLUX without CLEAR, or any photograph. A batch or a list is upscaled "
            "one by one.",
        ),
        make(
            io.Float.Input,
            "target_megapixels",
            default=16.8,
            min=LIMITS["target_megapixels"][0],
            max=LIMITS["target_megapixels"][1],
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
            min=LIMITS["denoise"][0],
            max=LIMITS["denoise"][1],
            step=0.01,
            tooltip="Denoising strength of each stage. 0.7 adds much detail; 0.3 to 0.5 stays close to the image.",
        ),
        make(io.Int.Input, "steps", default=20, min=1, max=1000, tooltip="Sampling steps of each stage."),
        make(
            io.Float.Input,
            "guidance",
            default=7.5,
            min=LIMITS["guidance"][0],
            max=LIMITS["guidance"][1],
            step=0.1,
            tooltip="FLUX guidance: how strictly the prompt is followed. 7.5 keeps large images sharp.",
        ),
        make(
            io.Float.Input,
            "ntk_factor",
            default=0.0,
            min=LIMITS["ntk_factor"][0],
            max=LIMITS["ntk_factor"][1],
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
            tooltip="The same seed gives the same image. Every image of a batch or a list uses it, and comes out as it "
            "would alone.",
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
        devices_input(),
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
        make(
            io.Combo.Input,
            "vae_tiling",
            options=list(TILINGS),
            default=AUTO,
            optional=True,
            advanced=True,
            tooltip="How images pass the VAE. auto: whole, or in strips where that does not fit into memory, with the "
            "same result. always: in tiles of 1024 pixels, which takes least. never: whole. strips: always in strips.",
        ),
        make(
            io.Combo.Input,
            "size_by",
            options=list(SIZE_BY),
            default=MEGAPIXELS,
            optional=True,
            tooltip="What gives the size of the result: target_megapixels, long_side or scale. The other two do not "
            "count.",
        ),
        make(
            io.Int.Input,
            "long_side",
            default=Target.long_side,
            min=LEAST_SIDE,
            max=LARGEST_SIDE,
            step=16,
            optional=True,
            tooltip="Pixels of the result's longer side. The aspect ratio is kept.",
        ),
        make(
            io.Float.Input,
            "scale",
            default=Target.scale,
            min=LIMITS["scale"][0],
            max=LIMITS["scale"][1],
            step=0.1,
            optional=True,
            tooltip="Times the image's width and height: 4 makes 4096 x 4096 of 1024 x 1024.",
        ),
        make(
            io.Boolean.Input,
            "save_stages",
            default=False,
            optional=True,
            tooltip="Saves the image of every stage to the output folder as soon as it is finished.",
        ),
        machines_input(),
    ]
