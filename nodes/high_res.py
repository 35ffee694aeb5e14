"""CLEAR High-Res Upscale: upscales an image in stages, each enlarged, noised and denoised with CLEAR.

The node expands into the graph that a user would wire by hand from core nodes and this pack's. So every stage has
ComfyUI's preview and progress and can be cancelled, and finished stages stay cached for the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from . import host
from .high_res_graph import StageNodes, add_stage
from .high_res_inputs import LIMITS, high_res_inputs
from .high_res_parts import numbered
from .options.bands import check_bands, resolve_bands
from .options.limits import one_of, within
from .options.machines import parse_address
from .options.stages import Stage, plan_stages
from .options.target import MEGAPIXELS, SIZE_BY, Target
from .options.vae import AUTO, TILINGS
from .schema import CATEGORY, make


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
            inputs=high_res_inputs(),
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
        scale: float | None = None,
        size_by: str | None = None,
        vae_tiling: str | None = None,
        machines: str | None = None,
    ) -> bool | str:
        numbers = (target_megapixels, denoise, guidance, ntk_factor, scale)
        try:
            check_bands(devices, bands, None)
            parse_address(machines or "")
            for (name, (low, high)), value in zip(LIMITS.items(), numbers, strict=True):
                if value is not None:
                    within(name, value, low, high)
            # ComfyUI does not validate the nodes of an expanded graph.
            for name, value, known in (
                ("sampler_name", sampler_name, host.SAMPLERS),
                ("scheduler", scheduler, host.SCHEDULERS),
            ):
                if value is not None and value not in known:
                    raise ValueError(f"{name} is {value!r:.60}; choose one that KSampler has, such as {known[0]}")
            for name, value, known in (("size_by", size_by, SIZE_BY), ("vae_tiling", vae_tiling, TILINGS)):
                if value is not None:
                    one_of(name, value, known)
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
        vae_tiling: str = AUTO,
        size_by: str = MEGAPIXELS,
        long_side: int = Target.long_side,
        scale: float = Target.scale,
        save_stages: bool = False,
        machines: str = "",
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
        if machines and not host.keeps_outputs():
            raise ValueError("machines needs ComfyUI's cache: start it without --cache-none, or leave machines empty.")
        batch, height, width = image.shape[:3]
        target = Target(target_megapixels, size_by, long_side, scale)
        planned = plan_stages(width, height, target.megapixels_of(width, height), stages)
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
            call = host.call_number(graph)
            given |= {
                name: graph.node("CLEARItem", values=wires[name], number=call).out(0)
                for name, value in given.items()
                if value is not None
            }
        inputs |= {"vae_tiling": vae_tiling, "save_stages": save_stages, "machines": machines}
        done = [_upscaled(graph, planned, given | {"image": one}, inputs) for one in _singles(graph, given, batch)]
        host.start_upscale(
            cls.hidden.unique_id,
            model,
            vae,
            weights,
            (width, height),
            planned,
            resolve_bands(inputs["devices"], inputs["bands"], "exact"),
            inputs["steps"],
            vae_tiling,
            [[stage.ids for stage in one] for one in done],
        )
        # The images of each stage.
        joined = [_joined(graph, [stage.image for stage in one]) for one in zip(*done, strict=True)]
        listed = graph.node("CLEARStages", **numbered(joined))
        return io.NodeOutput(joined[-1], listed.out(0), expand=graph.finalize())


def _upscaled(graph: Any, planned: Sequence[Stage], given: dict[str, Any], inputs: dict[str, Any]) -> list[StageNodes]:
    """Add all stages of one image."""
    done: list[StageNodes] = []
    for number, stage in enumerate(planned, 1):
        done.append(add_stage(graph, number, stage, given, inputs))
        given["image"] = done[-1].image
    return done


def _singles(graph: Any, given: dict[str, Any], batch: int) -> list[Any]:
    """Each image of a batch by itself: sampling takes the memory of one, and each comes out as it would alone."""
    image = given["image"]
    if batch == 1:
        return [image]
    return [graph.node("ImageFromBatch", image=image, batch_index=i, length=1).out(0) for i in range(batch)]


def _joined(graph: Any, images: Sequence[Any]) -> Any:
    return images[0] if len(images) == 1 else graph.node("CLEARBatch", **numbered(images)).out(0)
