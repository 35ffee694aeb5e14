"""Counts that follow from the definition, and the numbers the paper prints."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clear_core.layout import Band, Grid, TokenLayout, same_place
from clear_core.pattern import LocalPattern, attention_flops
from clear_core.window import Window

from core.naive import visible


@pytest.mark.parametrize(("radius", "tokens"), [(1, 1), (2, 9), (8, 193), (16, 793), (32, 3205)])
def test_an_interior_query_attends_to_as_many_tokens_as_the_circle_holds(radius: int, tokens: int) -> None:
    assert Window(radius).tokens == tokens
    side = 2 * radius + 1
    middle = side * side // 2
    mask = LocalPattern.whole(TokenLayout(0, Grid(side, side)), Window(radius)).mask(queries=slice(middle, middle + 1))
    assert int(mask.sum()) == tokens


# Table 1 of arXiv 2412.16112, TFLOP per layer at 1K, 2K, 4K and 8K, printed with two decimals.
PUBLISHED = {
    None: (0.26, 3.51, 53.60, 847.73),
    8: (0.06, 0.25, 0.98, 3.92),
    16: (0.09, 0.35, 1.43, 5.79),
    32: (0.15, 0.72, 3.14, 13.09),
}


@pytest.mark.parametrize("radius", PUBLISHED)
def test_arithmetic_is_what_the_paper_prints(radius: int | None) -> None:
    window = None if radius is None else Window(radius)
    for side, published in zip((64, 128, 256, 512), PUBLISHED[radius], strict=True):
        flops = attention_flops(TokenLayout(512, Grid(side, side)), window)
        assert flops / 1e12 == pytest.approx(published, abs=0.011)


@pytest.mark.parametrize("view", ["window", "all"])
def test_operations_are_the_visible_pairs(view: str) -> None:
    """Two multiply-adds a pair and channel, in every head."""
    layout = TokenLayout(3, Grid(7, 9), (Grid(4, 4),))
    pairs = int(visible(layout, 3, view).sum())
    count = attention_flops(layout, Window(3), heads=2, head_dim=5, references=view)  # type: ignore[arg-type]
    assert count == pairs * 2 * 5 * 2 * 2
    assert count * 24 * 128 == attention_flops(layout, Window(3), references=view) * 2 * 5  # type: ignore[arg-type]
    assert attention_flops(layout, None, heads=2, head_dim=5) == (3 + 63 + 16) ** 2 * 2 * 5 * 2 * 2
    # Cells of 2 x 2, seen by every image and reference token.
    cells = attention_flops(layout, Window(3), heads=2, head_dim=5, down_factor=2, references=view)  # type: ignore[arg-type]
    assert cells == count + 4 * 5 * (63 + 16) * 2 * 5 * 2 * 2


grids = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))


@given(
    text=st.integers(0, 3),
    image=grids,
    references=st.lists(grids, max_size=2).map(tuple),
    radius=st.integers(1, 12),
    view=st.sampled_from(["window", "all"]),
    data=st.data(),
)
def test_mask_and_count_are_the_definition(
    text: int, image: Grid, references: tuple[Grid, ...], radius: int, view: str, data: st.DataObject
) -> None:
    layout = TokenLayout(text, image, references)
    start = data.draw(st.integers(0, image.height - 1))
    rows = Band(start, data.draw(st.integers(start + 1, image.height)))
    pattern = LocalPattern(layout, Window(radius), rows, image.rows, references=view)
    expected = visible(layout, radius, view, rows)
    assert torch.equal(pattern.mask(), expected)
    assert pattern.pairs() == int(expected.sum())
    assert (pattern.query_tokens, pattern.key_tokens) == tuple(expected.shape)


def test_image_tokens_attend_to_down_sampled_ones_and_text_tokens_do_not() -> None:
    pattern = LocalPattern.whole(TokenLayout(3, Grid(5, 6)), Window(2), pooled=4)
    mask = pattern.mask()
    assert not mask[:3, :4].any()
    assert mask[3:, :4].all()
    assert pattern.pairs() == int(mask.sum())


@given(index=st.integers(0, 50), size=st.integers(1, 51), other=st.integers(1, 51))
def test_the_same_position_lies_inside_and_is_itself_for_equal_sizes(index: int, size: int, other: int) -> None:
    index %= size
    assert 0 <= same_place(index, size, other) < other
    assert same_place(index, size, size) == index


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Window(0), "radius must be 1 or more, got 0"),
        (lambda: Grid(0, 4), "got 0 x 4"),
        (lambda: Band(3, 3), "start 3, stop 3"),
        (lambda: TokenLayout(-1, Grid(2, 2)), "got -1"),
        (
            lambda: LocalPattern(TokenLayout(0, Grid(4, 4)), Window(2), Band(0, 5), Band(0, 4)),
            "beyond the image's 4 rows",
        ),
    ],
)
def test_impossible_geometry_is_refused_with_its_value(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
