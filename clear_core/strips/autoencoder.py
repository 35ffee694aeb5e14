"""ComfyUI's image autoencoder, layer after layer over strips: the same result as the whole, whatever the strips.

A convolution reads a row more on each side of its strip and drops the rows that its own padding has falsified. A group
norm needs the moments of the whole map: they are gathered when that map is made. So a residual block is two sweeps: the
first convolution makes a map whose moments the second needs.

At the size of the image the maps are largest. There the map between the convolutions, and the one that the last
upsampling makes, can be computed again instead of kept: half the memory, for more operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Keys
from .feature_map import FeatureMap
from .moments import GroupNorm
from .sweep import NOTHING, Compute, Computed, Cost, Source, Strip, Sweeps


class NotFiniteError(ValueError):
    """A layer's result has NaN or infinite values; the text names it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A map and the moments by group that the next norm needs."""

    rows: FeatureMap | Computed
    moments: tuple[Tensor, Tensor] | None = None


def decode(sweeps: Sweeps, latent: Tensor, write: Callable[[int, Tensor], None], *, recompute: bool = False) -> None:
    """A decoder over a latent [1, channels, height, width]. write: is given each strip of the result and its first row.

    recompute: at the size of the image, compute maps again instead of keeping them. Raises NotFiniteError,
    StorageError and what the model raises.
    """
    _Run(sweeps, latent.shape[3], latent.dtype, recompute).decode(latent, write)


def encode(sweeps: Sweeps, pixels: Tensor, write: Callable[[int, Tensor], None], *, recompute: bool = False) -> None:
    """An encoder over pixels [1, channels, height, width], as the model takes them. Otherwise as `decode`."""
    _Run(sweeps, pixels.shape[3], pixels.dtype, recompute).encode(pixels, write)


