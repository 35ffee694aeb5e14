"""The prediction of a step: exact where the timings follow its model, and nothing where nothing was measured."""

from __future__ import annotations

import pytest
import torch

from clear_core.backends import choose_backend
from clear_core.bands.plan import BandPlan
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.show.cost import Model, Options, example_call
from clear_core.show.estimate import Rate, Subject, Timings, call_seconds, fit, step_seconds
from clear_core.show.fits import Need, least_count, worst_need
from clear_core.window import Window

MODEL = Model(layers=5, channels=256, heads=2, dtype=torch.float32)
SUBJECT = Subject(MODEL, 2, 3, torch.float32, 10**8)
LOCAL = Rate(1e-4, 2e-7, 3e-9)
TIMINGS = Timings(double=Rate(2e-3, 5e-6), single=Rate(1e-3, 4e-6), dense=Rate(1e-4, 1e-7, 2e-9), local={"sdpa": LOCAL})
OPTIONS = Options(Window(8), backend="sdpa", text=256)


@pytest.mark.parametrize("rate", [Rate(1e-3, 2e-6, 3e-9), Rate(0, 2e-6, 3e-9), Rate(1e-3), Rate(0, 0, 3e-9)])
def test_a_fit_finds_the_rate_that_made_the_timings(rate: Rate) -> None:
    works = [(1, 512, 10**6), (1, 2048, 2 * 10**6), (1, 2048, 10**7), (2, 4096, 10**7), (1, 100, 10**5)]
    found = fit([(work, rate.seconds(*work)) for work in works])
    assert (found.call, found.token, found.pair) == pytest.approx((rate.call, rate.token, rate.pair), rel=1e-6)


def test_a_fit_is_never_negative() -> None:
    """A line through these would start below 0."""
    found = fit([((1, 100, 0), 1e-3), ((1, 1000, 0), 2e-2)])
    assert min(found.call, found.token, found.pair) >= 0
    assert found.seconds(1, 1000) > 0


def test_a_step_is_the_sum_of_its_parts() -> None:
    tokens = 256 + 64 * 48
    call = example_call(MODEL, OPTIONS, Grid(48, 64))
    pairs = choose_backend(call, "sdpa").backend.executed_pairs(call) - 256 * tokens
    attention = LOCAL.seconds(1, 64 * 48, pairs) + TIMINGS.dense.seconds(1, 256, 256 * tokens)
    expected = 2 * (2e-3 + 5e-6 * tokens) + 3 * (1e-3 + 4e-6 * tokens) + 5 * attention
    assert step_seconds(TIMINGS, SUBJECT, OPTIONS, 1024, 768) == pytest.approx(expected)


def test_dense_layers_and_steps_outside_the_schedule_take_dense_attention() -> None:
    tokens = 256 + 64 * 64
    blocks = 2 * (2e-3 + 5e-6 * tokens) + 3 * (1e-3 + 4e-6 * tokens)
    dense = TIMINGS.dense.seconds(1, tokens, tokens**2)
    local = call_seconds(TIMINGS, example_call(MODEL, OPTIONS, Grid(64, 64)), "sdpa")
    assert local is not None
    some = Options(Window(8), backend="sdpa", text=256, dense_layers=2)
    assert step_seconds(TIMINGS, SUBJECT, some, 1024, 1024) == pytest.approx(blocks + 2 * dense + 3 * local)
    found = step_seconds(TIMINGS, SUBJECT, OPTIONS, 1024, 1024, active=False)
    assert found == pytest.approx(blocks + 5 * dense)


def test_bands_call_every_layer_once_more_than_there_are_bands() -> None:
    """With nothing but a time for each call, a step is a count of calls."""
    calls = Timings(Rate(1.0), Rate(1.0), Rate(0), {"sdpa": Rate(0)})
    plan = BandPlan.cut(Grid(64, 64), 8, Window(8))
    assert step_seconds(calls, SUBJECT, OPTIONS, 1024, 1024, plan) == pytest.approx(5 * 9)
    pairs = Timings(Rate(), Rate(), Rate(), {"sdpa": Rate(pair=1.0)})
    pattern = LocalPattern.whole(TokenLayout(256, Grid(64, 64)), Window(8))
    exact = 5 * (pattern.pairs() - 256 * pattern.key_tokens)  # of the image's queries
    found = step_seconds(pairs, SUBJECT, OPTIONS, 1024, 1024, plan)
    assert found is not None
    assert exact < found < 3 * exact  # tiles are cut anew in each band, and padded


def test_lanes_share_the_rows_and_the_slowest_counts() -> None:
    tokens = Timings(Rate(token=1.0), Rate(), Rate(), {"sdpa": Rate()})
    plan = BandPlan.cut(Grid(64, 64), 8, Window(8), shares=(3.0, 1.0))
    assert step_seconds(tokens, SUBJECT, OPTIONS, 1024, 1024, plan) == pytest.approx(2 * (48 * 64 + 256 + 7))


def test_weights_that_are_cast_add_their_time() -> None:
    kept = Subject(MODEL, 2, 3, torch.float8_e4m3fn, 10**7)
    cast = Timings(TIMINGS.double, TIMINGS.single, TIMINGS.dense, TIMINGS.local, {"float8_e4m3fn": 1e-9})
    plain, more = (step_seconds(cast, subject, OPTIONS, 512, 512) for subject in (SUBJECT, kept))
    assert plain is not None and more is not None
    assert more - plain == pytest.approx(1e-9 * (2 * 36 + 3 * 15) * 256**2)


def test_a_backend_that_was_not_measured_gives_no_seconds() -> None:
    other = Options(Window(8), backend="masked", text=256)
    assert step_seconds(TIMINGS, SUBJECT, other, 512, 512) is None
    refused = Options(Window(8), backend="masked", text=256)
    assert step_seconds(TIMINGS, SUBJECT, refused, 8192, 8192) is None


def test_the_device_that_lacks_the_most_is_named() -> None:
    plan = BandPlan.cut(Grid(64, 64), 8, Window(8), shares=(1.0, 1.0))
    room = {"cuda:0": 10**12, "cuda:1": 10**9}
    need = worst_need(plan, plan.image, 256, MODEL.shape, 2 * 10**9, ["cuda:0", "cuda:1"], room)
    assert (need.device, need.weights, need.missing) == ("cuda:1", 2 * 10**9, need.step + 10**9)


def test_bands_are_doubled_until_they_fit() -> None:
    def plan_of(count: int) -> BandPlan:
        return BandPlan.cut(Grid(64, 64), count, Window(8))

    def need_of(most: int) -> object:
        return lambda plan: Need("cpu", 0, 1 if len(plan.bands) >= most else 3, 2)

    assert least_count(plan_of, 1, need_of(1)) == 1  # type: ignore[arg-type]
    assert least_count(plan_of, 1, need_of(6)) == 8  # type: ignore[arg-type]
    assert least_count(plan_of, 1, need_of(99)) is None  # type: ignore[arg-type]
