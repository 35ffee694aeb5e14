"""Pictures follow the palette in the user's settings, as the page saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CUSTOM = {"mine": {"id": "mine", "light_theme": True}, "night": {"id": "night"}}


@pytest.fixture
def light(nodes_api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Whether the page is light, by this text of the settings file; None for no file."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))

    def ask(text: str | None) -> bool:
        if text is not None:
            (tmp_path / "default").mkdir(exist_ok=True)
            (tmp_path / "default" / "comfy.settings.json").write_text(text, encoding="utf-8")
        return nodes_api.module("nodes.host").page_is_light()

    return ask


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ("light", True),
        ("dark", False),
        ("solarized", False),
        ("mine", True),
        ("custom_mine", True),
        ("night", False),
        ("gone", False),
    ],
)
def test_the_palette_decides(light: Any, palette: str, expected: bool) -> None:
    assert light(json.dumps({"Comfy.ColorPalette": palette, "Comfy.CustomColorPalettes": CUSTOM})) is expected


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"Comfy.ColorPalette": 3, "Comfy.CustomColorPalettes": []}'])
def test_without_a_palette_it_is_dark(light: Any, text: str | None) -> None:
    assert light(text) is False
