"""Samples that are computed together, on ComfyUI's own FLUX: as one after another, but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core.distill.samples import Sample, TrainingSet, write_sample
from devtools.models import flux_model

from host.distill_jobs import job, run, samples, weights_of
from host.distill_samples import folders, one_thread

__all__ = ["folders", "job", "one_thread", "samples"]


@pytest.mark.parametrize("changed", [{"down_factor": 2}, {"output": "LoRA", "rank": 4}], ids=["weights", "LoRA"])
@pytest.mark.parametrize("method", ["layer by layer", "end to end"])
def test_weights_and_losses_are_those_of_samples_one_by_one(
    job: Any, samples: TrainingSet, method: str, changed: dict[str, Any]
) -> None:
    """Five samples in parts of two, two and one; the set has three, so that noise levels and texts differ."""
    options = {"method": method, "batch": 5, "steps": 2, **changed}
    singly = run(job("singly", **options), flux_model(), samples)
    together = run(job("together", micro_batch=2, **options), flux_model(), samples)
    for one, other in zip(singly.history, together.history, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
        assert other.norm == pytest.approx(one.norm, rel=1e-4)
    expected, got = weights_of(singly), weights_of(together)
    assert expected.keys() == got.keys()
    # AdamW's first steps have the size of the rate, whatever a gradient is: one that is nearly 0 is rounding's.
    far = torch.cat([(got[key] - tensor).abs().flatten() for key, tensor in expected.items()])
    assert float((far > 1e-5).float().mean()) < 0.01


def test_texts_of_several_lengths_are_refused_before_the_model_is_loaded(job: Any, tmp_path: Path) -> None:
    files = []
    for tokens in (5, 9):
        condition = {"cross_attn": torch.randn(tokens, 24), "pooled_output": torch.randn(12)}
        files.append(tmp_path / f"{tokens}.safetensors")
        write_sample(files[-1], Sample(torch.randn(16, 16, 16), torch.zeros(16, 16, 16), condition, "a prompt"), {})
    texts = TrainingSet(tmp_path, tuple(files))
    assert texts.text_tokens() == {5, 9}
    with pytest.raises(ValueError, match="micro_batch is 2, and the training set's prompts have 5 to 9 text tokens"):
        run(job(micro_batch=2), flux_model(), texts)
    assert len(run(job(), flux_model(), texts).history) == 4
