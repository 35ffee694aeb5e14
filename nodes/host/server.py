"""ComfyUI's server, where there is one."""

from __future__ import annotations

import sys
from typing import Any


def running_server() -> Any | None:
    """The PromptServer of this process; None where ComfyUI runs without its server."""
    module = sys.modules.get("server")  # importing it would start half of one
    return getattr(getattr(module, "PromptServer", None), "instance", None)
