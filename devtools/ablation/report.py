"""The page: a table of results, the factors, the paper's rows beside them, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from ..proof.measure import Measure, Row
from .paper import PUBLISHED
from .sizes import KEYS

FACTORS: Final = ("mass", "formulation", "rank", "integrity", "error")
"""rank: the effective rank of the strategy's matrix by that of the dense one's."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one strategy. size: its numbers, in words. keys: that an image query reads; None without such a number.

    flops: of a layer, the mean. learned: values besides the projections, of all layers. time: of a step, to dense.
    """

    name: str
    size: str
    keys: float | None
    flops: float
    learned: int
    time: float
    untrained: Row
    trained: tuple[Row, ...]
    factors: Row

    def mean(self, figure: str) -> float:
        """Over the seeds of the students."""
        return fmean(row[figure] for row in self.trained)

    def factor(self, name: str) -> float:
        return self.factors["rank"] / self.factors["dense_rank"] if name == "rank" else self.factors[name]


@dataclass(frozen=True, slots=True)
class Results:
    """dense: the dense model's scores. seeds: students of each strategy."""

    dense: Row
    strategies: Mapping[str, Result]
    seeds: int


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The rank correlation; None for fewer than three pairs, or where one side is constant."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    from scipy.stats import spearmanr

    found: Any = spearmanr(one, other)
    return float(found.statistic)


def page(found: Results, measure: Measure, scenes: int, machine: str) -> str:
    """docs/ablation.md. measure: of the students. scenes: that the factors are measured on."""
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds (mean ± half the range)"
    lines = [
        "# Strategies at equal cost",
        "",
        "The image attention of the small FLUX replaced by each [strategy](strategies.md) "
        "([small_flux.md](small_flux.md)), before and after the same distillation: CLEAR's own losses and steps, of "
        "the projections and of what the strategy learns. Made by `python dev.py ablate`.",
        "",
        f"256 image and 77 text tokens. {measure.pictures} held-out prompts, {measure.steps} steps of "
        f"{measure.batch} samples for each student, half layer by layer and half end to end, {seeds}, on {machine}. "
        "`loss`: mean squared distance of the velocity from the dense model's. PSNR: of the pictures from the dense "
        "model's with the same noise. `coherence` and `right`: as in [proof.md](proof.md); the dense model has "
        f"{found.dense['coherence']:.3f} and {found.dense['right']:.2f}.",
        "",
        "![loss and coherence of each strategy](images/ablation.png)",
        "",
        *_results(found),
        "",
        f"Equal cost is {KEYS} image keys for each query: keys, the mean over queries and layers, are as close as a "
        "strategy's sizes allow on 16 x 16 tokens. MFLOP: matrix products of a layer, text rows included; what makes "
        "slots (`linformer`, `agent`) and the linear part of `sla` come on top, as in the table of "
        "[strategies.md](strategies.md). `linear`, `generalised_linear`, `gated` and `sigmoid` have no number of "
        "keys. learned: values besides the projections. time: of a step, to the dense model's in the same run; on 256 "
        "tokens attention is a small part of it, and no strategy has a kernel of its own but what runs as a window.",
        "",
        "![four prompts, a row for each strategy, trained](images/ablation_pictures.jpg)",
        "",
        *_factors(found, scenes),
        "",
        *_paper(found),
        "",
    ]
    return "\n".join(lines)


