"""Seconds of a sampling step, from short timings of a model's blocks and of its attention on one device.

The model: a block without its attention takes a time for each call and one for each token; attention takes a time for
each call, each query token and each (query, key) pair that the backend computes, the padding of its tiles included.
In bands every layer is called once for each band, and attention sees each band's rows and those around them. Sampler,
autoencoder, text encoders and what crosses between devices are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch

from ..backends import AUTO, BackendError, choose_backend
from ..bands.plan import BandPlan
from ..call import AttentionCall
from ..flux import token_grid
from ..layout import Grid, TokenLayout
from ..pattern import LocalPattern
from ..pooling import pooled_grid
from .cost import Model, Options, example_call, pattern_call

_GATHERING = ("sdpa", "triton")
"""Backends that leave the text's queries to PyTorch's dense kernel."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of a call, of each of its tokens, and of each of its (query, key) pairs."""

    call: float = 0.0
    token: float = 0.0
    pair: float = 0.0

    def seconds(self, calls: float, tokens: float, pairs: float = 0.0) -> float:
        return self.call * calls + self.token * tokens + self.pair * pairs


Sample = tuple[float, float, float]
"""What was done in a timing: calls, tokens, pairs."""


def fit(timings: Sequence[tuple[Sample, float]]) -> Rate:
    """The rate that fits some timings best, by least squares of the relative error; no part of it is negative.

    timings: what was done, and the seconds that it took; one at least, all above 0.
    """
    rows = np.array([[part / seconds for part in work] for work, seconds in timings])
    best, least = Rate(), np.inf
    for columns in (list(chosen) for size in (1, 2, 3) for chosen in combinations(range(3), size)):
        scale = np.abs(rows[:, columns]).max(axis=0)
        if not scale.all():
            continue
        found = np.linalg.lstsq(rows[:, columns] / scale, np.ones(len(rows)), rcond=None)[0] / scale
        error = float(((rows[:, columns] @ found - 1) ** 2).sum())
        # A part more must explain something: two timings say nothing of three parts.
        if len(columns) <= len(rows) and (found >= 0).all() and error < least * (1 - 1e-6) - 1e-15:
            parts = dict(zip(columns, found.tolist(), strict=True))
            best, least = Rate(*(parts.get(column, 0.0) for column in range(3))), error
    return best


@dataclass(frozen=True, slots=True)
class Timings:
    """What was measured on one device. double, single: a block without its attention; tokens are text and image.

    dense: PyTorch's dense attention. local: attention through the window, by backend.
    cast: seconds for each weight that is kept in another dtype and cast in use, by the name of that dtype.
    transfer: bytes a second from pinned memory to the device; None on a CPU.
    """

    double: Rate
    single: Rate
    dense: Rate
    local: Mapping[str, Rate]
    cast: Mapping[str, float] = field(default_factory=dict)
    transfer: float | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it would be loaded. double, single: its blocks. weights: the dtype in which they are kept.

    size: bytes of all weights.
    """

    model: Model
    double: int
    single: int
    weights: torch.dtype
    size: int

    @property
    def block_weights(self) -> int:
        """Numbers in all blocks, biases left out: of c channels, a double block has 36 c x c, a single one 15 c x c."""
        return (36 * self.double + 15 * self.single) * self.model.channels**2


def step_seconds(
    timings: Timings,
    subject: Subject,
    options: Options,
    width: int,
    height: int,
    plan: BandPlan | None = None,
    *,
    active: bool = True,
) -> float | None:
    """One step for one image at CFG 1; None where the backend that would run was not measured.

    width, height: pixels. plan: the bands, None for none; with several lanes, of the slowest, all devices being alike.
    active: whether the window is on in the step.
    """
    image = token_grid(width, height)
    layers = subject.double + subject.single
    dense = options.dense_layers if active else layers
    lanes = range(plan.lane_count) if plan is not None and len(plan.bands) > 1 else (None,)
    slowest = 0.0
    for lane in lanes:
        bands = [] if plan is None or lane is None else [plan.bands[band] for band in plan.bands_of(lane)]
        rows = sum(len(band) for band in bands) if bands else image.height
        # The text runs once a lane, with one image token; a band carries one token of the text.
        calls = len(bands) + 1 if bands else 1
        tokens = rows * image.width + options.text + (calls if bands else 0)
        seconds = subject.double * timings.double.seconds(calls, tokens)
        seconds += subject.single * timings.single.seconds(calls, tokens)
        layout = TokenLayout(options.text, image)
        share = rows / image.height
        seconds += dense * timings.dense.seconds(calls, layout.tokens * share, layout.tokens**2 * share)
        if layers > dense:
            attention = _attention(timings, subject.model, options, layout, plan if bands else None, lane or 0)
            if attention is None:
                return None
            seconds += (layers - dense) * attention
        seconds += timings.cast.get(dtype_name(subject.weights), 0.0) * subject.block_weights
        slowest = max(slowest, seconds)
    return slowest


def dtype_name(dtype: torch.dtype) -> str:
    """Such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def backend_refusal(model: Model, options: Options, image: Grid, plan: BandPlan | None = None) -> str | None:
    """Why the backend that the options name cannot run a layer; None where it can, and for auto.

    image: in tokens. plan: the bands, None for none.
    """
    if options.backend == AUTO:
        return None
    layout = TokenLayout(options.text, image)
    cut = plan if plan is not None and len(plan.bands) > 1 else None
    for lane in range(1 if cut is None else cut.lane_count):
        for call, _ in _calls(model, options, layout, cut, lane):
            try:
                choose_backend(call, options.backend)
            except BackendError as error:
                return str(error)
    return None


