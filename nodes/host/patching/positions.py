"""The positions' theta stretched (NTK), and whether a forward still has the embedder that does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.flux.layers import EmbedND

from ....clear_core.flux import pixel_size
from ....clear_core.layout import Grid
from ...options.by_size import BY_SIZE
from ...options.clear import ClearSettings
from ..node_text import origin_of
from ..run_log import RunLog

EMBEDDER = "diffusion_model.pe_embedder"


def stretched_embedder(model: Any, ntk_factor: float) -> Any:
    """A position embedder for a MODEL with theta stretched, or None for a factor of 1 or one by size.

    Raises ValueError where another node has replaced the model's embedder.
    """
    if ntk_factor in (1.0, BY_SIZE):
        return None
    if EMBEDDER in model.object_patches:
        raise ValueError(
            f"ntk_factor is {ntk_factor:g}, but another node already replaced the model's positions "
            f"({_named(model.object_patches[EMBEDDER])}). Set ntk_factor to 1, or remove that node."
        )
    return _stretched(model.get_model_object(EMBEDDER), ntk_factor)


def _stretched(own: Any, factor: float) -> Any:
    return type(own)(dim=own.dim, theta=own.theta * factor, axes_dim=own.axes_dim)


@contextmanager
def stretched_for(transformer: Any, factor: float) -> Iterator[None]:
    """For one forward: a transformer's own positions with theta stretched. Another node's positions are left alone.

    The size is known no earlier than in the forward, where an object patch of the MODEL would come too late.
    """
    put: Any = torch.compiler.disable(_put_stretched)
    before = put(transformer, factor)
    try:
        yield
    finally:
        if before is not None:
            transformer.pe_embedder = before


def _put_stretched(transformer: Any, factor: float) -> Any:
    """The embedder that was there; None where it stays."""
    own = transformer.pe_embedder
    if not _is_models_own(transformer):
        return None
    transformer.pe_embedder = _stretched(own, factor)
    return own


def _is_models_own(transformer: Any) -> bool:
    found = transformer.pe_embedder
    return type(found) is EmbedND and found.theta == transformer.params.theta


def note_size(transformer: Any, settings: ClearSettings, image: Grid, run_log: RunLog) -> None:
    """Tell the run log, before a forward, what the size of its image decides."""
    factor = settings.ntk_at(image)
    if not settings.by_size or factor == 1.0:
        return
    size = "{} x {} px".format(*pixel_size(image))
    if _is_models_own(transformer):
        run_log.note(f"by size ({size}): ntk_factor {factor:g}, proportional attention", warn=False)
    else:
        run_log.note(f"by size ({size}): proportional attention; positions are left to the other node", warn=False)


def check_positions(transformer: Any, own: Any, ntk_factor: float, run_log: RunLog) -> None:
    """Tell the run log whose positions a forward has. own: the embedder that Apply CLEAR Attention put in, or None."""
    found = transformer.pe_embedder
    if own is None:
        if type(found) is not EmbedND:
            run_log.note(f"positions by {_named(found)}", warn=False)
    elif type(found) is not type(own) or found.theta != own.theta:
        run_log.note(
            f"ntk_factor {ntk_factor:g} has no effect: another node replaced the model's positions after this one "
            f"({_named(found)}). Set ntk_factor to 1, or remove that node"
        )


def _named(embedder: Any) -> str:
    return f"{origin_of(type(embedder))}.{type(embedder).__name__}"
