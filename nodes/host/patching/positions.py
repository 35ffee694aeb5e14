"""The positions' theta stretched (NTK), and whether a forward still has the embedder that does it."""

from __future__ import annotations

from typing import Any

from comfy.ldm.flux.layers import EmbedND

from ..node_text import origin_of
from ..run_log import RunLog

EMBEDDER = "diffusion_model.pe_embedder"


def stretched_embedder(model: Any, ntk_factor: float) -> Any:
    """A position embedder for a MODEL with theta stretched, or None for a factor of 1.

    Raises ValueError where another node has replaced the model's embedder.
    """
    if ntk_factor == 1.0:
        return None
    if EMBEDDER in model.object_patches:
        raise ValueError(
            f"ntk_factor is {ntk_factor:g}, but another node already replaced the model's positions "
            f"({_named(model.object_patches[EMBEDDER])}). Set ntk_factor to 1, or remove that node."
        )
    own = model.get_model_object(EMBEDDER)
    return type(own)(dim=own.dim, theta=own.theta * ntk_factor, axes_dim=own.axes_dim)


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
