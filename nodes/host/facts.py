"""What a MODEL is, for the nodes that explain it: its size, and what Apply CLEAR Attention made of it."""

from __future__ import annotations

from typing import Any

import torch

from ..figures import ModelFacts
from .frame import KEY, SETTINGS
from .patch import CHROMA, transformer_of


def model_facts(model: Any) -> ModelFacts:
    """Reads, changes nothing, loads nothing. Raises ValueError for a model that CLEAR does not work on."""
    flux, family = transformer_of(model)
    options = model.model_options.get("transformer_options", {})
    base = model.model
    # Weights may be stored in 8 bits; activations never are.
    dtype = base.manual_cast_dtype or base.get_dtype()
    return ModelFacts(
        family=family,
        device=torch.device(model.load_device),
        dtype=dtype if dtype.itemsize >= 2 else torch.bfloat16,
        double=len(flux.double_blocks),
        single=len(flux.single_blocks),
        channels=flux.hidden_size,
        heads=flux.num_heads,
        can_be_cut=family != CHROMA,
        settings=options.get(SETTINGS),
        headline=options.get(KEY, ""),
    )
