"""Whether the page is dark or light, by the user's settings: pictures that nodes draw should look like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths

PALETTE = "Comfy.ColorPalette"
CUSTOM_PALETTES = "Comfy.CustomColorPalettes"
_LIGHT = ("light",)
"""The page's own light palettes; its others are dark."""


def page_is_light() -> bool:
    """By the settings of the user; of the default one, where there are several. False where there are none."""
    settings = _settings()
    name = str(settings.get(PALETTE, "dark"))
    custom = settings.get(CUSTOM_PALETTES)
    palette = custom.get(name.removeprefix("custom_")) if isinstance(custom, dict) else None
    return bool(palette.get("light_theme")) if isinstance(palette, dict) else name in _LIGHT


def _settings() -> dict[str, Any]:
    try:
        found = json.loads((_user_folder() / "comfy.settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # no page has been opened yet, or one is being written
    return found if isinstance(found, dict) else {}


def _user_folder() -> Path:
    # A prompt does not say which user has queued it: with --multi-user the default user's settings hold.
    return Path(folder_paths.get_user_directory()) / "default"