def _results(found: Results) -> list[str]:
    lines = [
        "| strategy | size | keys | MFLOP | learned | time | untrained: loss | coherence | trained: loss | PSNR, dB | "
        "coherence | right |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found.strategies.values():
        trained = [
            _spread([row[name] for row in one.trained], digits)
            for name, digits in (("loss", 4), ("psnr", 1), ("coherence", 3), ("right", 2))
        ]
        cells = [
            f"`{one.name}`",
            one.size,
            "" if one.keys is None else f"{one.keys:.1f}",
            f"{one.flops / 1e6:.1f}",
            f"{one.learned:,}" if one.learned else "",
            f"{one.time:.2f}",
            f"{one.untrained['loss']:.4f}",
            f"{one.untrained['coherence']:.3f}",
            *trained,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _factors(found: Results, scenes: int) -> list[str]:
    each = list(found.strategies.values())
    lines = [
        "## Factors",
        "",
        "`clear_core.factors` on the dense model's queries, keys and values: means over all layers, heads, five noise "
        f"levels and the first {scenes} of the scenes, of the strategies before training ([what they "
        "are](strategies.md#factors)). rank: of the strategy's matrix relative to the dense one's. error: of the "
        "attention's output.",
        "",
        f"| strategy | {' | '.join(FACTORS)} |",
        f"|---|{'---|' * len(FACTORS)}",
    ]
    lines += [f"| `{one.name}` | {' | '.join(f'{one.factor(name):.3f}' for name in FACTORS)} |" for one in each]
    lines += [
        "",
        f"Spearman's rank correlation over {len(each)} strategies of each factor with what came out:",
        "",
        "| factor | untrained loss | trained loss | trained coherence |",
        "|---|---|---|---|",
    ]
    outcomes = (
        [one.untrained["loss"] for one in each],
        [one.mean("loss") for one in each],
        [one.mean("coherence") for one in each],
    )
    for name in FACTORS:
        values = [one.factor(name) for one in each]
        lines.append(f"| {name} | {' | '.join(_rho(spearman(values, outcome)) for outcome in outcomes)} |")
    return lines


def _paper(found: Results) -> list[str]:
    lines = [
        "## Beside the paper",
        "",
        "[CLEAR](https://arxiv.org/abs/2412.16112) compares strategies on FLUX.1-dev itself, at 1024 pixels, against "
        "the original's images.",
        "",
        "| paper | FID | CLIP-I | DINO | here | trained: loss | coherence |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = []
    for row in PUBLISHED:
        one = found.strategies.get(row.strategy)
        own = ["", "", ""]
        if one is not None:
            pairs.append((row, one))
            own = [f"`{one.name}`", f"{one.mean('loss'):.4f}", f"{one.mean('coherence'):.3f}"]
        lines.append(f"| {row.label} | {row.fid:.2f} | {row.clip_i:.2f} | {row.dino:.2f} | {' | '.join(own)} |")
    lines += [
        "",
        f"Spearman's rank correlation over the {len(pairs)} strategies that both have:",
        "",
        "| | FID | CLIP-I |",
        "|---|---|---|",
    ]
    for name in ("loss", "coherence"):
        own = [one.mean(name) for _, one in pairs]
        with_fid, with_clip = ([getattr(row, which) for row, _ in pairs] for which in ("fid", "clip_i"))
        lines.append(f"| trained {name} | {_rho(spearman(own, with_fid))} | {_rho(spearman(own, with_clip))} |")
    return lines


def _rho(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _spread(values: Sequence[float], digits: int) -> str:
    middle = f"{fmean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ± {(max(values) - min(values)) / 2:.{digits}f}"


def figure(path: Path, found: Results) -> None:
    """Loss and coherence of each strategy, before and after training, the best at the top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ordered = sorted(found.strategies.values(), key=lambda one: one.mean("loss"))
    names = [one.name for one in ordered]
    drawing, axes = pyplot.subplots(1, 2, figsize=(11, 0.35 * len(names) + 1.5), sharey=True)
    for axis, figure_name in zip(axes, ("loss", "coherence"), strict=True):
        before = [one.untrained[figure_name] for one in ordered]
        axis.hlines(names, before, [one.mean(figure_name) for one in ordered], color="#d0d0d0", linewidth=2, zorder=1)
        axis.scatter(before, names, color="#b0b0b0", label="untrained", zorder=2)
        for one in ordered:
            axis.scatter(
                [row[figure_name] for row in one.trained],
                [one.name] * len(one.trained),
                color="#3b7dd8",
                label="trained" if one is ordered[0] else None,
                zorder=3,
            )
        axis.set_title({"loss": "loss against the dense model", "coherence": "coherence"}[figure_name])
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].legend()
    axes[1].axvline(found.dense["coherence"], color="black", linewidth=1)
    axes[0].invert_yaxis()
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)
