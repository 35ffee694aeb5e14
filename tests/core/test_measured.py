"""Files of measured cards: what is read of them, what is left out, and the nearest one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from benchmarks.card import __main__ as command
from benchmarks.card.results import Results
from benchmarks.card.supervise import DONE, Outcome
from clear_core.flux import LAYERS
from clear_core.show.measured import (
    Identity,
    MeasuredCard,
    MeasuredStep,
    NotACard,
    file_name,
    measured_cards,
    nearest,
    read_card,
)

RUN: dict[str, Any] = {
    "device": "NVIDIA Made Up 9000",
    "chip": "sm_90",
    "multiprocessors": 100,
    "torch": "2.9.1",
    "triton": "3.5.1",
    "source": "abc1234",
    "rehearsal": False,
}
ROW: dict[str, Any] = {"pixels": 2048, "blocks": LAYERS, "weights": "bfloat16", "radius": 16, "bands": 0, "s": 1.5}
ROWS: list[dict[str, Any]] = [
    ROW,
    {**ROW, "radius": 0, "s": 9.0},  # dense
    {"pixels": 8192, "blocks": LAYERS, "weights": "bfloat16", "radius": 16, "bands": 0, "left out": "out of memory"},
]


def write(folder: Path, run: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None) -> Path:
    """A file as the command itself writes it, under the name that it says."""
    results = Results(folder, run or RUN)
    results.save("steps", Outcome(DONE, 60.0, ROWS if rows is None else rows, []))
    return (folder / "card.json").replace(folder / file_name(results.run["device"]))


def test_a_card_is_read_from_what_the_command_writes(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path.name == "card-nvidia-made-up-9000.json"
    step = MeasuredStep(2048, LAYERS, "bfloat16", 16, 0, 1.5)
    identity = Identity("NVIDIA Made Up 9000", "sm_90", 100)
    assert read_card(path) == MeasuredCard(identity, "PyTorch 2.9.1, Triton 3.5.1", (step,))
    assert read_card(write(tmp_path, {**RUN, "triton": None})).versions == "PyTorch 2.9.1"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("{}", "it has no 'schema'"),
        ('{"schema": 2}', "its schema is 2; 1 is read"),
        ('{"schema": 1, "run": {}}', "it has no 'rehearsal'"),
        ({"rehearsal": True}, "it is of a rehearsal"),
        ({"multiprocessors": None}, "its multiprocessors is None"),
        ([{**ROW, "s": float("nan")}], "its s is nan"),
        ([{**ROW, "s": float("inf")}], "its s is inf"),
        ([{**ROW, "s": "1"}], "its s is '1'"),
        ([{**ROW, "pixels": 10**9}], "its pixels is 1000000000"),
        ([{**ROW, "radius": True}], "its radius is True"),
        ([{**ROW, "bands": -1}], "its bands is -1"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_something_else_is_logged_and_left_out(
    content: Any, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = write(tmp_path, {**RUN, "device": "Z"})
    bad = tmp_path / "card-a.json"
    if isinstance(content, str):
        bad.write_text(content, "utf-8")
    else:
        run, rows = ({**RUN, **content}, None) if isinstance(content, dict) else (RUN, content)
        write(tmp_path, {**run, "device": "A"}, rows)
    (tmp_path / "memory.json").write_text("another table", "utf-8")
    with pytest.raises(NotACard, match=f"card-a.json is not of a card that python dev.py card measured: .*{why}"):
        read_card(bad)
    with caplog.at_level(logging.WARNING):
        assert list(measured_cards(tmp_path)) == [read_card(good)]
    assert len(caplog.records) == 1
    assert list(measured_cards(tmp_path / "absent")) == []


def test_what_the_repository_has_is_read_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    for card in measured_cards():
        assert card.steps
    assert not caplog.records


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (("B", "sm_90", 100), "B"),  # the same card, although another one is as large
        (("C", "sm_90", 100), "A"),
        (("C", "sm_90", 70), "D"),
        (("C", "sm_89", 100), "E"),
        (("A", "sm_120", 100), None),
    ],
)
def test_the_nearest_card_is_the_same_one_or_the_nearest_of_its_chip(
    here: tuple[str, str, int], expected: str | None
) -> None:
    known = [("A", "sm_90", 100), ("B", "sm_90", 132), ("D", "sm_90", 50), ("E", "sm_89", 10)]
    found = nearest(Identity(*here), [MeasuredCard(Identity(*each), "", ()) for each in known])
    assert (found.identity.device if found is not None else None) == expected


def test_the_command_says_where_to_copy_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """There is no card: what the parts would find is made up."""
    found = {"machine": [RUN], "steps": ROWS}
    monkeypatch.setattr(command, "_run", lambda part, *_, **__: Outcome(DONE, 1.0, found[part.name], []))
    assert command.main(["--only", "steps", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "card.json to benchmarks/results/card-nvidia-made-up-9000.json" in said
    assert json.loads((tmp_path / "card.json").read_text("utf-8"))["schema"] == 1
    assert read_card(tmp_path / "card.json").identity.device == "NVIDIA Made Up 9000"
