"""`python -m clear_core`: CLEAR at a size and radius of your choice, explained in the terminal."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from ..flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from ..window import Window
from .cost import Model, Options, make_report
from .figure import report_page
from .terminal import report_text

_LARGEST_SIDE, _LARGEST_RADIUS, _LARGEST_FACTOR, _MOST_TEXT = 16384, 128, 8, 4096


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"clear_core: {message}\n")  # one line, without the usage


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; with --png, write its picture too. Exits with 2 for bad input."""
    parser = _parser()
    given = parser.parse_args(arguments)
    width, height = given.size
    rows = -(-height // PIXELS_PER_TOKEN)
    if given.bands > rows:
        parser.error(f"--bands is {given.bands}; an image of {height} px has {rows} rows of tokens to cut")
    options = Options(Window(given.radius), given.down_factor, text=given.text)
    report = make_report(width, height, options, Model(device=_device()), given.bands)
    print(report_text(report))
    if given.png is not None:
        subtitle = f"FLUX.1, radius {given.radius}; {report.grid} image tokens and {given.text} text tokens"
        try:
            report_page(report, subtitle).save(given.png)
        except (OSError, RuntimeError) as error:
            parser.error(f"--png {given.png}: {error}")
        print(f"\nWrote {given.png}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m clear_core", description=__doc__)
    parser.add_argument("--size", type=_size, default=(2048, 2048), metavar="WxH", help="pixels; 2048x2048 by default")
    for name, default, low, high, what in (
        ("radius", 16, 1, _LARGEST_RADIUS, "of the attention window, in image tokens"),
        ("down-factor", 1, 1, _LARGEST_FACTOR, "of the down-sampled variants; 1: none"),
        ("text", TEXT_TOKENS, 0, _MOST_TEXT, "text tokens"),
        ("bands", 0, 0, _LARGEST_SIDE, "bands to cut the image into; 0: a usual number, not drawn"),
    ):
        number = _Number(low, high)
        parser.add_argument(
            f"--{name}", type=number, default=default, metavar="N", help=f"{what}; {default} by default"
        )
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="also write the report as a picture (needs matplotlib)"
    )
    return parser


class _Number:
    """A whole number from low to high."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        if not (re.fullmatch("[0-9]{1,9}", text) and self._low <= int(text) <= self._high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {self._low} to {self._high:,}")
        return int(text)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(PIXELS_PER_TOKEN <= side <= _LARGEST_SIDE for side in (width, height)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT in pixels, each {PIXELS_PER_TOKEN} to {_LARGEST_SIDE:,}, such as 3840x2160"
        )
    return width, height


def _device() -> torch.device:
    """The accelerator that PyTorch has, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("xpu" if torch.xpu.is_available() else "cpu")
