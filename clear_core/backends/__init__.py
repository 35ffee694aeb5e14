"""Implementations of local attention. `registry` lists them and chooses one for a call."""

from .base import Backend
from .registry import (
    AUTO,
    BACKENDS,
    COSTS,
    BackendError,
    Choice,
    backend_names,
    choose_backend,
)

__all__ = [
    "AUTO",
    "BACKENDS",
    "COSTS",
    "Backend",
    "BackendError",
    "Choice",
    "backend_names",
    "choose_backend",
]
