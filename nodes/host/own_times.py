"""This machine's own measurements, in ComfyUI's user folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import folder_paths
import torch

from ...clear_core.show.cost import Model
from ...clear_core.show.estimate import Subject, Timings
from ...clear_core.show.own_times import NAME, Key, read, write


def own_times(subject: Subject, backend: str) -> Timings | None:
    """What was measured of a model on its device; None where it was not. backend: a name, or auto."""
    return read(_path(), key_of(subject.model, backend))


def keep_times(subject: Subject, backend: str, timings: Timings) -> None:
    """Keep a measurement. Raises OSError where the file cannot be written."""
    write(_path(), key_of(subject.model, backend), timings)


def key_of(model: Model, backend: str) -> Key:
    """What a measurement on this machine is kept under."""
    return Key.of(_device(model.device), model, backend)


def _device(device: torch.device) -> str:
    """The GPU's name, or the processor's with its threads: a user folder may move to another machine."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return (
        f"cpu {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def _path() -> Path:
    return Path(folder_paths.get_user_directory()) / NAME
