"""What CLEAR Factors found about a model: circles over its layers, and the radius that they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...clear_core.factors import Factors
from ...clear_core.layout import TokenLayout
from ...clear_core.pattern import LocalPattern
from ...clear_core.radius import RadiusCurve, needed_radii, recommended_radius
from ...clear_core.show.numbers import percent, shown
from ...clear_core.weights import BlockId
from ...clear_core.window import Window
from ..options.factors import FactorsRequest

NONE = -1
"""The radius that the node gives out where none passes: Apply CLEAR Attention refuses it. (0 is the weights' own.)"""

_LISTED = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredLayer:
    """One layer at one noise level. factors: of the judged radius."""

    block: BlockId
    sigma: float
    curve: RadiusCurve
    factors: Factors

    @property
    def name(self) -> str:
        """As the node's input is written: d3, s12."""
        return f"{self.block.kind[0]}{self.block.index}"


@dataclass(frozen=True, slots=True, eq=False)
class RadiusStudy:
    """layers: by noise level, then in the order in which they run. rows: queries that were measured.

    recommended: None where no radius passes. judged: whose factors the layers have.
    headline: what Apply CLEAR Attention shows, "" for a model without it. banded: whether bands were left out.
    """

    request: FactorsRequest
    family: str
    layout: TokenLayout
    rows: int
    seed: int
    layers: Sequence[MeasuredLayer]
    recommended: int | None
    judged: int
    headline: str = ""
    banded: bool = False

    @property
    def radii(self) -> tuple[int, ...]:
        return self.layers[0].curve.radii

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(layer.sigma for layer in self.layers))

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        return tuple(dict.fromkeys(layer.block for layer in self.layers))

    @property
    def heads(self) -> int:
        return self.layers[0].curve.mass.shape[1]

    def of_block(self, block: BlockId) -> list[MeasuredLayer]:
        """One block at each noise level."""
        return [layer for layer in self.layers if layer.block == block]

    def needed(self, layers: Sequence[MeasuredLayer]) -> int | None:
        """The smallest radius with which the means over heads of all these layers pass."""
        return recommended_radius(
            [layer.curve for layer in layers],
            least_mass=self.request.least_mass,
            most_error=self.request.most_error,
        )

    def needed_by_head(self, block: BlockId) -> tuple[int | None, ...]:
        """For each head the smallest radius with which it passes at all noise levels."""
        return needed_radii(
            [layer.curve for layer in self.of_block(block)],
            least_mass=self.request.least_mass,
            most_error=self.request.most_error,
        )

    @property
    def verdict(self) -> list[str]:
        """The recommendation, in sentences."""
        bounds = f"at least {self.request.least_mass:g} of the attention and an error of {self.request.most_error:g}"
        if self.recommended is None:
            never = [layer for layer in self.layers if self.needed([layer]) is None]
            output = f"The radius output is {NONE}, which Apply CLEAR Attention refuses."
            if never:
                first = f"{never[0].name} at sigma {never[0].sigma:.3g}"
                output = f"{first} is the first of {len(never)} that pass with none. {output}"
            return [
                f"No radius passes: none of {self.radii[0]} to {self.radii[-1]}, which leave some of the image out, "
                f"keeps {bounds} at most in every layer and timestep.",
                output,
            ]
        last = max(self.layers, key=lambda layer: self.needed([layer]) or 0)
        return [
            f"Recommended radius: {self.recommended}, the smallest that keeps {bounds} at most in every layer and "
            "timestep.",
            f"{last.name} at sigma {last.sigma:.3g} needs the largest. {self._cost(self.recommended)}",
        ]

    def _cost(self, radius: int) -> str:
        return f"It computes {self._pairs(radius)} of the pairs of dense attention."

    def _pairs(self, radius: int) -> str:
        return percent(LocalPattern.whole(self.layout, Window(radius)).pairs() / self.layout.tokens**2)

    def summary(self) -> str:
        """What the node shows: how it was measured, what came of it, and what to know about this model."""
        request, all_rows = self.request, self.rows == self.layout.image.tokens
        rows = "all image tokens" if all_rows else f"{self.rows} of {self.layout.image.tokens} image tokens, "
        rows += "" if all_rows else f"drawn with seed {self.seed}"
        lines = [
            *self.verdict,
            f"{self.family}, {self.layout}; {len(self.blocks)} layers of {self.heads} heads; sigma "
            f"{', '.join(f'{sigma:.3g}' for sigma in self.sigmas)}; queries: {rows}.",
        ]
        if self.headline:
            lines.append(
                f"This model has CLEAR ({self.headline}). Its window was left out, its weights were not: for FLUX "
                "itself, connect the model from before Apply CLEAR Attention."
            )
        if self.banded:
            lines.append("CLEAR Multi-GPU was left out: the model ran without bands, on one device.")
        if request.radius:
            failing = sum(not self._judged_passes(layer) for layer in self.layers)
            lines.append(
                f"Radius {self.judged}, as asked: {len(self.layers) - failing} of {len(self.layers)} layers and "
                f"timesteps pass. {self._cost(self.judged)}"
            )
        return "\n".join(lines)

    def _judged_passes(self, layer: MeasuredLayer) -> bool:
        mass, error = layer.factors.mass.mean(), layer.factors.error.mean()
        return float(mass) >= self.request.least_mass and float(error) <= self.request.most_error

    def report(self) -> str:
        """The summary, a table of radii, and one of the factors of the judged radius, in Markdown."""
        summary = self.summary().replace("\n", "\n\n")
        return "\n".join([summary, "", *self._radii_table(), "", self._about_table(), "", *self._table()])

    def _radii_table(self) -> Iterator[str]:
        """Some radii, each in the layer and timestep where it does worst."""
        means = [layer.curve.mean for layer in self.layers]
        mass = torch.stack([mean.mass[:, 0] for mean in means]).amin(0).tolist()
        error = torch.stack([mean.error[:, 0] for mean in means]).amax(0).tolist()
        yield "| radius | least mass | largest error | pairs computed |"
        yield "|---|---|---|---|"
        for index, radius in enumerate(self.radii):
            if radius in (*_LISTED, self.recommended, self.judged):
                name = f"**{radius}**" if radius == self.recommended else str(radius)
                yield f"| {name} | {mass[index]:.3f} | {error[index]:.3f} | {self._pairs(radius)} |"

    def _about_table(self) -> str:
        why = "as asked" if self.request.radius else "the recommended one"
        if not self.request.radius and self.recommended is None:
            why = "the largest that was measured, for no radius passes"
        return (
            f"Factors of the circle of radius {self.judged}, {why}: means over heads. needs: the radius that the layer "
            "asks for by itself. mass, error: of dense attention. rank: effective rank of the measured rows, dense and "
            "in the circle; 99 %: singular values that hold 99 % of their energy. formulation: distance from the "
            "renormalised softmax. integrity: share of tokens that are read as they are."
        )

    def _table(self) -> Iterator[str]:
        yield "| layer | sigma | needs | mass | error | passes | rank | 99 % | formulation | integrity |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for layer in self.layers:
            own, dense = layer.factors.rank, layer.factors.dense_rank
            ranks = [
                f"{shown(float(d.mean()))} → {shown(float(o.mean()))}"
                for d, o in ((dense.entropy, own.entropy), (dense.energy, own.energy))
            ]
            cells = (
                layer.name,
                f"{layer.sigma:.3g}",
                str(self.needed([layer]) or "none"),
                f"{float(layer.factors.mass.mean()):.4f}",
                f"{float(layer.factors.error.mean()):.4f}",
                "yes" if self._judged_passes(layer) else "no",
                *ranks,
                f"{float(layer.factors.formulation.mean()):.1e}",
                f"{float(layer.factors.integrity.key.mean()):.3f}",
            )
            yield f"| {' | '.join(cells)} |"
