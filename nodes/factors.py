"""CLEAR Factors: which radius is enough for a model and a prompt, and why, as a picture, a table and a number."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.weights import LARGEST_RADIUS
from . import host
from .insight.factors_figure import factors_page
from .insight.picture import as_image, page_theme
from .insight.radius_study import NONE
from .options.factors import FEWEST_QUERIES, MOST_QUERIES, FactorsInputs
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEARFactors(io.ComfyNode):
    """Runs the model once or twice at each point of the schedule, dense."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARFactors",
            display_name="CLEAR Factors",
            category=CATEGORY,
            description="Measures in each layer of the model how much of its attention lies in windows of each radius "
            "and how much the layer's output would change, and recommends the smallest radius that passes your bounds.",
            search_aliases=[
                "clear",
                "radius",
                "attention",
                "recommend",
                "locality",
                "mass",
                "rank",
                "layer",
                "explain",
            ],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(display_name="table"),
                io.Int.Output(display_name="radius"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            not_idempotent=CACHED_PER_NODE_ID,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        percents: str | None = None,
        least_mass: float | None = None,
        largest_error: float | None = None,
        radius: int | None = None,
        blocks: str | None = None,
        queries: int | None = None,
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        known = {
            "percents": percents,
            "least_mass": least_mass,
            "largest_error": largest_error,
            "radius": radius,
            "blocks": blocks,
            "queries": queries,
        }
        try:
            FactorsInputs(**{name: value for name, value in known.items() if value is not None}).request()
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
        percents: str,
        least_mass: float,
        largest_error: float,
        radius: int,
        blocks: str,
        queries: int,
    ) -> io.NodeOutput:
        request = FactorsInputs(percents, least_mass, largest_error, radius, blocks, queries).request()
        study = host.measure_factors(model, positive, latent_image, request, seed=seed)
        table = study.report()
        image = as_image(factors_page(study, page_theme(host.page_is_light())))
        # The picture below it shows the rest.
        host.node_text_sender(cls.hidden.unique_id)(study.summary())
        preview = ui.PreviewImage(image, cls=cls).as_dict()
        found = NONE if study.recommended is None else study.recommended
        return io.NodeOutput(image, table, found, ui={**preview, "text": (table,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    new = FactorsInputs()
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX model, best from before Apply CLEAR Attention: distilled weights attend differently from "
            "the model that they were made from. A window is left out, LoRAs count.",
        ),
        make(
            io.Conditioning.Input,
            "positive",
            tooltip="The prompt, with guidance and all else that a sampler would get.",
        ),
        make(
            io.Latent.Input,
            "latent_image",
            tooltip="The image to measure on: a picture through VAE Encode, or the result of a sampler. The node adds "
            "noise according to percents. From a batch it takes the first image.",
        ),
        make(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the added noise, and of the choice of queries.",
        ),
        make(
            io.String.Input,
            "percents",
            default=new.percents,
            tooltip="Positions in the sampling schedule, up to 8. 0: the first step, pure noise. 1: the end, no noise. "
            "Each costs one or two runs of the model.",
        ),
        make(
            io.Float.Input,
            "least_mass",
            default=new.least_mass,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The share of the attention that must lie on the text and in the window, in every layer and "
            "timestep, as the mean of the heads. 1: all of it.",
        ),
        make(
            io.Float.Input,
            "largest_error",
            default=new.largest_error,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far the window may move the output of a layer's attention, relative to its size, in every "
            "layer and timestep, as the mean of the heads. Distillation makes up for more than 0.1.",
        ),
        make(
            io.Int.Input,
            "radius",
            default=new.radius,
            min=0,
            max=LARGEST_RADIUS,
            tooltip="The radius that the table judges, in image tokens, such as 8, 16 or 32. 0: the recommended one, "
            "for which the model runs twice.",
        ),
        make(
            io.String.Input,
            "blocks",
            default=new.blocks,
            tooltip="The transformer blocks to measure: all, double, single, or a list such as s0-18, d3 (d: double, "
            "s: single, counted from 0). Fewer are faster.",
            advanced=True,
        ),
        make(
            io.Int.Input,
            "queries",
            default=new.queries,
            min=FEWEST_QUERIES,
            max=MOST_QUERIES,
            tooltip="The number of image tokens whose attention is measured in each layer, drawn by seed. More take "
            "longer and are more exact.",
            advanced=True,
        ),
    ]
