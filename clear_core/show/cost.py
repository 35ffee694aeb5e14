"""What attention and memory cost by image size, dense and with CLEAR, and which backend would run on this machine.

The figures are those the product works with: pairs and operations, predicted memory, the plan of tiles, the choice of a
backend. Nothing of the image's size is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..backends import AUTO, BACKENDS, Backend, BackendError, choose_backend
from ..backends.triton.config import chip_of, config_for
from ..backends.triton.tile_plan import GridPair, TilePlan, tile_plan
from ..bands.memory import ModelShape, banded_bytes, stock_bytes
from ..bands.plan import BandPlan
from ..call import AttentionCall
from ..flux import CHANNELS, HEADS, LAYERS, TEXT_TOKENS, token_grid
from ..layout import Grid, TokenLayout
from ..pattern import LocalPattern, ReferenceView, attention_flops
from ..pooling import Pooled, pooled_grid
from ..scale import softmax_scale
from ..window import Window

SQUARES = (1024, 2048, 4096, 8192)
"""Pixels a side of the images that are always listed."""
BAND_ROWS = 8
"""Rows of tokens in a band, where its number is not given: 64 bands for 8192 px, as the shipped workflows have."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the cost depends on in a model; the defaults are FLUX.1's.

    channels: hidden size. dtype: of the activations. can_be_cut: whether a forward can run in bands.
    """

    layers: int = LAYERS
    channels: int = CHANNELS
    heads: int = HEADS
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    can_be_cut: bool = True

    @property
    def head_dim(self) -> int:
        return self.channels // self.heads

    @property
    def shape(self) -> ModelShape:
        """As the memory model knows it."""
        return ModelShape(self.channels, self.head_dim, element_size=self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Options:
    """How CLEAR is applied. down_factor: 1 for no down-sampled tokens. text: tokens of the prompt.

    dense_layers: layers that keep dense attention. halo_exchange: whether a band needs the rows around it only; False
    where a dense layer needs every row.
    """

    window: Window
    down_factor: int = 1
    references: ReferenceView = "window"
    proportional: bool = False
    backend: str = AUTO
    text: int = TEXT_TOKENS
    dense_layers: int = 0
    halo_exchange: bool = True


@dataclass(frozen=True, slots=True)
class SizeCost:
    """One step at one size. width, height: pixels. dense, clear: floating-point operations of all attention layers.

    stock: predicted bytes of activations, with or without CLEAR. banded: the same in `bands` bands on one device; None
    where the model cannot be cut.
    """

    width: int
    height: int
    dense: int
    clear: int
    stock: int
    bands: int
    banded: int | None

    @property
    def grid(self) -> Grid:
        return token_grid(self.width, self.height)


@dataclass(frozen=True, slots=True)
class BackendCost:
    """One backend. able: whether it can run the call. share: (query, key) pairs that it computes, dense being 1.

    note: its expected time, or why it cannot run.
    """

    name: str
    able: bool
    share: float
    note: str


@dataclass(frozen=True, slots=True)
class BackendTable:
    """Every backend. chosen: the one that would run, or "" for none. reason: why."""

    backends: tuple[BackendCost, ...]
    chosen: str
    reason: str


@dataclass(frozen=True, slots=True)
class TileView:
    """One query tile of a plan and the key tiles that it visits, in image tokens.

    query: row and column of its first token. keys: the same of each key tile, the `full` ones first. Tiles may reach
    beyond the border of the image.
    """

    query: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    full: int


@dataclass(frozen=True, slots=True)
class Report:
    """CLEAR at one size. pattern: the attention pattern of one layer. bands: None where none were asked for."""

    width: int
    height: int
    model: Model
    options: Options
    pattern: LocalPattern
    tiles: TilePlan
    backends: BackendTable
    sizes: tuple[SizeCost, ...]
    bands: BandPlan | None

    @property
    def grid(self) -> Grid:
        return self.pattern.layout.image

    @property
    def query(self) -> tuple[int, int]:
        """Row and column of the image token that is shown: the middle."""
        return self.grid.height // 2, self.grid.width // 2

    @property
    def window_tokens(self) -> int:
        """Image tokens in that token's window, clipped at the border."""
        return self.options.window.tokens_at(*self.query, self.grid.height, self.grid.width)

    @property
    def dense_pairs(self) -> int:
        """(query, key) pairs of one layer with dense attention."""
        return self.pattern.layout.tokens**2

    @property
    def tile_overhead(self) -> float:
        """(query, key) pairs that the tiles compute, over those in the windows."""
        exact = LocalPattern.whole(TokenLayout(0, self.grid), self.options.window)
        return self.tiles.executed_pairs() / exact.pairs()

    @property
    def middle_tile(self) -> TileView:
        """The query tile in the middle of the image."""
        tiles, (height, width) = self.tiles, self.tiles.tile
        across = -(-self.grid.width // width)
        row, column = -(-self.grid.height // height) // 2, across // 2
        first, partial, end = (int(edge) for edge in tiles.ranges[:, row * across + column])
        keys = tuple((int(y), int(x)) for y, x in tiles.boxes[first:end])
        return TileView((row * height, column * width), keys, partial - first)


def make_report(width: int, height: int, options: Options, model: Model | None = None, bands: int = 0) -> Report:
    """Everything about one size. width, height: pixels. bands: how many to cut this size into, 0 for the usual."""
    model = model or Model()
    call = example_call(model, options, token_grid(width, height))
    given = (width, height)
    sizes = [(side, side) for side in SQUARES]
    sizes += [] if given in sizes else [given]
    return Report(
        width,
        height,
        model,
        options,
        call.pattern,
        image_tiles(call),
        backend_table(call, options.backend),
        tuple(step_cost(*size, options, model, bands if size == given else 0) for size in sizes),
        band_plan(call.pattern.layout.image, options, bands) if bands else None,
    )


def step_cost(width: int, height: int, options: Options, model: Model, bands: int = 0) -> SizeCost:
    """The cost of one step in which the window is on. width, height: pixels. bands: 0 for the usual number."""
    grid = token_grid(width, height)
    layout = TokenLayout(options.text, grid)
    dense = attention_flops(layout, None, heads=model.heads, head_dim=model.head_dim)
    local = attention_flops(
        layout,
        options.window,
        heads=model.heads,
        head_dim=model.head_dim,
        down_factor=options.down_factor,
        references=options.references,
    )
    shape = model.shape
    plan = band_plan(grid, options, bands or max(1, grid.height // BAND_ROWS))
    return SizeCost(
        width,
        height,
        dense=dense * model.layers,
        clear=local * (model.layers - options.dense_layers) + dense * options.dense_layers,
        stock=stock_bytes(grid, options.text, shape),
        bands=len(plan.bands),
        banded=banded_bytes(plan, options.text, shape) if model.can_be_cut else None,
    )


def band_plan(grid: Grid, options: Options, bands: int) -> BandPlan:
    """`bands` bands, one after another on one device."""
    window = options.window if options.halo_exchange else None
    return BandPlan.cut(grid, bands, window, down_factor=options.down_factor)


def example_call(model: Model, options: Options, grid: Grid) -> AttentionCall:
    """The call of one layer over the whole image; see `pattern_call`."""
    cells = pooled_grid(grid, options.down_factor).tokens if options.down_factor > 1 else 0
    layout = TokenLayout(options.text, grid)
    pattern = LocalPattern.whole(layout, options.window, references=options.references, pooled=cells)
    return pattern_call(model, options, pattern)


def pattern_call(model: Model, options: Options, pattern: LocalPattern) -> AttentionCall:
    """A call of the right shape whose tensors are one number, expanded: it takes no memory."""
    number = torch.empty(1, device=model.device, dtype=model.dtype)

    def tensor(tokens: int) -> torch.Tensor:
        return number.expand(1, model.heads, tokens, model.head_dim)

    key, cells = tensor(pattern.key_tokens), pattern.pooled
    return AttentionCall(
        tensor(pattern.query_tokens),
        key,
        key,
        pattern,
        softmax_scale(
            model.head_dim,
            pattern.layout.tokens,
            proportional=options.proportional,
            down_factor=options.down_factor,
        ),
        pooled=Pooled(tensor(cells), tensor(cells)) if cells else None,
    )


def backend_table(call: AttentionCall, name: str) -> BackendTable:
    """What each backend says to a call, and the one that `name` (a backend, or auto) comes to."""
    backends = tuple(_backend_cost(backend, call) for backend in BACKENDS)
    try:
        choice = choose_backend(call, name)
    except BackendError as error:
        return BackendTable(backends, "", str(error))
    return BackendTable(backends, choice.backend.name, choice.reason)


def _backend_cost(backend: Backend, call: AttentionCall) -> BackendCost:
    share = backend.executed_pairs(call) / (call.pattern.query_tokens * call.pattern.key_tokens)
    refusal = backend.unavailable() or backend.refusal(call)
    if refusal is not None:
        return BackendCost(backend.name, False, share, refusal)
    try:
        note = choose_backend(call, AUTO, (backend,)).reason
    except BackendError:  # it can run, but auto has no time for it
        note = f"never chosen by auto; {backend.summary}"
    return BackendCost(backend.name, True, share, note)


def image_tiles(call: AttentionCall) -> TilePlan:
    """The image with itself, cut as the fused kernel would on the call's device."""
    config = config_for(chip_of(call.query.device), call.query.element_size())
    grid = call.pattern.layout.image
    return tile_plan(GridPair(grid, grid.rows, grid, grid.rows), call.pattern.circle, config.tile, config.box)
