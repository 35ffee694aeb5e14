"""When a VAE works in tiles."""

from __future__ import annotations

from typing import Final

AUTO: Final = "auto"
ALWAYS: Final = "always"
NEVER: Final = "never"
TILINGS: Final = (AUTO, ALWAYS, NEVER)
