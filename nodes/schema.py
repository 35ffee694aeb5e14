"""Node schemas that also load on older hosts: arguments the host does not know yet are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

from comfy_api.latest import io

Made = TypeVar("Made")

CATEGORY: Final = "CLEAR"
CLEAR_WEIGHTS = io.Custom("CLEAR_WEIGHTS")
"""The type that travels between this pack's nodes: a `clear_core.weights.ClearWeights`."""
CLEAR_TRAINING_SET = io.Custom("CLEAR_TRAINING_SET")
"""A `clear_core.distill.samples.TrainingSet`."""

CACHED_PER_NODE_ID: Final = True
"""For a schema's `not_idempotent`: ComfyUI caches the outputs of this node by its id too.

Otherwise ComfyUI gives a node the cached outputs of another one with the same inputs. A patched MODEL shows its text on
the node that made it, so a cached one would write to a node that is gone. (Hosts do this by themselves for nodes of the
old style that ask for their id.)
"""


def make(factory: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """Call `factory` with those keyword arguments that its signature has.

    `advanced` (inputs that fold away) came with host 0.10, `search_aliases` with 0.11; a host without
    them shows the input unfolded, or finds the node by its name alone (`web/clear.js` adds words to that).
    """
    known = inspect.signature(factory).parameters
    return factory(*args, **{name: value for name, value in kwargs.items() if name in known})
