"""The plugin of the demo's server, for a process that has the host and no server."""

from __future__ import annotations

from .custom_nodes.small_flux_loader import install

__all__ = ["install"]
