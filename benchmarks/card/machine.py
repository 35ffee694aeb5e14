"""What the results are of: the card, its driver, PyTorch, Triton, the source."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from clear_core.show.measured import Identity

from ..timing import device_name
from .scale import Scale
from .supervise import Row


def rows(scale: Scale) -> Iterator[Row]:
    device = scale.device
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"PyTorch {torch.__version__} finds no GPU on this machine.")
    card = Identity.of(device) if device.type == "cuda" else None
    yield {
        "device": device_name(device),
        "devices": torch.cuda.device_count() if device.type == "cuda" else 1,
        "chip": card.chip if card is not None else None,
        "multiprocessors": card.multiprocessors if card is not None else None,
        "memory GiB": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if device.type == "cuda"
        else None,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "HIP": torch.version.hip,
        "triton": _triton(),
        "python": platform.python_version(),
        "system": platform.system(),
        "source": _source(),
        "rehearsal": scale.rehearsal,
    }


def _triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return triton.__version__


def _source() -> str:
    """The commit, with a + where files were changed after it."""
    folder = Path(__file__).parents[2]
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
