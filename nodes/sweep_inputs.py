"""The inputs of CLEAR Sweep, in their released order."""

from __future__ import annotations

from comfy_api.latest import io

from .schema import CLEAR_WEIGHTS, make

AXES = "weights: clear_local_16\nradius: 8, 16, 32"


def sweep_inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Guider.Input,
            "guider",
            tooltip="As in SamplerCustomAdvanced, its model as loaded or with LoRAs. This node applies CLEAR to it, "
            "so leave out Apply CLEAR Attention.",
        ),
        make(io.Sampler.Input, "sampler", tooltip="As in SamplerCustomAdvanced."),
        make(io.Sigmas.Input, "sigmas", tooltip="As in SamplerCustomAdvanced."),
        make(
            io.Latent.Input,
            "latent_image",
            tooltip="As in SamplerCustomAdvanced. Each image of a batch is sampled by itself, with every setting.",
        ),
        make(io.Vae.Input, "vae", tooltip="Decodes the images: in strips where they do not fit into memory."),
        make(
            io.String.Input,
            "axes",
            default=AXES,
            multiline=True,
            tooltip="A setting a line, its values separated by commas: radius: 8, 16, 32. The first with several "
            "values makes the columns, the second the rows. Settings: weights, radius, down_factor, strength, "
            "ntk_factor, proportional_attention, schedule, blocks, references, backend.",
        ),
        make(
            io.String.Input,
            "seeds",
            default="0",
            tooltip="Seeds of the noise, separated by commas. Every setting is sampled with each; the table has means.",
        ),
        make(
            io.String.Input,
            "filename_prefix",
            default="CLEAR_sweep",
            tooltip="The rows are saved in PREFIX.csv of ComfyUI's output folder, the images in the folder PREFIX.",
        ),
        make(
            io.Boolean.Input,
            "dense",
            default=True,
            tooltip="Samples the dense image of each seed once and compares every other image with it. Off: PSNR and "
            "SSIM are not measured.",
        ),
        make(
            io.Boolean.Input,
            "reuse",
            default=True,
            advanced=True,
            tooltip="Takes over what the CSV file has of the same prompt, model, sampler, noise and settings. Off: "
            "every run samples all of it anew.",
        ),
        make(
            CLEAR_WEIGHTS.Input,
            "weights",
            optional=True,
            tooltip="The weights, where axes has no line for them: from Load CLEAR Weights or Distill CLEAR Weights.",
        ),
    ]
