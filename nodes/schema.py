"""Node schemas that also load on older hosts: arguments the host does not know yet are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


def make(factory: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """Call `factory` with those keyword arguments that its signature has.

    `advanced` (inputs that fold away) came with host 0.10, `search_aliases` with 0.11; a host without
    them shows the input unfolded, or finds the node by its name alone.
    """
    known = inspect.signature(factory).parameters
    return factory(*args, **{name: value for name, value in kwargs.items() if name in known})
