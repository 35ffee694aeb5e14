"""What both headless demos ask of a run: its size and steps, how fast it was, what it ran on."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from devtools import workflow
from devtools.client import ClientError, Step
from devtools.machine import processor_name


@dataclass(frozen=True, slots=True)
class Task:
    """What a headless run makes."""

    width: int
    height: int
    steps: int

    def asked(self, size: tuple[int, int] | None, steps: int | None) -> Task:
        """This one with the size and the steps of the command line, where they are given."""
        width, height = size or (self.width, self.height)
        return Task(width, height, steps or self.steps)


@dataclass(frozen=True, slots=True)
class Asked:
    """A headless demo's options. output: the folder for its images; it is there."""

    files: workflow.Files
    output: Path
    size: tuple[int, int] | None
    steps: int | None


def seconds_per_step(steps: list[Step]) -> float:
    """The median time from one step's end to the next one's: the first step, which loads, does not count."""
    return statistics.median(later.when - earlier.when for earlier, later in pairwise(steps))


def text_tokens(said: str) -> int:
    """The text length that the node saw: it depends on the prompt and the text encoders."""
    found = re.search(r"CLEAR ran: .*\((\d+) text", said)
    if found is None:
        raise ClientError(f"The run used no window; the node says:\n{said}")
    return int(found[1])


def device_name(device: dict[str, Any]) -> str:
    """device: an entry of /system_stats."""
    return device["name"] if device["type"] != "cpu" else f"the CPU: {processor_name()}"
