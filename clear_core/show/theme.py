"""The colours of a picture: on paper, and in the light and dark palettes of ComfyUI's page."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours as #rrggbb, after Okabe and Ito's palette, which colour-blind readers tell apart.

    ink, muted, blue_text, orange_text: text on paper and panel. blue is CLEAR, grey is dense attention, orange what is
    asked for; light_blue, light_grey, ground: areas behind them.
    """

    ink: str
    muted: str
    blue_text: str
    orange_text: str
    paper: str
    panel: str
    border: str
    grid: str
    ground: str
    blue: str
    light_blue: str
    orange: str
    grey: str
    light_grey: str


PRINT = Theme(
    ink="#1d2730",
    muted="#5d6873",
    blue_text="#0072b2",
    orange_text="#d55e00",
    paper="#f7f8f9",
    panel="#ffffff",
    border="#dcdfe3",
    grid="#c9ced4",
    ground="#eaf2f8",
    blue="#0072b2",
    light_blue="#a9cfe9",
    orange="#d55e00",
    grey="#9aa3ad",
    light_grey="#eceef1",
)

LIGHT = replace(PRINT, orange_text="#b04d00")
"""Every text has the contrast of WCAG 2 level AA, 4.5; so in `DARK`."""

DARK = Theme(
    ink="#e8ebee",
    muted="#aeb7c0",
    blue_text="#63b9ee",
    orange_text="#f39450",
    paper="#1c1e20",
    panel="#27292c",
    border="#3f4449",
    grid="#4b5157",
    ground="#28343e",
    blue="#3d9bd8",
    light_blue="#28587a",
    orange="#f0803a",
    grey="#858e98",
    light_grey="#3b4046",
)
