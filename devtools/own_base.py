"""A base folder of ComfyUI for one test process: the ordinary one's models and nodes, and nothing shared to write to.

Tests add, replace and delete weights files and list the folders around them. Several processes at once need a folder
each; the gigabytes of generated checkpoints are made once and linked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock

from .server import BASE

Make = Callable[[Path], None]
"""Puts files below a models folder, those that are not there yet."""


class OwnBase:
    """path: the base folder. options: arguments of ComfyUI's main.py that go with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models = path / "models"
        config = path / "extra_model_paths.yaml"
        # JSON is YAML.
        config.write_text(json.dumps({"tests": {"custom_nodes": str(BASE / "custom_nodes")}}), encoding="utf-8")
        self.options = ["--extra-model-paths-config", str(config)]
        for name in ("models", "custom_nodes", "user"):
            (path / name).mkdir()

    def add(self, make: Make) -> None:
        """Have `make` complete the shared models, one process at a time, and link what is new."""
        shared = BASE / "models"
        shared.mkdir(parents=True, exist_ok=True)
        with FileLock(BASE / "models.lock"):
            make(shared)
        for file in shared.rglob("*"):
            if file.is_file() and file.suffix != ".part":
                _link(file, self.models / file.relative_to(shared))


@contextmanager
def own_base(name: str) -> Iterator[OwnBase]:
    """A folder for as long as it is used, on the disk of the ordinary one so that files can be linked."""
    BASE.mkdir(parents=True, exist_ok=True)
    for left in BASE.parent.glob("base-*-*"):  # by a process that was killed
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    path = BASE.with_name(f"base-{name}-{os.getpid()}")
    path.mkdir()
    try:
        yield OwnBase(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    if to.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:  # a disk without hard links
        shutil.copy2(file, to)
