"""The cost of a MODEL: what `clear_core.show.cost` computes, for a host's model and the settings of its nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...clear_core.show.cost import Model, Options, Report, make_report
from ...clear_core.show.estimate import Subject
from ...clear_core.weights import BlockId
from ..options.clear import USUAL, ClearSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the nodes that explain know of a MODEL.

    family: FLUX.1, FLUX.2 or Chroma. size: its layers, channels, dtype, and the device where the host will run it.
    double, single: blocks. text: tokens of a prompt of usual length.
    weights: the dtype that they are kept in. weight_bytes: of all of them.
    settings: of Apply CLEAR Attention; None where it is not in the chain. headline: what that node shows.
    """

    family: str
    size: Model
    double: int
    single: int
    weights: torch.dtype
    weight_bytes: int
    text: int
    settings: ClearSettings | None
    headline: str

    @property
    def clear(self) -> ClearSettings:
        """The settings, or the usual ones as an example."""
        return self.settings or USUAL

    @property
    def options(self) -> Options:
        return options_of(self.clear, self.double, self.single, self.text)

    @property
    def subject(self) -> Subject:
        return Subject(self.size, self.double, self.single, self.weights, self.weight_bytes)

    def report(self, width: int, height: int) -> Report:
        """The cost at one size, in pixels."""
        return make_report(width, height, self.options, self.size)


def options_of(clear: ClearSettings, double: int, single: int, text: int) -> Options:
    """The settings as the core knows them. double, single: the model's blocks. text: tokens of the prompt."""
    blocks = [BlockId("double", i) for i in range(double)] + [BlockId("single", i) for i in range(single)]
    return Options(
        clear.window,
        clear.down_factor,
        clear.references,
        clear.proportional,
        clear.backend,
        text,
        dense_layers=sum(block not in clear.blocks for block in blocks),
        halo_exchange=clear.band_window() is not None,
    )
