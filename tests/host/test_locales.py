"""The words in `locales/`: English is the schemas' own, Chinese and Japanese say all of it and nothing else.

After a change of a schema's words: CLEAR_WRITE_LOCALES=1 python dev.py test tests/host/test_locales.py
writes the English file anew; what the other languages lack is then named here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRANSLATIONS = ("zh", "ja")
LANGUAGES = ("en", *TRANSLATIONS)
# Its tooltip also tells which files are on this machine: in English the page takes it from the server.
LIVE = ("CLEARWeightsLoader", "weights_name")
Words = dict[str, Any]


def read(language: str, name: str) -> Words:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def schemas(pack: dict[str, Any]) -> dict[str, Any]:
    """Every node of this pack."""
    ours = pack["CLEARApply"].__module__.rpartition(".nodes.")[0]
    return {name: node.define_schema() for name, node in pack.items() if node.__module__.startswith(ours + ".")}


@pytest.fixture(scope="session")
def english(schemas: dict[str, Any]) -> Words:
    """What the English file must be."""
    words: Words = {}
    for name, schema in schemas.items():
        inputs = {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs}
        outputs = {str(i): {"name": o.display_name or o.io_type} for i, o in enumerate(schema.outputs)}
        words[name] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": inputs,
            "outputs": outputs,
        }
    del words[LIVE[0]]["inputs"][LIVE[1]]["tooltip"]
    return words


def texts(words: Words, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with its place."""
    for key, value in words.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def kept(text: str) -> set[str]:
    """What no language translates: numbers, names such as FLUX, LoRA and models/clear, and values that are typed."""
    kept = r"\d+(?:\.\d+)?|\b\w+(?:/\w+)+|\b\w+_\w+\b|\bcuda:[\w:=,]+\w|\b[A-Za-z]*[A-Z]\w*[A-Z]\w*\b"
    typed = r"\b(?:auto|all|double|single|exact|average|when missing|never)\b(?=[:,])"
    names = {word.removesuffix("s") if word[0].isupper() else word for word in re.findall(kept, text)}
    return names | set(re.findall(typed, text))


def test_english_is_the_schemas_own(english: Words) -> None:
    if os.environ.get("CLEAR_WRITE_LOCALES"):
        path = ROOT / "locales" / "en" / "nodeDefs.json"
        path.write_text(json.dumps(english, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    found, expected = dict(texts(read("en", "nodeDefs"))), dict(texts(english))
    assert found == expected


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_nothing_is_missing_and_nothing_stale(english: Words, language: str) -> None:
    expected = {place for place, _ in texts(english)} | {f"{LIVE[0]}/inputs/{LIVE[1]}/tooltip"}
    found = {place for place, _ in texts(read(language, "nodeDefs"))}
    assert found == expected, f"missing: {sorted(expected - found)}; stale: {sorted(found - expected)}"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nodeDefs", "main", "settings"])
def test_every_text_can_be_shown(language: str, name: str) -> None:
    """The page reads { } @ | as its own signs."""
    for place, text in texts(read(language, name)):
        assert text and text == text.strip(), place
        assert not set(text) & set("{}@|<>"), place


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_numbers_names_and_typed_values_are_kept(schemas: dict[str, Any], language: str) -> None:
    translated = dict(texts(read(language, "nodeDefs")))
    for place, text in texts(read("en", "nodeDefs")):
        if place.endswith(("tooltip", "description")):
            # An input is called what the page calls it in this language.
            node = place.split("/")[0]
            labels = {i.id: translated[f"{node}/inputs/{i.id}/name"] for i in schemas[node].inputs}
            lost = {word for word in kept(text) if labels.get(word, word) not in translated[place]}
            assert not lost, f"{place} lost {lost}"
            assert not translated[place].isascii(), f"{place} is not translated"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_the_same_words_are_translated_alike(language: str) -> None:
    translated, said = dict(texts(read(language, "nodeDefs"))), {}
    for place, text in texts(read("en", "nodeDefs")):
        if place.split("/")[1] != "outputs":
            first = said.setdefault(text, translated[place])
            assert translated[place] == first, f"{place}: {text!r}"


def test_what_belongs_to_no_node(schemas: dict[str, Any]) -> None:
    """The pack's own types, and the settings' words."""
    sockets = [socket for schema in schemas.values() for socket in (*schema.inputs, *schema.outputs)]
    own = {socket.io_type for socket in sockets if socket.io_type.startswith("CLEAR_")}
    main = {language: read(language, "main") for language in LANGUAGES}
    assert {kind: kind for kind in own} == main["en"]["dataTypes"]
    expected = {place for place, _ in texts(main["en"])}
    for language in TRANSLATIONS:
        assert {place for place, _ in texts(main[language])} == expected


def test_panels_say_nothing_else() -> None:
    """The words that web/*.mjs gives to `t`; the values put in at $names are in every language's text."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.mjs"))
    said = set(re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', sources))
    # Beside these only the function itself and a call of it with what is not a literal could be.
    assert len(re.findall(r"\bt\(", sources)) == len(re.findall(r'\bt\(\s*"', sources)) + 1
    for language in LANGUAGES:
        words = read(language, "main")["clearPanels"]
        assert words.keys() == said
        for text, translated in words.items():
            assert sorted(re.findall(r"\$[a-z]+", translated)) == sorted(re.findall(r"\$[a-z]+", text)), translated
            assert (text == translated) == (language == "en"), translated


def test_settings_are_the_pages_own() -> None:
    source = (ROOT / "web" / "clear.js").read_text(encoding="utf-8")
    pattern = r'id: "([\w.]+)",\s*category: \["([^"]*)", "([^"]*)"[^}]*?name: "([^"]*)",\s*tooltip: "([^"]*)"'
    settings = re.findall(pattern, source)
    assert len(settings) == source.count('id: "ClearAttention.') > 0
    words = {key.replace(".", "_"): {"name": name, "tooltip": tooltip} for key, _, _, name, tooltip in settings}
    assert read("en", "settings") == words
    for language in TRANSLATIONS:
        found = dict(texts(read(language, "settings")))
        assert found.keys() == dict(texts(words)).keys()
        assert not any(text.isascii() for text in found.values())
    groups = {group for _, *both, _, _ in settings for group in both}
    assert set(read("en", "main")["settingsCategories"]) <= groups
