"""What a sweep is asked for, checked before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ....clear_core.weights import ClearWeights
from ...options.sweep import SweepGrid, check_count
from ..workflow import has_clear
from .sampling import Given


@dataclass(frozen=True, slots=True)
class SweepJob:
    """What a sweep is asked for.

    weights: those that are connected, for cells whose weights the grid does not name. dense: whether to sample the
    dense images and compare with them. reuse: whether to take over what is on disk. metadata: of the saved images.
    """

    grid: SweepGrid
    seeds: Sequence[int]
    weights: ClearWeights | None
    dense: bool
    reuse: bool
    metadata: Mapping[str, Any]

    def check(self, images: Sequence[Given]) -> None:
        """Raises ValueError for what would fail after hours."""
        check_count(self.grid, self.seeds, len(images))
        self.grid.check_weights(connected=self.weights is not None)
        if self.dense and find_spec("torchmetrics") is None:
            raise ValueError(
                "Comparing with the dense image needs the package torchmetrics, which is not installed. Run pip "
                "install -r requirements.txt, the file of this pack, in ComfyUI's environment, or turn dense off."
            )
        for one in images:
            if not hasattr(one.guider, "model_patcher"):
                raise ValueError(
                    "guider has no model that CLEAR can be applied to. Connect BasicGuider, CFGGuider or another that "
                    "SamplerCustomAdvanced takes."
                )
            if has_clear(one.guider.model_patcher):
                raise ValueError(
                    "CLEAR is already applied to the guider's model, and CLEAR Sweep applies it itself. Connect the "
                    "model from before the other node to the guider."
                )
            if one.steps < 1:
                raise ValueError("sigmas has no steps: a scheduler with denoise 0 gives none. Raise steps or denoise.")
