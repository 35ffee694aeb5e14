"""A LoRA of all linear layers of the blocks: through ComfyUI's own loader it is the student that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from clear_core.distill.samples import TrainingSet
from devtools.models import chroma_model, flux2_model, flux_model, run_forward

from host.conftest import TextsOnNodes
from host.distill_jobs import job, run, samples, weights_of
from host.distill_samples import folders, one_thread, training_set
from host.test_distill_node import SMALL

__all__ = ["folders", "job", "one_thread", "samples"]

ALL: dict[str, Any] = {"output": "LoRA", "layers": "blocks", "rank": 4, "down_factor": 2}


def far(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["layer by layer", "end to end"])
@pytest.mark.parametrize("make", [flux_model, chroma_model], ids=["FLUX.1", "Chroma"])
def test_the_file_loaded_by_core_is_the_student(
    nodes_api: Any, job: Any, samples: TrainingSet, make: Any, method: str
) -> None:
    """A double block has 12 such layers, a single one 5."""
    result, session, trained = job(method=method, **ALL).run(make(), samples, None, lambda *_: None)
    assert result.weights is None
    double, single = session.student.depth
    file = weights_of(result)
    assert len(file) == 2 * (12 * double + 5 * single)
    assert all(bool(tensor.any()) for name, tensor in file.items() if ".lora_B." in name)
    given, _ = session.inputs([0])
    with torch.no_grad():
        student, teacher = session.student.student(trained, given).out, session.student.teacher(given).out
    loaded, _ = comfy.sd.load_lora_for_models(make(), None, file, 1.0, 0.0)
    applied = nodes_api.apply(loaded, None, radius=2, down_factor=2, backend="sdpa")
    text = given.given
    by_core = run_forward(applied, given.latent, given.sigma, text["context"], text.get("y"), text["guidance"])
    assert far(by_core, student) < 1e-5
    assert far(teacher, student) > 1e-3


def test_on_the_node_the_output_for_apply_says_what_to_do_instead(
    nodes_api: Any, samples: TrainingSet, shown: TextsOnNodes
) -> None:
    with torch.inference_mode():
        weights, curves = nodes_api.execute(
            "CLEARDistill", model=flux_model(), training_set=samples, **{**SMALL, **ALL}
        )
    assert isinstance(weights, ExecutionBlocker)
    assert "mine.safetensors: a LoRA of more than the attention has no CLEAR weights" in weights.message
    assert curves.shape[2] == 1600
    assert shown["CLEARDistill"][-1].endswith("4 steps, from zero")


def test_where_it_cannot_be_it_is_refused(job: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers is 'blocks' and output 'weights'.*set output to 'LoRA'"):
        job(layers="blocks")
    with pytest.raises(ValueError, match="layers is 'all'; choose one of attention, blocks"):
        job(layers="all", output="LoRA")
    with pytest.raises(ValueError, match=r"works for FLUX\.1 and Chroma"):
        run(job(**ALL), flux2_model(), training_set(tmp_path, channels=128, side=8))
