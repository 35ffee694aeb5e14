"""Short distillations of the tiny models, and what their files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clear_core.distill.samples import TrainingSet

from host.distill_samples import training_set

QUICK = {"radius": 2, "steps": 4, "batch": 2, "learning_rate": 1e-3, "seed": 3}


@pytest.fixture
def samples(tmp_path: Path) -> TrainingSet:
    (tmp_path / "set").mkdir()
    return training_set(tmp_path / "set")


@pytest.fixture
def job(nodes_api: Any, folders: Path) -> Any:
    """`Job(name, settings)` of the pack as the host has loaded it, with the pack's own classes."""
    module = nodes_api.module("nodes.host.distill.job")
    settings = nodes_api.module("clear_core.distill.settings").Settings

    def make(name: str = "mine", *, save_every: int = 100, resume: bool = True, **changed: Any) -> Any:
        return module.Job(name, settings(**(QUICK | changed)), save_every, resume)

    return make


def run(job: Any, model: Any, samples: TrainingSet, **options: Any) -> Any:
    return job.run(model, samples, options.pop("start", None), options.pop("on_step", lambda *_: None), **options)[0]


def weights_of(result: Any) -> dict[str, Tensor]:
    return load_file(result.file)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def student_of(nodes_api: Any, transformer: Any, radius: int = 2) -> Any:
    """A `DistilledModel` with CLEAR's window."""
    window = nodes_api.module("clear_core.window").Window(radius)
    attention = nodes_api.module("clear_core.distill.attention").WindowAttention(window)
    return nodes_api.module("nodes.host.distill.model").DistilledModel(transformer, attention)


class Stop(BaseException):
    """What Cancel and Ctrl-C are to a run; like KeyboardInterrupt, it is no Exception."""
