"""The file of this machine's own measurements: what is read back, what is stale, and what is broken."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

from clear_core.show.cost import Model
from clear_core.show.estimate import Rate, Timings
from clear_core.show.own_times import Key, read, write

KEY = Key("A card", "2.9.1", 3072, 24, "bfloat16", "auto")
TIMINGS = Timings(
    Rate(1e-3, 2e-6), Rate(2e-3, 1e-6), Rate(0, 0, 1e-9), {"sdpa": Rate(1e-4, 0, 2e-9)}, {"float8_e4m3fn": 1e-12}, 2e10
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "user" / "times.json"


def test_what_was_written_is_read(path: Path) -> None:
    write(path, KEY, TIMINGS)
    assert read(path, KEY) == TIMINGS
    again = dataclasses.replace(TIMINGS, transfer=None)
    write(path, KEY, again)
    assert read(path, KEY) == again
    assert len(json.loads(path.read_text("utf-8"))["entries"]) == 1
    assert [file.name for file in path.parent.iterdir()] == ["times.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"device": "Another card"},
        {"torch": "2.10.0"},
        {"channels": 1536},
        {"heads": 12},
        {"dtype": "float16"},
        {"backend": "sdpa"},
    ],
)
def test_timings_of_anything_else_are_not_used(path: Path, change: dict[str, object]) -> None:
    write(path, KEY, TIMINGS)
    assert read(path, dataclasses.replace(KEY, **change)) is None  # type: ignore[arg-type]


def test_a_key_is_of_the_pytorch_that_runs() -> None:
    key = Key.of("A card", Model(), "auto")
    assert key == Key("A card", torch.__version__, 3072, 24, "bfloat16", "auto")


def test_the_file_stays_small(path: Path) -> None:
    keys = [dataclasses.replace(KEY, channels=128 * (1 + i)) for i in range(70)]
    for key in keys:
        write(path, key, TIMINGS)
    assert [read(path, key) is not None for key in keys] == [False] * 6 + [True] * 64


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 2, "entries": []}',
        '{"schema": 1, "entries": 5}',
        '{"schema": 1, "entries": ["x", {}]}',
        '{"schema": 1}',
    ],
)
def test_a_broken_file_says_nothing_and_is_replaced(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    assert read(path, KEY) is None
    write(path, KEY, TIMINGS)
    assert read(path, KEY) == TIMINGS


@pytest.mark.parametrize("value", [-1.0, "fast", None, True, float("inf")])
def test_an_entry_with_a_wrong_number_is_left_out(path: Path, caplog: pytest.LogCaptureFixture, value: object) -> None:
    write(path, KEY, TIMINGS)
    content = json.loads(path.read_text("utf-8"))
    content["entries"][0]["timings"]["local"]["sdpa"]["pair"] = value
    path.write_text(json.dumps(content), "utf-8")
    with caplog.at_level(logging.WARNING, "clear-attention"):
        assert read(path, KEY) is None
    assert "no number of seconds" in caplog.text
