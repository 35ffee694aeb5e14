"""An attention override for some of a model's calls, which leaves the others to the one before: as SolAttn does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

HOOK = "optimized_attention_override"


def apply(model: Any, mine: Callable[[Mapping[str, Any]], bool]) -> Any:
    """mine: from transformer_options, whether a call is taken over."""
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    previous = options.get(HOOK)

    def attention(func: Any, *args: Any, **kwargs: Any) -> Any:
        if previous is None or mine(kwargs["transformer_options"]):
            return func(*args, **kwargs)
        return previous(func, *args, **kwargs)

    options[HOOK] = attention
    return patched
