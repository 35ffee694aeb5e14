"""The size of an upscale's result: by megapixels, by the long side, by a scale."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="session")
def sizes(nodes_api: Any) -> Any:
    """The sizes of the stages for an image and a target."""
    target = nodes_api.module("nodes.options.target").Target
    plan = nodes_api.module("nodes.options.stages").plan_stages

    def make(size: tuple[int, int], **values: Any) -> list[tuple[int, int]]:
        megapixels = target(16.8, **values).megapixels_of(*size)
        return [(stage.width, stage.height) for stage in plan(*size, megapixels)]

    return make


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [(2048, 2048), (4096, 4096)]),
        ({"long_side": 2048, "scale": 8.0}, [(2048, 2048), (4096, 4096)]),  # do not count
        ({"size_by": "long side"}, [(2048, 2048), (4096, 4096)]),
        ({"size_by": "long side", "long_side": 2048}, [(2048, 2048)]),
        ({"size_by": "scale"}, [(2048, 2048), (4096, 4096)]),
        ({"size_by": "scale", "scale": 2.0}, [(2048, 2048)]),
        ({"size_by": "scale", "scale": 0.5}, [(512, 512)]),
    ],
)
def test_only_the_input_that_is_named_counts(
    sizes: Any, values: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    assert sizes((1024, 1024), **values) == expected


@given(width=st.integers(64, 2048), height=st.integers(64, 2048), side=st.integers(64, 16384))
def test_the_long_side_is_as_long_as_asked(sizes: Any, width: int, height: int, side: int) -> None:
    last = sizes((width, height), size_by="long side", long_side=side)[-1]
    assert abs(max(last) - side) <= 8  # whole tokens of 16 pixels
    assert abs(min(last) - max(16, side * min(width, height) / max(width, height))) <= 8


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size_by": "scale", "scale": 20.0}, "scale 20 would make 20480 x 2040 pixels of this 1024 x 102 image"),
        ({"size_by": "scale", "scale": 16.5}, "16384 a side is the most. Choose less"),
        ({}, "target_megapixels 16.8 would make"),
    ],
)
def test_what_no_image_can_be_is_named(sizes: Any, values: dict[str, Any], words: str) -> None:
    size = (1024, 102) if values else (10000, 100)
    with pytest.raises(ValueError, match=words):
        sizes(size, **values)
