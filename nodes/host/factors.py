"""How much circles keep of a model's own attention: measured layer by layer in forwards of the host's FLUX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...clear_core.factors import Factors
from ...clear_core.layout import TokenLayout
from ...clear_core.radius import (
    RadiusCurve,
    SampledLayer,
    candidate_radii,
    circle_factors,
    radius_curve,
    recommended_radius,
    sampled_rows,
)
from ...clear_core.scale import softmax_scale
from ...clear_core.weights import BlockId
from ..insight.radius_study import MeasuredLayer, RadiusStudy
from ..options.clear import USUAL, ClearSettings
from ..options.factors import FactorsRequest
from .attention_call import KEY, HostAttentionCall
from .observe import Observed

_SMALLEST_SIDE = 4  # tokens: below there is hardly a window that is smaller than the image
_Place = tuple[float, BlockId]
"""Where a layer was measured: the point of the schedule, and the block."""


def measure_factors(
    model: Any, positive: Sequence[Any], latent: Mapping[str, Any], request: FactorsRequest, *, seed: int
) -> RadiusStudy:
    """Run a MODEL, dense, over a LATENT noised to each point of the schedule, and measure circles in its layers.

    Twice where the radius to judge is the recommended one, which is known after the first time. The model stays as it
    was. seed: of the noise, and of the choice of queries.
    Raises ValueError for what cannot be measured, naming it and what is allowed.
    """
    observed = Observed(model, positive, latent, dense=True)
    blocks, grid = _blocks(observed.transformer, request), observed.image
    if min(grid.height, grid.width) < _SMALLEST_SIDE:
        raise ValueError(
            f"latent_image has {grid} image tokens; CLEAR Factors needs {_SMALLEST_SIDE} x {_SMALLEST_SIDE} or more. "
            "Connect a latent of the size that you generate, such as 1024 x 1024 pixels (64 x 64 tokens)."
        )
    rows, radii, settings = sampled_rows(grid, request.queries, seed), candidate_radii(grid), observed.settings
    bar = comfy.utils.ProgressBar((1 if request.radius else 2) * len(request.percents) * len(blocks))
    curves: dict[_Place, RadiusCurve] = {}
    factors: dict[_Place, Factors] = {}
    layouts: list[TokenLayout] = []

    def forwards(measure: Callable[[_Place, SampledLayer], None]) -> None:
        for percent in request.percents:

            def read(call: HostAttentionCall, layout: TokenLayout, percent: float = percent) -> None:
                layouts[:] = [layout]
                measure((percent, call.block), _layer(call, layout, rows, settings or USUAL))
                bar.update(1)

            observed.forward(percent, seed, blocks, read)

    def curve(place: _Place, layer: SampledLayer) -> None:
        curves[place] = radius_curve(layer, radii)
        if request.radius:
            factors[place] = circle_factors(layer, request.radius)

    def judge(place: _Place, layer: SampledLayer) -> None:
        factors[place] = circle_factors(layer, judged)

    forwards(curve)
    recommended = recommended_radius(
        list(curves.values()), least_mass=request.least_mass, most_error=request.most_error
    )
    judged = request.radius or recommended or radii[-1]
    if not request.radius:
        forwards(judge)
    return RadiusStudy(
        request,
        observed.family,
        layouts[0],
        len(rows),
        seed,
        [MeasuredLayer(block, observed.sigma(at), curves[at, block], factors[at, block]) for at, block in curves],
        recommended,
        judged,
        model.model_options["transformer_options"].get(KEY, "").partition("\n")[0],
        observed.banded,
    )


def _blocks(flux: Any, request: FactorsRequest) -> tuple[BlockId, ...]:
    """The chosen blocks of a model. Raises ValueError for one that it does not have."""
    double, single = len(flux.double_blocks), len(flux.single_blocks)
    request.blocks.check_depth(double, single)
    every = [BlockId("double", i) for i in range(double)] + [BlockId("single", i) for i in range(single)]
    return tuple(block for block in every if block in request.blocks)


def _layer(call: HostAttentionCall, layout: TokenLayout, rows: Tensor, settings: ClearSettings) -> SampledLayer:
    """A layer's attention call as it is measured. Raises ValueError for one with a mask."""
    if call.mask is not None:
        raise ValueError(
            "The conditioning brings an attention mask, and CLEAR Factors measures attention without one. Connect "
            "conditioning without Redux strength, regional prompts or the like."
        )
    query, key, value = (tensor[0] for tensor in (call.query, call.key, call.value))  # the first of a batch
    return SampledLayer(
        query,
        key,
        value,
        layout,
        rows,
        softmax_scale(query.shape[-1], layout.tokens, proportional=settings.proportional_at(layout.image)),
        settings.references,
        check=comfy.model_management.throw_exception_if_processing_interrupted,
    )
