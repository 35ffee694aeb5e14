"""The colours of pictures: readable in every theme, and all of a picture in one theme."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from clear_core.show.cost import Options, make_report
from clear_core.show.figure import report_page
from clear_core.show.theme import DARK, LIGHT, PRINT, Theme
from clear_core.window import Window


def luminance(colour: str) -> float:
    """Relative luminance as in WCAG 2."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_areas_can_be_told_from_what_is_behind(theme: Theme) -> None:
    for text in (theme.ink, theme.muted, theme.blue_text, theme.orange_text):
        for ground in (theme.paper, theme.panel):
            assert contrast(text, ground) >= 4.5, (text, ground)
    # Of WCAG 2 for graphics; bars and tiles that carry a meaning.
    for area in (theme.blue, theme.orange):
        assert contrast(area, theme.panel) >= 3, area


@pytest.mark.parametrize("theme", [PRINT, LIGHT, DARK], ids=["print", "light", "dark"])
def test_the_report_is_drawn_in_its_theme_alone(theme: Theme) -> None:
    page = report_page(make_report(1024, 1024, Options(Window(9), 4), bands=2), "subtitle", theme)
    known = {tuple(round(255 * value) for value in to_rgb(colour)) for colour in dataclasses.astuple(theme)}
    colours, counts = np.unique(page.pixels().reshape(-1, 3), axis=0, return_counts=True)
    # What text and lines blend from two of them takes little room.
    large = [tuple(map(int, colour)) for colour, count in zip(colours, counts, strict=True) if count > 20_000]
    assert set(large) <= known
    assert len(large) >= 4
