"""The attention of one query in one layer, read from a forward of the host's FLUX that stops there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...clear_core.call import as_bias
from ...clear_core.layout import TokenLayout
from ...clear_core.pooling import pool
from ...clear_core.weights import BlockId
from ..insight.attention_row import AttentionRow, attention_row
from ..options.clear import USUAL, ClearSettings
from .attention_call import POOLING, HostAttentionCall, Pooling
from .flux_model import transformer_of
from .latent_colours import latent_colours
from .observe import Observed, check_block


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Which query. percent: of the schedule, x, y: of the image, each 0 to 1. head: -1 for the mean of all."""

    block: BlockId
    head: int
    percent: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """What the forward gave. heads: of the model. sigma: the noise level. settings: the model's, or the usual ones.

    patched: whether the model has CLEAR. left_dense: why this layer runs dense all the same, a clause, or "".
    banded: whether CLEAR Multi-GPU is in the chain. picture: the latent in grey, float32 [height, width] of 0 to 1, or
    None where the host has no preview factors for it.
    """

    row: AttentionRow
    family: str
    heads: int
    sigma: float
    settings: ClearSettings
    patched: bool
    left_dense: str
    banded: bool
    picture: Tensor | None


def probe_attention(
    model: Any, positive: Sequence[Any], latent: Mapping[str, Any], request: ProbeRequest, *, seed: int
) -> ProbeResult:
    """Run one forward of a MODEL over a LATENT, noised as the request says, up to the requested layer.

    The model stays as it was. Bands are left out: they would split the query's keys.
    Raises ValueError for what this model or latent does not have, naming it and what is allowed.
    """
    flux, family = transformer_of(model)
    check_block(flux, request.block)
    if not -1 <= request.head < flux.num_heads:
        raise ValueError(
            f"head is {request.head}; this model has {flux.num_heads} heads: 0 to {flux.num_heads - 1}, or -1 for the "
            "mean of all."
        )
    observed = Observed(model, positive, latent)
    settings, pooling = observed.settings or USUAL, model.model_options["transformer_options"].get(POOLING)
    found: list[tuple[AttentionRow, str]] = []

    def read(call: HostAttentionCall, layout: TokenLayout) -> None:
        assert call.frame is not None
        row = _row(call, layout, request, settings, pooling)
        found.append((row, settings.left_dense(request.block, active=call.frame.active)))

    observed.forward(request.percent, seed, {request.block}, read)
    ((row, left_dense),) = found
    return ProbeResult(
        row,
        family,
        flux.num_heads,
        observed.sigma(request.percent),
        settings,
        observed.settings is not None,
        left_dense,
        observed.banded,
        _picture(model, observed.samples),
    )


def _row(
    call: HostAttentionCall,
    layout: TokenLayout,
    request: ProbeRequest,
    settings: ClearSettings,
    pooling: Pooling | None,
) -> AttentionRow:
    """The requested query's row of one layer's attention call; of a batch the first entry."""
    grid = layout.image
    heads = slice(None) if request.head < 0 else slice(request.head, request.head + 1)
    query, key = call.query[0, heads], call.key[0, heads]
    position = (_token(request.y, grid.height), _token(request.x, grid.width))
    index = layout.text + position[0] * grid.width + position[1]
    bias = _bias(call.mask, heads, index, layout)
    pooled = None
    if pooling is not None:
        if bias is not None:
            raise ValueError(
                "The conditioning brings an attention mask, which has no exact meaning for down-sampled tokens. "
                "Set down_factor of Apply CLEAR Attention to 1."
            )
        image = key[None, :, layout.text : layout.text + grid.tokens]
        pooled = pool(image, grid, pooling(request.block))[0]
    return attention_row(query[:, index], key, layout, position, settings, bias=bias, pooled=pooled)


def _bias(mask: Tensor | None, heads: slice, index: int, layout: TokenLayout) -> Tensor | None:
    """What the host's mask adds to one query's scores: float32 [heads or 1, tokens]."""
    if mask is None:
        return None
    row = mask[0, heads if mask.shape[1] > 1 else slice(None), index if mask.shape[2] > 1 else 0]
    return as_bias(row, torch.float32).expand(-1, layout.tokens)


def _token(share: float, size: int) -> int:
    return min(int(share * size), size - 1)


def _picture(model: Any, samples: Tensor) -> Tensor | None:
    """What the latent shows, in grey."""
    known = model.get_model_object("latent_format")
    colours = latent_colours(known, known.process_in(samples.float()))
    return None if colours is None else colours.mean(-1)
