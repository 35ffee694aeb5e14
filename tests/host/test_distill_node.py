"""Distill CLEAR Weights as the host runs it: in inference mode, with its text, its picture and Cancel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch

from clear_core.distill.samples import TrainingSet
from devtools.models import flux_model

from host.conftest import TextsOnNodes
from host.distill_samples import folders, one_thread, training_set

__all__ = ["folders", "one_thread"]

SMALL: dict[str, Any] = {
    "radius": 2,
    "down_factor": 1,
    "method": "both",
    "output": "weights",
    "rank": 4,
    "steps": 4,
    "batch": 1,
    "learning_rate": 1e-3,
    "optimizer": "AdamW",
    "seed": 0,
    "name": "mine",
    "save_every": 2,
    "resume": True,
}


@pytest.fixture
def samples(tmp_path: Path, folders: Path) -> TrainingSet:
    (tmp_path / "set").mkdir()
    return training_set(tmp_path / "set")


@pytest.fixture
def cancel() -> Iterator[Any]:
    yield comfy.model_management.interrupt_current_processing
    comfy.model_management.interrupt_current_processing(False)


def execute(nodes_api: Any, samples: TrainingSet, **changed: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        return nodes_api.execute("CLEARDistill", model=flux_model(), training_set=samples, **{**SMALL, **changed})


def test_weights_and_a_picture(nodes_api: Any, samples: TrainingSet, shown: TextsOnNodes) -> None:
    weights, curves = execute(nodes_api, samples)
    assert (weights.name, weights.variant.radius) == ("mine.safetensors", 2)
    assert curves.shape[0] == 1
    assert curves.shape[2] == 1600
    assert curves.std() > 0.05
    texts = shown["CLEARDistill"]
    assert texts[0].startswith("step 1 of 4, layer by layer")
    assert "s a step" in texts[0]
    assert texts[3].startswith("step 4 of 4, end to end")
    assert "is made: 4 steps, from the model's own weights" in texts[-1]


def test_cancel_stops_within_a_step_and_the_next_run_goes_on(
    nodes_api: Any, samples: TrainingSet, shown: TextsOnNodes, cancel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = nodes_api.module("nodes.host.distill.watch").ProgressBar
    with monkeypatch.context() as pressed:
        pressed.setattr(progress, "update_absolute", lambda bar, step, *_: cancel() if step == 2 else None)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            execute(nodes_api, samples)
    assert shown["CLEARDistill"][-1].startswith("step 2 of 4")
    weights, _ = execute(nodes_api, samples)
    assert weights.name == "mine.safetensors"
    assert [text[:11] for text in shown["CLEARDistill"][2:-1]] == ["step 3 of 4", "step 4 of 4"]


def test_out_of_memory_says_what_is_kept_and_what_needs_less(
    nodes_api: Any, samples: TrainingSet, shown: TextsOnNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nodes_api.module("nodes.host.distill.model").DistilledModel
    real, calls = model.layer_by_layer, []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("Allocation on device")
        return real(*args)

    monkeypatch.setattr(model, "layer_by_layer", full)
    with pytest.raises(torch.OutOfMemoryError):
        execute(nodes_api, samples)
    assert "out of memory at step 2; the state of step 1 is kept in" in shown["CLEARDistill"][-1]
    assert "output 'LoRA'" in shown["CLEARDistill"][-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"radius": 0}, "radius is 0"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"learning_rate": 0.0}, "must be over 0"),
        ({"cooldown": -0.5}, "cooldown is -0.5; 0 to 1 is allowed"),
        ({"flow_weight": 0.0, "output_weight": 0.0}, "flow_weight and output_weight are both 0"),
    ],
    ids=str,
)
def test_values_are_refused_when_they_are_queued(nodes_api: Any, changed: dict[str, Any], said: str) -> None:
    node = nodes_api.module("nodes.distill").CLEARDistill
    given = {**SMALL, **changed}
    del given["resume"]
    assert said in node.validate_inputs(**given)
    assert node.validate_inputs(**{**given, **{key: SMALL.get(key) for key in changed}}) is True
