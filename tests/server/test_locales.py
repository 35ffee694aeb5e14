"""The real server gives the page this pack's words in every language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).parents[2] / "locales"


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_the_words_are_served(client: Any, language: str) -> None:
    served = client.get_json("/i18n")[language]
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (LOCALES / language).glob("*.json")}
    assert files.keys() == {"main", "nodeDefs", "settings"}
    for key, words in (*files.pop("main").items(), *files.items()):
        # Another pack's words may stand beside them.
        assert {name: served[key][name] for name in words} == words
