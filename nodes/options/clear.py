"""Validated settings of Apply CLEAR Attention."""

from __future__ import annotations

from dataclasses import dataclass

from ...clear_core.backends import AUTO, backend_names
from ...clear_core.flux import pixel_size
from ...clear_core.layout import Grid
from ...clear_core.pattern import ReferenceView
from ...clear_core.weights import LARGEST_FACTOR, LARGEST_RADIUS, BlockId, ClearWeights
from ...clear_core.window import Window
from .blocks import ALL, ALL_BLOCKS, BlockChoice, parse_blocks
from .by_size import BY_SIZE, is_large, ntk_by_size
from .limits import one_of, within

MAX_RADIUS = LARGEST_RADIUS
MAX_DOWN_FACTOR = LARGEST_FACTOR
MAX_NTK_FACTOR = 100.0
REFERENCE_VIEWS: dict[str, ReferenceView] = {"window": "window", "all tokens": "all"}


@dataclass(frozen=True, slots=True)
class ClearSettings:
    """How CLEAR is applied to a model, resolved.

    down_factor: 1 for no down-sampled tokens.
    strength: share of the distilled weights, 0 to 1; it blends the pooling weights too.
    ntk_factor: `BY_SIZE` leaves it, and proportional attention where that is off, to the size of the image.
    start_percent, end_percent: the part of sampling in which the window is used, 0 to 1.
    """

    window: Window
    down_factor: int = 1
    strength: float = 1.0
    backend: str = AUTO
    ntk_factor: float = 1.0
    proportional: bool = False
    start_percent: float = 0.0
    end_percent: float = 1.0
    references: ReferenceView = "window"
    blocks: BlockChoice = ALL_BLOCKS

    @property
    def by_size(self) -> bool:
        return self.ntk_factor == BY_SIZE

    def ntk_at(self, image: Grid) -> float:
        """The NTK factor for an image of so many tokens; 1 for none."""
        return ntk_by_size(*pixel_size(image)) if self.by_size else self.ntk_factor

    def proportional_at(self, image: Grid) -> bool:
        """Whether attention is proportional for an image of so many tokens."""
        return self.proportional or (self.by_size and is_large(*pixel_size(image)))

    @property
    def whole_schedule(self) -> bool:
        return self.start_percent <= 0.0 and self.end_percent >= 1.0

    def left_dense(self, block: BlockId, *, active: bool) -> str:
        """Why a layer runs dense that is meant to, in a clause; "" for one that uses the window.

        active: whether the window is on in this step.
        """
        if not active:
            return f"as asked: steps outside {self.start_percent:g} to {self.end_percent:g}"
        return "" if block in self.blocks else f"as asked: blocks other than {self.blocks.text}"

    def band_window(self, *, active: bool = True) -> Window | None:
        """The window that bands of rows may rely on; None where a layer runs dense and needs the keys of all rows.

        active: whether the window is on in the step, or in all steps that the bands are for.
        """
        return self.window if active and self.blocks.everything else None


USUAL = ClearSettings(window=Window(16))
"""The example settings for a model without CLEAR."""


@dataclass(frozen=True, slots=True)
class ApplyInputs:
    """The values of the widgets of Apply CLEAR Attention; the defaults are those of a new node."""

    radius: int = 0
    down_factor: int = 0
    strength: float = 1.0
    backend: str = AUTO
    ntk_factor: float = BY_SIZE
    proportional_attention: bool = False
    start_percent: float = 0.0
    end_percent: float = 1.0
    references: str = "window"
    blocks: str = ALL


def resolve_settings(weights: ClearWeights | None, inputs: ApplyInputs) -> ClearSettings:
    """Turn a node's inputs into settings: a radius or down_factor of 0 becomes the weights' own.

    Raises ValueError naming the value, what is allowed and what to do.
    """
    within("radius", inputs.radius, 0, MAX_RADIUS)
    within("down_factor", inputs.down_factor, 0, MAX_DOWN_FACTOR)
    within("strength", inputs.strength, 0.0, 1.0)
    check_ntk(inputs.ntk_factor)
    check_range(inputs.start_percent, inputs.end_percent)
    check_choices(inputs.backend, inputs.references)
    blocks = parse_blocks(inputs.blocks)
    own_factor = weights.variant.down_factor if weights is not None else 1
    return ClearSettings(
        window=Window(inputs.radius or _own_radius(weights)),
        down_factor=inputs.down_factor or own_factor,
        strength=inputs.strength,
        backend=inputs.backend,
        ntk_factor=inputs.ntk_factor,
        proportional=inputs.proportional_attention,
        start_percent=inputs.start_percent,
        end_percent=inputs.end_percent,
        references=REFERENCE_VIEWS[inputs.references],
        blocks=blocks,
    )


def check_window(radius: int, backend: str) -> Window:
    """The window of an explicit radius. Raises ValueError for one that is not allowed."""
    within("radius", radius, 1, MAX_RADIUS)
    check_backend(backend)
    return Window(radius)


def check_backend(backend: str) -> None:
    """Raises ValueError unless it is one of the backends, or auto."""
    one_of("backend", backend, backend_names())


def check_ntk(factor: float) -> None:
    """Raises ValueError unless it is `BY_SIZE` or 1 to `MAX_NTK_FACTOR`."""
    if factor != BY_SIZE and not 1.0 <= factor <= MAX_NTK_FACTOR:
        raise ValueError(f"ntk_factor is {factor}; allowed is 0 (by size) or 1 to {MAX_NTK_FACTOR:g}")


def check_choices(backend: str, references: str) -> None:
    """Raises ValueError unless both are among the node's options."""
    check_backend(backend)
    one_of("references", references, REFERENCE_VIEWS)


def check_range(start_percent: float, end_percent: float) -> None:
    """Raises ValueError unless 0 <= start < end <= 1."""
    within("start_percent", start_percent, 0.0, 1.0)
    within("end_percent", end_percent, 0.0, 1.0)
    if start_percent >= end_percent:
        raise ValueError(
            f"start_percent is {start_percent:g} and end_percent is {end_percent:g}: the window would never be "
            "used. Make start_percent smaller than end_percent (0 and 1 use it in every step)."
        )


def _own_radius(weights: ClearWeights | None) -> int:
    if weights is None:
        raise ValueError(
            "radius is 0, which means the weights' own radius, but no weights are connected. Connect Load CLEAR "
            f"Weights, or set radius to 1..{MAX_RADIUS} to use the window untrained (8, 16, 32 are the trained ones)."
        )
    if weights.variant.radius is None:
        raise ValueError(
            f"radius is 0, which means the weights' own radius, but {weights.name} does not say it: neither its name "
            f"(clear_local_16.safetensors) nor its metadata (clear.radius). Set radius to 1..{MAX_RADIUS}."
        )
    return weights.variant.radius
