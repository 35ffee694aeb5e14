"""The shipped workflows on the demo files, small, and further nodes put into their wires."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import workflow
from .workflow import Changes, Prompt

SIDE = 96


def small(name: str, *changes: Changes, steps: int = 1) -> Prompt:
    """96 x 96 is 6 x 6 tokens, so radius 2 leaves much of the image out of sight."""
    size: Changes = {
        "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
        "BasicScheduler": {"steps": steps},
        "CLEARApply": {"radius": 2},
    }
    return workflow.changed(workflow.server_form(name), workflow.DEMO.changes(), size, *changes)


def added(prompt: Prompt, key: str, kind: str, **inputs: Any) -> Prompt:
    """A copy with one more node, which nothing is wired to yet."""
    return prompt | {key: {"class_type": kind, "inputs": inputs, "_meta": {"title": key}}}


def in_bands(prompt: Prompt) -> Prompt:
    """A copy with CLEAR Multi-GPU between CLEAR and the guider: three bands on one device."""
    guider = prompt[workflow.node_id(prompt, "BasicGuider")]["inputs"]
    cut = {"model": guider["model"], "devices": "cpu", "bands": 3, "text_merge": "exact"}
    return added(workflow.changed(prompt, {"BasicGuider": {"model": ["bands", 0]}}), "bands", "CLEARMultiGPU", **cut)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Within one level of 255 everywhere."""
    return bool(np.abs(one.astype(int) - other).max() <= 1)


def different(one: np.ndarray, other: np.ndarray) -> bool:
    """By more than two levels on average."""
    return bool(np.abs(one.astype(int) - other).mean() > 2)