def _attention(
    timings: Timings, model: Model, options: Options, layout: TokenLayout, plan: BandPlan | None, lane: int
) -> float | None:
    """One layer's attention through the window, of one lane."""
    total = 0.0 if plan is None else timings.dense.seconds(1, options.text, options.text**2)
    for call, times in _calls(model, options, layout, plan, lane):
        seconds = call_seconds(timings, call, options.backend)
        if seconds is None:
            return None
        total += times * seconds
    return total


def _calls(
    model: Model, options: Options, layout: TokenLayout, plan: BandPlan | None, lane: int
) -> Iterator[tuple[AttentionCall, int]]:
    """One layer's calls through the window in one lane, and how often each comes: bands within the image are alike."""
    if plan is None:
        yield example_call(model, options, layout.image), 1
        return
    cells = pooled_grid(layout.image, options.down_factor).tokens if options.down_factor > 1 else 0
    whole = LocalPattern.whole(layout, options.window, references=options.references)
    alike: dict[tuple[int, int, int], list[int]] = {}
    for band in plan.bands_of(lane):
        rows, seen = plan.bands[band], plan.rows_seen(band)
        alike.setdefault((len(rows), rows.start - seen.start, seen.stop - rows.stop), []).append(band)
    for bands in alike.values():
        rows, seen = plan.bands[bands[0]], plan.rows_seen(bands[0])
        own = whole.part(query_rows=rows, key_rows=seen, replicated_queries=False, replicated_keys=True, pooled=cells)
        text = whole.part(query_rows=None, key_rows=rows, replicated_queries=True, replicated_keys=False)
        yield from ((pattern_call(model, options, pattern), len(bands)) for pattern in (own, text))


def call_seconds(timings: Timings, call: AttentionCall, backend: str) -> float | None:
    """One call of attention through the window; None where no measured backend runs it. backend: a name, or auto."""
    try:
        chosen = choose_backend(call, backend).backend
    except BackendError:
        return None
    rate = timings.local.get(chosen.name)
    if rate is None:
        return None
    queries, keys, text = call.pattern.query_tokens, call.pattern.key_tokens, text_queries(call, chosen.name)
    seconds = timings.dense.seconds(1, text, text * keys) if text else 0.0
    if queries > text:
        seconds += rate.seconds(1, queries - text, chosen.executed_pairs(call) - text * keys)
    return seconds


def text_queries(call: AttentionCall, backend: str) -> int:
    """Queries of a call that a backend leaves to PyTorch's dense kernel."""
    return call.pattern.text_query_tokens if backend in _GATHERING else 0
