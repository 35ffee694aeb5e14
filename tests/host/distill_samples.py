"""A small training set, and folders of its own for what a distillation writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import torch

from clear_core.distill.samples import Sample, TrainingSet, write_sample


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small, more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder and the folders of models, for this test alone."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    for name in ("clear", "loras"):
        (tmp_path / name).mkdir()
        entry = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, entry)
    return tmp_path


def training_set(folder: Path, *, channels: int = 16, side: int = 16, count: int = 3) -> TrainingSet:
    generator = torch.Generator().manual_seed(1)
    files = []
    for number in range(count):
        mean = torch.randn(channels, side, side, generator=generator)
        condition = {
            "cross_attn": torch.randn(5, 24, generator=generator),
            "pooled_output": torch.randn(12, generator=generator),
        }
        path = folder / f"{number}.safetensors"
        write_sample(path, Sample(mean, torch.full_like(mean, 0.1), condition, f"prompt {number}"), {})
        files.append(path)
    return TrainingSet(folder, tuple(files))
