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

SPEAKS_ON_ITS_NODE: Final = True
"""For a schema's `not_idempotent`: what the node gives out shows text on that very node, now or while sampling.

ComfyUI gives a node the cached outputs of another with the same inputs. A model cached from a node that is gone
would speak to nobody; this makes the node's own id part of what is compared. (ComfyUI does that by itself for
nodes of the old style that ask for their id.)
"""


def make(factory: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """Call `factory` with those keyword arguments that its signature has.

    `advanced` (inputs that fold away) came with host 0.10, `search_aliases` with 0.11; a host without
    them shows the input unfolded, or finds the node by its name alone.
    """
    known = inspect.signature(factory).parameters
    return factory(*args, **{name: value for name, value in kwargs.items() if name in known})
