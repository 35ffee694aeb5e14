"""FLUX's autoencoder over strips beside the plain and the tiled decode: seconds, difference, memory of the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from devtools.checkpoints import AUTOENCODER, autoencoder
from devtools.inprocess import import_host, node_class, pack_module

from .memory import Peak
from .timing import medians

TIMED, COUNTED = (512, 1024, 2048), (2048, 4096, 8192, 16384)
"""Pixels a side of the images that are decoded, and of those whose memory is counted."""
_GIB = 2**30
CELL = 8  # pixels a side of a cell of the latent


@dataclass(frozen=True, slots=True)
class Timed:
    """seconds: plain, in strips, in tiles. difference: the largest, of the plain picture's range."""

    pixels: int
    plain: float
    strips: float
    tiled: float
    strips_difference: float
    tiled_difference: float


@dataclass(frozen=True, slots=True)
class Counted:
    """GiB in bfloat16. plain, strips, tiled: the device's peak. keys: of it, those of the attention. maps: the feature
    maps that wait elsewhere; fewer: with those at the size of the image computed again; more: operations of that."""

    pixels: int
    plain: float
    tiled: float
    strips: float
    keys: float
    maps: float
    fewer: float
    more: float


class Bench:
    def __init__(self) -> None:
        import_host()
        node_class("vae_strips", "CLEARVAEDecode")  # loads the pack
        import comfy.sd

        found = autoencoder()
        self.vae: Any = comfy.sd.VAE(sd=found, dtype=torch.float32)
        core = "clear_core.strips"
        self._decode: Callable[..., None] = pack_module(f"{core}.autoencoder").decode
        self._sweep: Any = pack_module(f"{core}.sweep")
        self._few: Any = type("Few", (_FewStrips, self._sweep.Sweeps), {})
        self._plan: Any = pack_module(f"{core}.plan")
        self._maps: Any = pack_module(f"{core}.feature_map")
        self._strip: int = pack_module("nodes.host.vae_strips").STRIP
        tiles: Any = pack_module("nodes.host.vae")
        self._tile, self._overlap = tiles.TILE // CELL, tiles.OVERLAP // CELL

    def time(self, pixels: int, repeats: int) -> Timed:
        latent = torch.randn(1, 16, pixels // CELL, pixels // CELL, generator=torch.Generator().manual_seed(pixels))
        made: dict[str, Tensor] = {}
        decoder = self.vae.first_stage_model.decoder

        def strips() -> None:
            made["strips"] = self.in_strips(decoder, latent)

        def plain() -> None:
            made["plain"] = decoder(latent)

        def tiled() -> None:
            import comfy.utils

            made["tiled"] = comfy.utils.tiled_scale(
                latent, decoder, self._tile, self._tile, self._overlap, upscale_amount=CELL
            )

        with torch.inference_mode():
            seconds = medians(
                {"plain": plain, "strips": strips, "tiled": tiled}, torch.device("cpu"), repeats, patience=120.0
            )
        spread = made["plain"].max() - made["plain"].min()
        far = {name: float((made[name] - made["plain"]).abs().max() / spread) for name in ("strips", "tiled")}
        return Timed(pixels, seconds["plain"], seconds["strips"], seconds["tiled"], far["strips"], far["tiled"])

    def in_strips(self, decoder: Any, latent: Tensor) -> Tensor:
        """The decoder's raw result."""
        parts: dict[int, Tensor] = {}
        with self._maps.Storage(2**40, Path()) as storage:
            lane = self._sweep.Lane(torch.device("cpu"), decoder, self._strip, 2**40)
            self._decode(self._sweep.Sweeps([lane], storage), latent, parts.__setitem__)
        return torch.cat([parts[start] for start in sorted(parts)], 2)

    def count(self, pixels: int) -> Counted:
        """Computed from the sizes and lives of tensors that have no content."""
        cells = pixels // CELL
        plan = partial(
            self._plan.strip_plan,
            self.vae.first_stage_model.decoder,
            (16, cells, cells),
            torch.bfloat16,
            decoding=True,
        )
        kept, computed = plan(), plan(recompute=True)
        keys = 2 * cells**2 * 512 * 2
        tile = min(cells, self._tile)
        plain, tiled = (self._plain(side) for side in (cells, tile))
        strips = max(self._strips(cells, recompute=recompute) for recompute in (False, True))
        gib = [size / _GIB for size in (plain, tiled, strips, keys, kept.maps, computed.maps)]
        return Counted(pixels, *gib, more=computed.work / kept.work)

    def _plain(self, cells: int) -> int:
        with FakeTensorMode():
            decoder = self._fake_decoder()
            latent = torch.empty(1, 16, cells, cells, dtype=torch.bfloat16)
            with torch.inference_mode(), Peak(iter((latent, *decoder.parameters()))) as peak:
                decoder(latent)
        return peak.bytes

    def _strips(self, cells: int, *, recompute: bool) -> int:
        with FakeTensorMode():
            decoder = self._fake_decoder()
            latent = torch.empty(1, 16, cells, cells, dtype=torch.bfloat16)
            lane = self._sweep.Lane(torch.device("cpu"), decoder, self._strip, 2**40)
            sweeps = self._few([lane], _Elsewhere())
            with Peak(iter((latent, *decoder.parameters()))) as peak:
                self._decode(sweeps, latent, lambda start, rows: None, recompute=recompute)
        return peak.bytes

    def _fake_decoder(self) -> Any:
        from comfy.ldm.modules.diffusionmodules.model import Decoder

        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return Decoder(**AUTOENCODER)
        finally:
            torch.set_default_dtype(before)


class _FewStrips:
    """Sweeps over the first strips and the last: those between take the same memory."""

    __slots__ = ()

    def cuts(self, *given: Any) -> list[tuple[int, int]]:
        cuts = super().cuts(*given)  # type: ignore[misc]
        return cuts if len(cuts) < 6 else [*cuts[:3], *cuts[-2:]]


class _Elsewhere:
    """Feature maps in another memory: a strip of one is a new tensor here."""

    def new(self, shape: tuple[int, int, int], dtype: torch.dtype) -> Any:
        return _Map(shape, dtype)

    def write(self, target: Any, start: int, rows: Tensor) -> None: ...

    def drop(self, made: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _Map:
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        return torch.empty(1, self.shape[0], stop - start, self.shape[2], dtype=self.dtype)


def timed_table(rows: list[Timed]) -> str:
    lines = [
        "| image | plain | strips | tiles | strips / plain | strips off by | tiles off by |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.pixels} px | {row.plain:.1f} s | {row.strips:.1f} s | {row.tiled:.1f} s "
        f"| {row.strips / row.plain:.2f} "
        f"| {row.strips_difference:.1e} | {row.tiled_difference:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


def counted_table(rows: list[Counted]) -> str:
    lines = [
        "| image | device: plain | device: tiles | device: strips | of it keys and values | feature maps elsewhere "
        "| some computed again | operations of that |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.pixels} px | {row.plain:.1f} | {row.tiled:.1f} | {row.strips:.1f} | {row.keys:.1f} | {row.maps:.0f} "
        f"| {row.fewer:.0f} | {row.more:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
