"""The stages of an upscale: sizes, their number, and targets that no image can have."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="session")
def stages(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.options.stages")


@pytest.mark.parametrize(
    ("size", "megapixels", "expected"),
    [
        ((1024, 1024), 4.2, [(2048, 2048)]),
        ((1024, 1024), 16.8, [(2048, 2048), (4096, 4096)]),
        ((1024, 1024), 67.1, [(2048, 2048), (4096, 4096), (8192, 8192)]),
        ((1024, 1024), 268.4, [(2048, 2048), (4096, 4096), (8192, 8192), (16384, 16384)]),
        ((1216, 832), 8.0, [(2032, 1392), (3424, 2336)]),
        ((1024, 1024), 1.0, [(992, 992)]),
    ],
)
def test_stages_of_the_recipe(
    stages: Any, size: tuple[int, int], megapixels: float, expected: list[tuple[int, int]]
) -> None:
    assert [(s.width, s.height) for s in stages.plan_stages(*size, megapixels)] == expected


def test_positions_are_stretched_from_4k_on(stages: Any) -> None:
    assert [s.ntk_factor for s in stages.plan_stages(1024, 1024, 67.1)] == [1.0, 10.0, 10.0]


@given(width=st.integers(64, 4096), height=st.integers(64, 4096), megapixels=st.floats(0.1, 60))
def test_no_stage_grows_more_than_fourfold(stages: Any, width: int, height: int, megapixels: float) -> None:
    longest = max(width, height) * math.sqrt(megapixels * 1e6 / (width * height))
    if longest > 16384 + 8:
        with pytest.raises(ValueError, match="16384 a side is the most"):
            stages.plan_stages(width, height, megapixels)
        return
    planned = stages.plan_stages(width, height, megapixels)
    pixels = width * height
    for stage in planned:
        assert stage.width % 16 == stage.height % 16 == 0
        # Rounded to whole tokens of 16 pixels.
        assert (stage.width - 16) * (stage.height - 16) <= 4.3 * pixels
        pixels = stage.width * stage.height
    assert (planned[-1].width - 16) * (planned[-1].height - 16) <= megapixels * 1e6
    assert (planned[-1].width + 16) * (planned[-1].height + 16) >= megapixels * 1e6


def test_a_number_of_stages_can_be_asked_for(stages: Any) -> None:
    assert len(stages.plan_stages(1024, 1024, 16.8, 5)) == 5


@pytest.mark.parametrize("megapixels", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_that_mean_nothing_are_named(stages: Any, megapixels: float) -> None:
    with pytest.raises(ValueError, match="target_megapixels is .*choose more than 0"):
        stages.plan_stages(1024, 1024, megapixels)


def test_a_side_that_is_too_long_is_named(stages: Any) -> None:
    with pytest.raises(ValueError, match="32000 x 1600 pixels of this 2000 x 100 image; 16384 a side is the most"):
        stages.plan_stages(2000, 100, 51.2)