class _Run:
    def __init__(self, sweeps: Sweeps, width: int, dtype: torch.dtype, recompute: bool) -> None:
        self._sweeps, self._dtype, self._recompute = sweeps, dtype, recompute
        self._model: Any = sweeps.lanes[0].model  # of all lanes alike

    def decode(self, latent: Tensor, write: Callable[[int, Tensor], None]) -> None:
        here = self._middle(self._first(latent))
        for level, part in reversed(list(enumerate(self._model.up))):
            here = self._residuals(f"up.{level}.block", len(part.block), here, last=level == 0, largest=level == 0)
            if level:
                here = self._upsample(f"up.{level}.upsample", here, largest=level == 1)
        self._last(here, write)

    def encode(self, pixels: Tensor, write: Callable[[int, Tensor], None]) -> None:
        here = self._first(pixels)
        deepest = len(self._model.down) - 1
        for level, part in enumerate(self._model.down):
            here = self._residuals(
                f"down.{level}.block", len(part.block), here, last=level == deepest, largest=level == 0
            )
            if level < deepest:
                here = self._downsample(f"down.{level}.downsample", here)
        self._last(self._middle(here), write)

    def _middle(self, here: Layer) -> Layer:
        here = self._residual("mid.block_1", here)
        here = self._attention("mid.attn_1", here)
        return self._residual("mid.block_2", here)

    # ---- layers -----------------------------------------------------------------------------------------

    def _first(self, given: Tensor) -> Layer:
        storage = self._sweeps.storage
        whole = storage.new((given.shape[1], given.shape[2], given.shape[3]), given.dtype)
        storage.write(whole, 0, given)

        def compute(model: Any, strip: Strip) -> Tensor:
            return _trimmed(model.conv_in(strip.inputs[0]), strip)

        source = Source(whole, halo=(1, 1))
        return self._sweep("conv_in", [source], compute, self._model.conv_in.out_channels, done=Layer(whole))

    def _residuals(self, name: str, count: int, here: Layer, *, last: bool, largest: bool) -> Layer:
        """The blocks of a level. last: whether a norm follows them, which needs moments; else it is a convolution.
        largest: whether it has the size of the image."""
        for block in range(count):
            here = self._residual(
                f"{name}.{block}",
                here,
                moments=last or block < count - 1,
                recompute=largest and self._recompute,
            )
        return here

    def _residual(self, name: str, here: Layer, *, moments: bool = True, recompute: bool = False) -> Layer:
        """recompute: the map between the convolutions is computed again in the second sweep instead of kept."""
        block: Any = self._model.get_submodule(name)
        channels, width = block.out_channels, here.rows.shape[2]
        norm1 = GroupNorm(f"{name}.norm1", here.moments)

        def convolved(model: nn.Module, given: Tensor) -> Tensor:
            own: Any = model.get_submodule(name)
            return own.conv1(norm1.activated(model, given))

        def first(model: nn.Module, strip: Strip) -> Tensor:
            return _trimmed(convolved(model, strip.inputs[0]), strip)

        def completed(model: nn.Module, between: Tensor, halo: Strip, given: Tensor) -> Tensor:
            """halo: of `between`."""
            own: Any = model.get_submodule(name)
            rows = _trimmed(own.conv2(norm2.activated(model, between)), halo)
            return rows.add_(own.nin_shortcut(given) if block.in_channels != channels else given)

        def from_kept(model: nn.Module, strip: Strip) -> Tensor:
            return completed(model, strip.inputs[0], strip, strip.inputs[1])

        def from_computed(model: nn.Module, strip: Strip) -> Tensor:
            given = strip.inputs[0]
            halo = replace(strip, above=min(strip.above, 1), below=min(strip.below, 1))  # of the second convolution
            false = replace(strip, above=strip.above - halo.above, below=strip.below - halo.below)
            return completed(model, _trimmed(convolved(model, given), false), halo, _trimmed(given, strip))

        source = Source(here.rows, halo=(1, 1))
        if not recompute:
            between = self._sweep(f"{name}.conv1", [source], first, channels)
            norm2 = GroupNorm(f"{name}.norm2", between.moments)
            sources = [Source(between.rows, halo=(1, 1)), Source(here.rows)]
            made = self._sweep(f"{name}.conv2", sources, from_kept, channels, moments=moments, over=between)
            self._drop(here)
            return made
        cost = self._cost(width, block.in_channels, channels)
        norm2 = GroupNorm(f"{name}.norm2", self._moments(f"{name}.conv1", source, first, cost))
        same = not isinstance(here.rows, Computed) and block.in_channels == channels
        return self._sweep(
            f"{name}.conv2",
            [Source(here.rows, halo=(2, 2))],
            from_computed,
            channels,
            more=self._cost(width, channels, channels),
            moments=moments,
            over=here if same else None,
            done=None if same else here,
        )

    def _upsample(self, name: str, here: Layer, *, largest: bool) -> Layer:
        channels, height, width = here.rows.shape

        def compute(model: nn.Module, strip: Strip) -> Tensor:
            return _trimmed(model.get_submodule(name)(strip.inputs[0]), strip, 2)

        source = Source(here.rows, Fraction(1, 2), halo=(1, 1))
        if not (largest and self._recompute):
            return self._sweep(name, [source], compute, channels, scale=Fraction(2), done=here)
        rows = Computed(
            (channels, 2 * height, 2 * width), source, compute, self._cost(2 * width, channels, channels), 2
        )
        return Layer(rows, self._moments(name, Source(rows), lambda model, strip: strip.inputs[0], NOTHING))

    def _downsample(self, name: str, here: Layer) -> Layer:
        """The module itself adds a row of zeros below, which counts in the last strip alone."""
        source = Source(here.rows, Fraction(2), halo=(0, 1))

        def compute(model: nn.Module, strip: Strip) -> Tensor:
            return model.get_submodule(name)(strip.inputs[0])

        return self._sweep(name, [source], compute, here.rows.shape[0], scale=Fraction(1, 2), done=here)

    def _attention(self, name: str, here: Layer) -> Layer:
        channels, height, width = here.rows.shape
        keys = self._keys(height * width, channels)
        norm = GroupNorm(f"{name}.norm", here.moments)

        def gather(model: nn.Module, strip: Strip) -> Tensor:
            own: Any = model.get_submodule(name)
            rows = norm(model, strip.inputs[0])
            keys.put(strip.start * width, _positions(own.k(rows)), _positions(own.v(rows)))
            return rows

        cost = self._cost(width, channels, 2 * channels, kernel=1)
        self._sweeps.run([Source(here.rows)], gather, lambda start, rows: None, height, cost)

        def attend(model: nn.Module, strip: Strip) -> Tensor:
            own: Any = model.get_submodule(name)
            given = strip.inputs[0]
            query = own.q(norm(model, given))
            out = keys.attend(_positions(query)).transpose(0, 1).reshape(query.shape)
            return own.proj_out(out).add_(given)

        attention = Cost(0, 2 * width * height * width * channels)
        return self._sweep(name, [Source(here.rows)], attend, channels, over=here, more=attention)

    def _keys(self, positions: int, channels: int) -> Keys:
        size = 2 * positions * channels * self._dtype.itemsize
        lanes = self._sweeps.lanes
        resident = size <= min(lane.keys for lane in lanes)
        home = lanes[0].device if resident and len(lanes) == 1 else torch.device("cpu")
        return Keys(positions, home, resident=resident)

    def _last(self, here: Layer, write: Callable[[int, Tensor], None]) -> None:
        """Norm, SiLU and the last convolution; its strips are the result."""
        norm = GroupNorm("norm_out", here.moments)

        def compute(model: Any, strip: Strip) -> Tensor:
            rows = _trimmed(model.conv_out(norm.activated(model, strip.inputs[0])), strip)
            return torch.tanh(rows) if getattr(model, "tanh_out", False) else rows

        channels, height, width = here.rows.shape
        cost = self._cost(width, channels, self._model.conv_out.out_channels)
        self._sweeps.run([Source(here.rows, halo=(1, 1))], compute, write, height, cost)
        self._drop(here)

    # ---- one sweep --------------------------------------------------------------------------------------

    def _sweep(
        self,
        name: str,
        sources: list[Source],
        compute: Compute,
        channels: int,
        *,
        scale: Fraction = Fraction(1),
        moments: bool = True,
        more: Cost = NOTHING,
        over: Layer | None = None,
        done: Layer | None = None,
    ) -> Layer:
        """The layer's map. more: of a row, beside a convolution.

        over: a source whose storage the map takes over. done: a source that is not needed afterwards.
        """
        storage = self._sweeps.storage
        _, height, width = sources[0].rows.shape
        height, width = int(height * scale), int(width * scale)
        in_place = over is not None and len(self._sweeps.lanes) == 1
        made = storage.new((channels, height, width), self._dtype) if over is None or not in_place else over.rows
        assert not isinstance(made, Computed)
        found = self._sweeps.run(
            sources,
            compute,
            lambda start, rows: storage.write(made, start, rows),
            height,
            self._cost(width, sources[0].rows.shape[0], channels) + more,
            groups=self._groups if moments else 0,
            even=scale == 2,
            lag=sources[0].halo[0] if in_place else 0,
        )
        _check_finite(name, found)
        for layer in (done, None if in_place else over):
            if layer is not None:
                self._drop(layer)
        return Layer(made, found)

    def _moments(self, name: str, source: Source, compute: Compute, cost: Cost) -> tuple[Tensor, Tensor] | None:
        """Of a map that is not kept and has the rows of its source."""
        height = source.rows.shape[1]
        found = self._sweeps.run([source], compute, lambda start, rows: None, height, cost, groups=self._groups)
        _check_finite(name, found)
        return found

    def _drop(self, layer: Layer) -> None:
        rows = layer.rows
        while isinstance(rows, Computed):
            rows = rows.source.rows
        self._sweeps.storage.drop(rows)

    @property
    def _groups(self) -> int:
        return self._model.norm_out.num_groups

    def _cost(self, width: int, channels: int, made: int, *, kernel: int = 3) -> Cost:
        """Of a row; its memory, about: it, its norm, the convolution's result with and without its halo, and the result
        in float32 for the moments."""
        memory = width * (self._dtype.itemsize * (3 * channels + 3 * made) + 4 * made)
        return Cost(memory, width * channels * made * kernel**2)


def _check_finite(name: str, moments: tuple[Tensor, Tensor] | None) -> None:
    # A fake tensor holds no data.
    if moments is not None and type(moments[0]) is Tensor and not bool(torch.stack(moments).isfinite().all()):
        raise NotFiniteError(name)


def _trimmed(rows: Tensor, strip: Strip, scale: int = 1) -> Tensor:
    """Without the halo."""
    return rows[:, :, scale * strip.above : rows.shape[2] - scale * strip.below]


def _positions(rows: Tensor) -> Tensor:
    """[1, channels, rows, width] as [positions, channels]."""
    return rows[0].flatten(1).transpose(0, 1)
