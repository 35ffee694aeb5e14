"""The window and the bands, judged by the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from host.pictures.studio import DIFFERENT, EQUAL, WHOLE, Studio, psnr, scenery


@pytest.fixture(scope="module")
def windowed(studio: Studio, nodes_api: Any) -> tuple[Any, Tensor]:
    """The model under a small window that it was not trained for, and its pictures."""
    model = nodes_api.apply(studio.model, radius=3)
    return model, studio.pictures(model)


def test_the_dense_pictures_show_their_scenes(studio: Studio, dense: Tensor) -> None:
    """What the other tests compare with is a picture, not noise."""
    scores = studio.scores(dense)
    assert scenery(scores) == [(True, True, True)] * len(scores)
    assert min(score.coherence for score in scores) > 0.4  # measured: 0.76 and 0.78


def test_a_window_over_all_is_no_window(studio: Studio, dense: Tensor, nodes_api: Any) -> None:
    pictures = studio.pictures(nodes_api.apply(studio.model, radius=WHOLE))
    assert psnr(pictures, dense) > EQUAL
    assert [score.right for score in studio.scores(pictures)] == [score.right for score in studio.scores(dense)]


def test_a_small_window_is_another_picture(dense: Tensor, windowed: tuple[Any, Tensor]) -> None:
    assert psnr(windowed[1], dense) < DIFFERENT


@pytest.mark.parametrize(("bands", "devices"), [(2, "cpu"), (3, "cpu,cpu")])
def test_bands_do_not_show(
    studio: Studio, windowed: tuple[Any, Tensor], in_bands: Callable[..., Any], bands: int, devices: str
) -> None:
    model, expected = windowed
    assert psnr(studio.pictures(in_bands(model, bands, devices)), expected) > EQUAL


def test_one_band_is_the_picture_bit_for_bit(
    studio: Studio, windowed: tuple[Any, Tensor], in_bands: Callable[..., Any]
) -> None:
    model, expected = windowed
    assert torch.equal(studio.pictures(in_bands(model, 1)), expected)
