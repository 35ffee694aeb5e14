"""Ways to compute local attention, one file each; `registry` lists them and chooses."""

from .base import Backend
from .registry import (
    AUTO,
    BACKENDS,
    BackendError,
    BackendStatus,
    Choice,
    backend_names,
    choose_backend,
    list_backends,
)

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "BackendError",
    "BackendStatus",
    "Choice",
    "backend_names",
    "choose_backend",
    "list_backends",
]
