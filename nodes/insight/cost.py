"""What attention and memory cost by image size, dense and through the window, and who would compute it here.

Every figure is the core's own: pairs and operations, predicted memory, the plan of tiles, the choice of a backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...clear_core.backends import AUTO, BACKENDS, Backend, BackendError, choose_backend
from ...clear_core.backends.triton.backend import config_for
from ...clear_core.backends.triton.tile_plan import GridPair, TilePlan, tile_plan
from ...clear_core.bands.memory import ModelShape, banded_bytes, stock_bytes
from ...clear_core.bands.plan import BandPlan
from ...clear_core.call import AttentionCall
from ...clear_core.layout import Grid, TokenLayout
from ...clear_core.pattern import LocalPattern, attention_flops
from ...clear_core.pooling import Pooled, pooled_grid
from ...clear_core.scale import softmax_scale
from ...clear_core.weights import BlockId
from ..options.clear import ClearSettings

TOKEN = 16
"""Pixels a side of one image token, for every FLUX."""
TEXT = 512
"""Text tokens that are counted, as many as the weights were trained with. A prompt may bring fewer or more."""
SQUARES = (1024, 2048, 4096, 8192)
_BAND_ROWS = 8  # rows of tokens a band: 64 bands for 8192 px, as the shipped workflows have


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the figures depend on in a MODEL.

    family: FLUX.1, FLUX.2 or Chroma. device: where the host will run it. dtype: of its activations.
    double, single: blocks. channels: hidden size.
    settings: of Apply CLEAR Attention; None where it is not in the chain. headline: what that node shows.
    """

    family: str
    device: torch.device
    dtype: torch.dtype
    double: int
    single: int
    channels: int
    heads: int
    can_be_cut: bool
    settings: ClearSettings | None
    headline: str

    @property
    def head_dim(self) -> int:
        return self.channels // self.heads

    @property
    def layers(self) -> int:
        return self.double + self.single

    def windowed_layers(self, settings: ClearSettings) -> int:
        blocks = [BlockId("double", i) for i in range(self.double)] + [BlockId("single", i) for i in range(self.single)]
        return sum(block in settings.blocks for block in blocks)


@dataclass(frozen=True, slots=True)
class SizeFigures:
    """One step at one size. width, height: pixels. dense, clear: operations of all attention layers together.

    whole: predicted bytes of activations, with or without CLEAR. in_bands: the same in so many bands on one device;
    None where the model cannot be cut.
    """

    width: int
    height: int
    dense: int
    clear: int
    whole: int
    bands: int
    in_bands: int | None


@dataclass(frozen=True, slots=True)
class BackendFigures:
    """One backend. share: of the (query, key) pairs of dense attention that it computes.

    said: its expected time, or why it cannot run here.
    """

    name: str
    able: bool
    share: float
    said: str


@dataclass(frozen=True, slots=True)
class Backends:
    """All of them. chosen: the one that would run, or "" for none. reason: why."""

    every: tuple[BackendFigures, ...]
    chosen: str
    reason: str


def grid_of(width: int, height: int) -> Grid:
    """The token grid of an image in pixels; a part of a token counts as one."""
    return Grid(-(-height // TOKEN), -(-width // TOKEN))


def by_size(facts: ModelFacts, settings: ClearSettings, width: int, height: int) -> Iterator[SizeFigures]:
    """1K to 8K square, then the given size where it is none of them."""
    sizes = [(side, side) for side in SQUARES]
    sizes += [] if (width, height) in sizes else [(width, height)]
    return (figures(facts, settings, *size) for size in sizes)


def figures(facts: ModelFacts, settings: ClearSettings, width: int, height: int) -> SizeFigures:
    """The cost of one step in which the window is on. width, height: pixels."""
    grid = grid_of(width, height)
    layout = TokenLayout(TEXT, grid)
    dense = attention_flops(layout, None, heads=facts.heads, head_dim=facts.head_dim)
    local = attention_flops(
        layout,
        settings.window,
        heads=facts.heads,
        head_dim=facts.head_dim,
        down_factor=settings.down_factor,
        references=settings.references,
    )
    windowed = facts.windowed_layers(settings)
    shape = ModelShape(facts.channels, facts.head_dim, element_size=facts.dtype.itemsize)
    count, factor = max(1, grid.height // _BAND_ROWS), settings.down_factor
    plan = BandPlan.cut(grid, count, settings.band_window(), down_factor=factor)
    return SizeFigures(
        width,
        height,
        dense * facts.layers,
        local * windowed + dense * (facts.layers - windowed),
        stock_bytes(grid, TEXT, shape),
        len(plan.bands),
        banded_bytes(plan, TEXT, shape) if facts.can_be_cut else None,
    )


def example_call(facts: ModelFacts, settings: ClearSettings, grid: Grid) -> AttentionCall:
    """An attention call of the right shape that takes no memory: one number, seen from everywhere."""
    cells = pooled_grid(grid, settings.down_factor).tokens if settings.down_factor > 1 else 0
    layout = TokenLayout(TEXT, grid)
    pattern = LocalPattern.whole(layout, settings.window, references=settings.references, pooled=cells)
    number = torch.empty(1, device=facts.device, dtype=facts.dtype)
    tensor = number.expand(1, facts.heads, layout.tokens, facts.head_dim)
    few = number.expand(1, facts.heads, cells, facts.head_dim)
    scale = softmax_scale(
        facts.head_dim, layout.tokens, proportional=settings.proportional, down_factor=settings.down_factor
    )
    return AttentionCall(tensor, tensor, tensor, pattern, scale, pooled=Pooled(few, few) if cells else None)


def backends(call: AttentionCall, asked: str) -> Backends:
    """Each backend's answer to a call, and the one that `asked` (a name, or auto) comes to."""
    every = tuple(_backend(backend, call) for backend in BACKENDS)
    try:
        choice = choose_backend(call, asked)
    except BackendError as error:
        return Backends(every, "", str(error))
    return Backends(every, choice.backend.name, choice.reason)


def _backend(backend: Backend, call: AttentionCall) -> BackendFigures:
    share = backend.executed_pairs(call) / (call.pattern.query_tokens * call.pattern.key_tokens)
    refusal = backend.unavailable() or backend.refusal(call)
    if refusal is not None:
        return BackendFigures(backend.name, False, share, refusal)
    try:
        said = choose_backend(call, AUTO, (backend,)).reason
    except BackendError:  # it can, but auto knows no time for it
        said = f"never taken by auto; {backend.summary}"
    return BackendFigures(backend.name, True, share, said)


def plan_of_tiles(call: AttentionCall) -> TilePlan:
    """The image with itself, cut as the fused kernel would on the call's device."""
    device = call.query.device
    nvidia = device.type == "cuda" and torch.version.hip is None
    config = config_for(torch.cuda.get_device_capability(device) if nvidia else (0, 0), call.query.element_size())
    grid = call.pattern.layout.image
    return tile_plan(GridPair(grid, grid.rows, grid, grid.rows), call.pattern.window, config.tile, config.box)


def needed_pairs(call: AttentionCall) -> int:
    """(query, key) pairs of the exact windows, image with image: what the plan's executed pairs are held against."""
    return LocalPattern.whole(TokenLayout(0, call.pattern.layout.image), call.pattern.window).pairs()
