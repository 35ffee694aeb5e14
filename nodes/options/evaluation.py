"""What CLEAR Evaluate Folders is asked for, checked."""

from __future__ import annotations

import re

from ...clear_core.evaluation.metrics import METRICS, metrics_named
from .training_set import check_name

ALL_METRICS = ", ".join(METRICS)


def listed_metrics(text: str) -> tuple[str, ...]:
    """Names between commas, spaces or lines; all metrics for none. Raises ValueError for one that there is not."""
    return metrics_named([name for name in re.split(r"[,\s]+", text) if name])


def listed_folders(text: str) -> tuple[str, ...]:
    """One folder a line, in quotes perhaps. Raises ValueError where there is none."""
    lines = tuple(line for line in (part.strip().strip("\"'") for part in text.splitlines()) if line)
    if not lines:
        raise ValueError("folders is empty. Write the path of a folder with images, or several, one a line.")
    return lines


def check_save_as(name: str) -> None:
    """Raises ValueError unless it is empty or the name of one file, on every system."""
    if name:
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"save_as: {error}") from None
