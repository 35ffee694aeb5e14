"""How far an upscale is and how long the rest takes, on a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

NODES = [{part: f"{part}{stage}" for part in ("encode", "sample", "decode")} for stage in (1, 2)]
WORK = [
    {"encode": 1.0, "sample": 10.0, "decode": 2.0},
    {"encode": 4.0, "sample": 40.0, "decode": 8.0},
]
ALL = 65.0


@pytest.fixture
def clock() -> Any:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def run(nodes_api: Any, clock: Any) -> Any:
    stage = nodes_api.module("nodes.options.stages").Stage
    made = nodes_api.module("nodes.insight.upscale_run").UpscaleRun(now=lambda: clock.now)
    made.add([stage(2048, 2048), stage(4096, 4096)], NODES, WORK)
    return made


def sample(run: Any, clock: Any, stage: int, steps: int, *, seconds: float, loading: float = 0) -> None:
    """The first `steps` of ten steps."""
    run.started(f"sample{stage}")
    clock.now += loading
    for step in range(1, steps + 1):
        clock.now += seconds
        run.stepped(f"sample{stage}", step, 10)


def encode(run: Any, clock: Any, stage: int, seconds: float) -> None:
    run.started(f"encode{stage}")
    clock.now += seconds
    run.finished(f"encode{stage}")


def test_nothing_is_said_before_it_begins(run: Any) -> None:
    assert run.state() is None
    assert run.fraction == 0
    assert run.has("sample2") and not run.has("7")


def test_the_rest_is_timed_by_the_steps_that_ran(run: Any, clock: Any) -> None:
    """One second an operation of the VAE; a step, which is one operation, takes five. The first one loads the model."""
    encode(run, clock, 1, 1.0)
    sample(run, clock, 1, 4, seconds=5, loading=100)
    state = run.state()
    assert (state["stage"], state["part"], state["step"], state["steps"]) == (1, "sample", 4, 10)
    assert state["sizes"] == [[2048, 2048], [4096, 4096]]
    assert state["stage_left"] == pytest.approx(6 * 5 + 2)
    assert state["left"] == pytest.approx(6 * 5 + 2 + 4 + 40 * 5 + 8)
    assert state["fraction"] == pytest.approx(5 / ALL)


def test_it_learns_from_each_stage(run: Any, clock: Any) -> None:
    encode(run, clock, 1, 1.0)
    sample(run, clock, 1, 10, seconds=5)
    run.finished("sample1")
    run.started("decode1")
    clock.now += 6
    run.finished("decode1")
    encode(run, clock, 2, 4.0)
    sample(run, clock, 2, 2, seconds=12)  # four operations each: three seconds an operation
    state = run.state()
    assert (state["stage"], state["step"]) == (2, 2)
    assert state["left"] == state["stage_left"] == pytest.approx(8 * 12 + 8)


def test_what_comes_from_the_cache_is_done_and_takes_no_time(run: Any, clock: Any) -> None:
    sample(run, clock, 2, 2, seconds=4)
    assert run.fraction == pytest.approx((13 + 4 + 8) / ALL)
    assert run.state()["stage_left"] == pytest.approx(8 * 4 + 8)


def test_before_the_first_part_ends_no_time_is_known(run: Any, clock: Any) -> None:
    run.started("encode1")
    clock.now += 5
    assert (run.state()["left"], run.state()["stage_left"]) == (None, None)


def test_it_never_goes_back(run: Any, clock: Any) -> None:
    """Nodes report a new start with 0, and tiles of one part in several rounds."""
    fractions = []
    for stage in (1, 2):
        for part in ("encode", "sample", "decode"):
            run.started(f"{part}{stage}")
            for value in (0, 1, 2, 0, 1, 2):
                run.stepped(f"{part}{stage}", value, 2)
                fractions.append(run.fraction)
            run.finished(f"{part}{stage}")
            fractions.append(run.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert run.state()["left"] == 0


def test_several_images_count_together(run: Any, nodes_api: Any) -> None:
    stage = nodes_api.module("nodes.options.stages").Stage
    nodes = [{part: f"{node} of the second" for part, node in ids.items()} for ids in NODES]
    run.add([stage(1024, 512), stage(2048, 1024)], nodes, WORK)
    run.started("sample1 of the second")
    run.stepped("sample1 of the second", 5, 10)
    state = run.state()
    assert (state["image"], state["images"], state["sizes"][0]) == (2, 2, [1024, 512])
    assert run.fraction == pytest.approx((1 + 5) / (2 * ALL))


def test_the_work_of_a_stage_is_the_memory_models_kind(nodes_api: Any) -> None:
    """Of four times the pixels: the VAE four times, steps by tokens and window, tiles three times."""
    stage = nodes_api.module("nodes.options.stages").Stage
    clear = nodes_api.module("nodes.options.clear").USUAL
    work = nodes_api.module("nodes.insight.upscale_run").stage_work
    small, large = (work(stage(side, side), clear, 57, 512, 20, "whole") for side in (2048, 4096))
    assert large["encode"] == 4 * small["encode"]
    assert 3.5 < large["sample"] / small["sample"] < 4.2
    tiled = work(stage(2048, 2048), clear, 57, 512, 20, "tiles")
    assert tiled == {"encode": 3 * small["encode"], "decode": 3 * small["decode"], "sample": small["sample"]}
    assert work(stage(2048, 2048), clear, 57, 512, 20, "strips") == small
    assert work(stage(2048, 2048), clear, 57, 512, 10, "whole")["sample"] == small["sample"] / 2
