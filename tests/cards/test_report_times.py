"""What CLEAR Report says of the time of a step, by the files of measured cards, on a simulated card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core.show.measured import file_name
from devtools.cards import cards
from devtools.models import flux_model

ABSENT = "Time per step on this card: not measured (Measure now on Apply CLEAR Attention, or python dev.py card)"
HERE = {"device": "Simulated card", "chip": "sm_90", "multiprocessors": 132}
STEPS = [
    {"pixels": pixels, "blocks": 57, "weights": "bfloat16", "radius": 16, "bands": bands, "s": seconds}
    for pixels, bands, seconds in ((1024, 0, 0.25), (2048, 0, 1.0), (4096, 0, 4.5), (4096, 32, 5.0), (8192, 0, 20.0))
]


@pytest.fixture
def results(host: Any, nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the node reads."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(nodes_api.module("nodes.insight.step_time"), "FOLDER", folder)
    return folder


def add(results: Path, **run: Any) -> None:
    """A made file of a card; there is none of a real one yet."""
    of = {**HERE, "torch": "2.9.1", "triton": "3.5.1", "rehearsal": False, **run}
    content = {"schema": 1, "run": of, "parts": {"steps": {"rows": STEPS}}}
    (results / file_name(of["device"])).write_text(json.dumps(content), "utf-8")


def report(nodes_api: Any, dtype: torch.dtype = torch.bfloat16, layers: tuple[int, int] = (19, 38)) -> str:
    with cards(1) as found:
        model = flux_model(depth=layers[0], depth_single_blocks=layers[1], dtype=dtype)
        model.model.diffusion_model.hidden_size, model.model.diffusion_model.num_heads = 3072, 24
        model.load_device = found.devices[0]
        model = nodes_api.apply(model, radius=16)
        return nodes_api.execute("CLEARReport", model=model, width=3072, height=3072)[1]


def test_without_a_file_one_line_says_so(results: Path, nodes_api: Any) -> None:
    assert report(nodes_api).count(ABSENT) == 1


def test_the_steps_that_were_measured_on_this_card_are_shown(results: Path, nodes_api: Any) -> None:
    add(results)
    text = report(nodes_api)
    assert ABSENT not in text
    source = "from steps measured on Simulated card (PyTorch 2.9.1, Triton 3.5.1)"
    assert f"Time per step, {source}; one image at CFG 1, bfloat16 weights on the device:\n" in text
    seconds = dict(re.findall(r"^  (\d+ x \d+): ([\d.]+) s", text, re.MULTILINE))
    assert seconds.pop("3072 x 3072") > "1"
    # 512 tokens of text were measured, and a prompt of this model has 256: a little less than the measured seconds.
    assert seconds == {"1024 x 1024": "0.231", "2048 x 2048": "0.960", "4096 x 4096": "4.36", "8192 x 8192": "19.5"}
    assert "  4096 x 4096: 4.36 s; 4.85 in 32 bands (CLEAR Multi-GPU)\n" in text
    assert "  2048 x 2048: 0.960 s\n" in text, "bands as thin were not measured"


def test_another_card_of_the_chip_is_scaled(results: Path, nodes_api: Any) -> None:
    add(results, device="Half a card", multiprocessors=66)
    add(results, device="Another chip", chip="sm_89")
    text = report(nodes_api)
    source = "scaled from Half a card (PyTorch 2.9.1, Triton 3.5.1)"
    assert f"{source}, of the same chip, by multiprocessors, 66 there and 132 here; one image" in text
    assert "  8192 x 8192: 9.73 s; 10.3 in 64 bands" in text


def test_nothing_is_said_of_what_is_never_measured(results: Path, nodes_api: Any) -> None:
    add(results)
    assert "Time per step" not in report(nodes_api, torch.float32)
    assert "Time per step" not in report(nodes_api, layers=(1, 2))


def test_a_broken_file_is_as_good_as_none(results: Path, nodes_api: Any, caplog: pytest.LogCaptureFixture) -> None:
    (results / "card-broken.json").write_text("{", "utf-8")
    assert report(nodes_api).count(ABSENT) == 1
    assert [record.message for record in caplog.records if "card-broken.json" in record.message]
