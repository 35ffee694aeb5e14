"""What is measured of a strategy besides its pictures: the four factors on the dense model's layers, and time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from torch import Tensor

from ..inprocess import pack_module
from ..proof.measure import Bench, Probe, Row
from .student import overridden, untrained

Layers = list[tuple[Any, Any, Tensor, Tensor, Tensor]]
"""Of each call of the dense model's attention: block, layout, and queries, keys and values after RoPE."""


def layers(bench: Bench, model: Any, scenes: int) -> Layers:
    """The calls of a dense MODEL for the probes of some scenes, each at all of its noise levels."""
    seen: Layers = []

    def attend(call: Any) -> Tensor:
        tensors = (x.detach().float().cpu().clone() for x in (call.query, call.key, call.value))
        seen.append((call.block, call.layout(call.frame), *tensors))
        return call.dense(None)

    watched = overridden(model, attend)
    for index in range(scenes):
        bench.velocity(watched, *bench.probe(index))
    return seen


def factors(attention: Any, calls: Layers) -> Row:
    """Means over layers, heads, noise levels and scenes, of the strategy before training."""
    measure, trained = pack_module("clear_core.factors").measure, untrained(attention)
    found: dict[str, list[float]] = {}
    for block, layout, query, key, value in calls:
        parameters = {name: tensor.detach() for name, tensor in attention.parameters(block, trained).items()}
        of = measure(attention.strategy, query, key, value, layout, parameters, attention.layer(block))
        for name, each in {
            "mass": of.mass,
            "formulation": of.formulation,
            "rank": of.rank.entropy,
            "rank_99": of.rank.energy,
            "dense_rank": of.dense_rank.entropy,
            "dense_rank_99": of.dense_rank.energy,
            "integrity": (of.integrity.key + of.integrity.value) / 2,
            "error": of.error,
        }.items():
            found.setdefault(name, []).append(float(each.double().mean()))
    return {name: fmean(each) for name, each in found.items()}


def step_times(bench: Bench, dense: Any, models: Mapping[str, Any], rounds: int) -> Row:
    """Seconds of a step of each model as a ratio to the dense one's: the median over rounds, in each of which all are
    timed one after the other. A step is one forward for one picture."""
    probe: Probe = tuple(part[:1] for part in bench.probe(0))  # type: ignore[assignment]
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        whole = _seconds(bench, dense, probe)
        for name, model in models.items():
            ratio = _seconds(bench, model, probe) / whole
            if number:  # the first loads and plans
                found[name].append(ratio)
    return {name: median(ratios) for name, ratios in found.items()}


def _seconds(bench: Bench, model: Any, probe: Probe) -> float:
    bench.velocity(model, *probe)  # the host loads the model's patches
    start = time.perf_counter()
    bench.velocity(model, *probe)  # its result is copied to the CPU: nothing is under way
    return time.perf_counter() - start
