"""Times that can be compared: interleaved, repeated, the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from devtools.machine import processor_name

_LONG_ENOUGH = 0.02  # seconds; a GPU's shorter work is repeated, so that starting it does not count


def medians(
    functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, patience: float = 60.0
) -> dict[str, float]:
    """Seconds of each function: all of them in turn, `repeats` times after one warm-up.

    In turn, so that a machine that slows down slows all of them. A function that took `patience` seconds in
    all is not asked again; one whose warm-up alone took longer counts by that.
    """
    taken: dict[str, list[float]] = {}
    rounds: dict[str, int] = {}
    for name, function in functions.items():
        first = _seconds(function, device, 1)
        if first >= patience:
            taken[name], rounds[name] = [first], 0
            continue
        taken[name] = []
        short = device.type == "cuda" and first < _LONG_ENOUGH
        rounds[name] = int(_LONG_ENOUGH / max(_seconds(function, device, 1), 1e-5)) + 1 if short else 1
    for _ in range(repeats):
        for name, function in functions.items():
            if rounds[name] and sum(taken[name]) * rounds[name] < patience:
                taken[name].append(_seconds(function, device, rounds[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def _seconds(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Of one call, over some that follow each other without waiting."""
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        function()
    wait(device)
    return (time.perf_counter() - started) / rounds


def host_seconds(function: Callable[[], object], device: torch.device, rounds: int = 1) -> float:
    """What the host is busy with for one call, the device not waited for. On a CPU it is the whole call."""
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        function()
    taken = (time.perf_counter() - started) / rounds
    wait(device)
    return taken


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's own matrix rate in FLOP/s: the largest square product that it does in a moment."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, side, side, device=device, dtype=torch.float32).to(dtype)
    taken = medians({"product": lambda: left @ right}, device, 10)["product"]
    return 2 * side**3 / taken


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
