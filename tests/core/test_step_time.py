"""What a step is predicted to take, from the steps of a made card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from clear_core.flux import LAYERS, TEXT_TOKENS, token_grid
from clear_core.layout import TokenLayout
from clear_core.pattern import attention_flops
from clear_core.show.measured import MeasuredStep
from clear_core.show.step_time import StepTimes, Work
from clear_core.window import Window


def work(pixels: int, radius: int, *, factor: int = 1, bands: int = 0) -> Work:
    layout = TokenLayout(TEXT_TOKENS, token_grid(pixels, pixels))
    attention = LAYERS * attention_flops(layout, Window(radius), down_factor=factor)
    return Work.of(pixels, pixels, attention, bands=bands)


def made_up(matrices: float = 600e12, attention: float = 300e12) -> list[MeasuredStep]:
    """What the command measures, on a card of two rates where fp8 and bands take longer."""

    def step(pixels: int, radius: int, blocks: int, weights: str = "bfloat16", bands: int = 0) -> MeasuredStep:
        done = work(pixels, radius, bands=bands)
        seconds = (done.matrices / matrices + done.attention / attention) * blocks / LAYERS
        seconds *= (1.1 if weights == "fp8" else 1.0) * (1 + 300 * done.thinness)
        return MeasuredStep(pixels, blocks, weights, radius, bands, seconds)

    few = [step(pixels, radius, 6) for pixels in (2048, 4096, 8192) for radius in (8, 16, 32)]
    bands = ((1024, 0), (1024, 8), (2048, 0), (2048, 16), (4096, 0), (4096, 32), (8192, 0), (8192, 32), (8192, 64))
    whole = [step(pixels, 16, LAYERS, weights, each) for weights in ("bfloat16", "fp8") for pixels, each in bands]
    return [*few, *whole]


@pytest.mark.parametrize("weights", ["bfloat16", "fp8"])
@pytest.mark.parametrize("change", [lambda step: step.seconds, lambda step: step.seconds * (1 + step.pixels % 7 / 9)])
def test_a_measured_step_is_given_as_it_was(weights: str, change: Callable[[MeasuredStep], float]) -> None:
    """Also of a card that is unlike the model."""
    steps = [replace(step, seconds=change(step)) for step in made_up()]
    times = StepTimes(steps, weights)
    whole = [step for step in steps if (step.blocks, step.weights) == (LAYERS, weights)]
    assert len(whole) == 9
    for step in whole:
        found = times.predict(work(step.pixels, step.radius, bands=step.bands))
        assert found is not None
        assert found.seconds == pytest.approx(step.seconds, rel=1e-12)
        assert not found.beyond


def test_other_radii_sizes_and_global_context_follow_the_two_rates() -> None:
    times = StepTimes(made_up(), "bfloat16")
    for pixels, radius, factor in ((1536, 16, 1), (4096, 8, 1), (4096, 32, 1), (3072, 24, 4), (6144, 8, 1)):
        done = work(pixels, radius, factor=factor)
        found = times.predict(done)
        assert found is not None
        assert found.seconds == pytest.approx(done.matrices / 600e12 + done.attention / 300e12, rel=1e-9)


def test_between_what_was_measured_more_work_takes_longer() -> None:
    steps = [replace(step, seconds=step.seconds ** (0.8 if step.pixels > 3000 else 1.1)) for step in made_up()]
    times = StepTimes(steps, "bfloat16")
    for along in (
        [work(pixels, 16) for pixels in range(512, 20000, 256)],
        [work(4096, radius) for radius in range(1, 65)],
        [work(2048, 8, factor=factor) for factor in (8, 6, 4, 2)],
        [work(8192, 16, bands=bands) for bands in range(65)],
    ):
        seconds = [found.seconds for each in along if (found := times.predict(each)) is not None]
        assert len(seconds) == len(along)
        assert seconds == sorted(seconds)
        assert len(set(seconds)) == len(seconds)


def test_what_nothing_was_measured_for_is_not_predicted() -> None:
    steps = made_up()
    only = [step for step in steps if step.weights == "bfloat16" and not step.bands]
    assert StepTimes(only, "fp8").predict(work(4096, 16)) is None
    assert StepTimes([], "fp8").predict(work(4096, 16)) is None
    assert StepTimes([step for step in steps if step.blocks < LAYERS], "bfloat16").predict(work(4096, 16)) is None
    assert StepTimes([step for step in steps if step.bands], "fp8").predict(work(8192, 16, bands=64)) is None
    assert StepTimes(only, "bfloat16").predict(work(8192, 16, bands=2)) is None
    assert StepTimes(steps, "bfloat16").predict(work(1024, 16, bands=16)) is None, "no bands as thin"
    larger = StepTimes(steps, "bfloat16").predict(work(16384, 16))
    assert larger is not None
    assert larger.beyond


def test_one_step_is_enough_for_a_prediction() -> None:
    """The rates cannot be told apart, so they are taken as equal."""
    times = StepTimes([MeasuredStep(4096, LAYERS, "fp8", 16, 0, 2.0)], "fp8")
    done = work(2048, 16)
    found, whole = times.predict(done), work(4096, 16)
    assert found is not None
    share = (done.matrices + done.attention) / (whole.matrices + whole.attention)
    assert found.seconds == pytest.approx(2.0 * share)
