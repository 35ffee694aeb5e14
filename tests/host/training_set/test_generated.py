"""Samples that a model makes of prompts: KSampler's latents, and what Cancel leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.models import chroma_model, flux2_model, flux_model

from host.training_set.made import GENERATE


@pytest.mark.parametrize(
    ("family", "shape"), [(flux_model, (16, 8, 10)), (chroma_model, (16, 8, 10)), (flux2_model, (128, 4, 5))]
)
def test_prompts_become_the_latents_of_ksampler(
    run: Any, host: Any, clip: Any, family: Callable[[], Any], shape: tuple[int, ...]
) -> None:
    flux = family()
    samples, report = run(GENERATE, prompts="a hill\n\n  a lake \n", model=flux, vae=None)
    assert len(samples) == 2 and "2 made" in report
    for n, prompt in enumerate(("a hill", "a lake")):
        sample = samples.read(n)
        with torch.inference_mode():
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt), add_dict={"guidance": 3.5})
            latent = {"samples": torch.zeros(1, *shape)}
            (expected,) = host.common_ksampler(
                flux, 7 + n, 2, 1.0, "euler", "simple", conditioning, conditioning, latent
            )
        assert torch.equal(sample.mean, expected["samples"][0])
        assert sample.std.abs().max() == 0
        assert sample.prompt == prompt
        assert torch.equal(sample.conditioning["cross_attn"], conditioning[0][0][0])


def test_the_last_seed_is_followed_by_the_first(run: Any, flux: Any) -> None:
    samples, _ = run(GENERATE, prompts="a hill\na hill", model=flux, seed=2**64 - 1)
    again, _ = run(GENERATE, prompts="a hill", model=flux, seed=0)
    assert torch.equal(samples.read(1).mean, again.read(0).mean)
    assert not torch.equal(samples.read(0).mean, again.read(0).mean)


def test_generation_goes_on_after_cancel(
    run: Any, flux: Any, calls: Counter[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    prompts = "a hill\na lake\na wood"
    real = management.throw_exception_if_processing_interrupted

    def cancelled_in_the_second_image() -> None:
        if calls["sampled"] == 2:
            management.interrupt_current_processing(True)
        real()

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", cancelled_in_the_second_image)
        with pytest.raises(management.InterruptProcessingException):
            run(GENERATE, prompts=prompts, model=flux)
    assert [path.name[:6] for path in (output / "clear_training_sets" / "a set").iterdir()] == ["00000_"]
    calls.clear()
    samples, report = run(GENERATE, prompts=prompts, model=flux)
    assert calls == {"text": 2, "sampled": 2} and "2 made, 1 there before" in report
    assert [samples.read(n).prompt for n in range(3)] == prompts.split("\n")
