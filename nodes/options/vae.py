"""How an image passes a VAE."""

from __future__ import annotations

from typing import Final, Literal

AUTO: Final = "auto"
ALWAYS: Final = "always"
NEVER: Final = "never"
IN_STRIPS: Final = "strips"
TILINGS: Final = (AUTO, ALWAYS, NEVER, IN_STRIPS)
"""The values of `vae_tiling`: always means in tiles."""

Way = Literal["whole", "strips", "tiles"]

_FORCED: Final[dict[str, Way]] = {ALWAYS: "tiles", NEVER: "whole", IN_STRIPS: "strips"}


def way_of(tiling: str, fits: bool, strips: bool) -> Way:
    """fits: whether memory allows the whole image at once. strips: whether the VAE can be computed in strips."""
    if tiling == AUTO:
        return "whole" if fits else "strips" if strips else "tiles"
    return _FORCED[tiling]
