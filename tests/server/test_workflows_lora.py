"""LoRAs with CLEAR, as shipped: two of them, whatever names their trainers gave, and one for part of the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devtools import checkpoints, checkpoints_plugins, workflow
from devtools.plugged import added, different, in_bands, same, small

KOHYA = Path(checkpoints.LORA).name
DIFFUSERS = Path(checkpoints_plugins.LORA_DIFFUSERS).name  # the same change as KOHYA's, in other names
XLABS = Path(checkpoints_plugins.LORA_XLABS).name

pytestmark = pytest.mark.usefixtures("plugin_files")

Shown = Callable[..., np.ndarray]


def test_two_loras_of_any_trainer_before_and_after_clear(shown: Shown) -> None:
    def around(before: str | None, after: str | None) -> np.ndarray:
        """A LoRA that is None is there too, at strength 0, which the host leaves out."""
        loras: workflow.Changes = {
            "LoRA before CLEAR": {"lora_name": before or KOHYA, "strength_model": float(before is not None)},
            "LoRA after CLEAR": {"lora_name": after or KOHYA, "strength_model": float(after is not None)},
        }
        return shown(small("09_lora", loras))

    none, kohya, xlabs = around(None, None), around(KOHYA, None), around(XLABS, None)
    assert different(kohya, none)
    assert different(xlabs, none)
    assert same(around(DIFFUSERS, None), kohya)
    assert same(around(None, DIFFUSERS), kohya)
    assert same(around(None, XLABS), xlabs)
    both = around(KOHYA, XLABS)
    assert different(both, kohya)
    assert different(both, xlabs)
    assert same(around(XLABS, KOHYA), both)


def test_a_lora_for_part_of_the_steps(shown: Shown) -> None:
    """The host changes the weights between steps: CLEAR's must stay below the LoRA's, and stay when that goes."""
    lora: workflow.Changes = {"CreateHookLoraModelOnly": {"lora_name": KOHYA, "strength_model": 1.0}}
    half = small("10_lora_scheduled", lora, {"On from half way": {"start_percent": 0.4}}, steps=2)

    def scheduled(first: float, then: float, *changes: workflow.Changes) -> np.ndarray:
        strengths: workflow.Changes = {
            "Off from the start": {"strength_mult": first},
            "On from half way": {"strength_mult": then},
        }
        return shown(workflow.changed(half, strengths, *changes))

    without = workflow.changed(half, {"BasicGuider": {"conditioning": [workflow.node_id(half, "FluxGuidance"), 0]}})
    never, always = shown(without), shown(workflow.with_lora(without, before="CLEARApply", name=KOHYA))
    assert different(never, always)
    assert same(scheduled(0, 0), never)
    assert same(scheduled(1, 1), always)
    on_flux_own_weights = scheduled(1, 1, {"CLEARApply": {"strength": 0.0}})
    assert not same(on_flux_own_weights, always), "CLEAR's weights make no difference, so nothing was proven"

    switched = shown(half)
    assert different(switched, never)
    assert different(switched, always)
    assert same(shown(lora_in_the_last_step(without)), switched)
    assert same(shown(in_bands(half), "in bands"), switched)


def lora_in_the_last_step(prompt: Any) -> Any:
    """Two samplers and two models instead of a schedule."""
    sampler = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]["inputs"]
    clear = [workflow.node_id(prompt, "CLEARApply"), 0]
    conditioning = prompt[workflow.node_id(prompt, "BasicGuider")]["inputs"]["conditioning"]
    last = {"noise": ["none", 0], "guider": ["with", 0], "sigmas": ["steps", 1], "latent_image": ["before", 0]}
    prompt = workflow.changed(prompt, {"SamplerCustomAdvanced": last})
    prompt = added(prompt, "steps", "SplitSigmas", sigmas=sampler["sigmas"], step=1)
    prompt = added(prompt, "before", "SamplerCustomAdvanced", **sampler | {"sigmas": ["steps", 0]})
    prompt = added(prompt, "none", "DisableNoise")
    prompt = added(prompt, "lora", "LoraLoaderModelOnly", model=clear, lora_name=KOHYA, strength_model=1.0)
    return added(prompt, "with", "BasicGuider", model=["lora", 0], conditioning=conditioning)
