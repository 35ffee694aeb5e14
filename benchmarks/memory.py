"""Peak activation memory of one step of FLUX.1, computed without doing the arithmetic.

The host's own model at full width runs under PyTorch's FakeTensorMode, bfloat16, through the nodes: every tensor has
its size and its life, none has content. A dispatch mode follows the storages. `stock` is the model without CLEAR and
with its attention stubbed, so without its workspace; `tiled` counts what a backend may take at most. What has no
tensors here is added: the weights of a block in use, which fp8 weights are cast to, and cuBLAS's workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from clear_core.bands.memory import ModelShape, activation_bytes, banded_bytes, stock_bytes
from clear_core.bands.plan import BandPlan
from clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid
from clear_core.window import Window
from devtools.inprocess import import_host, node_class, pack_module, run_node
from devtools.models import FULL_SIZE, flux_model

RADIUS = 16
BLOCKS = (1, 2)
"""Double and single blocks. All of a kind are alike, and none keeps anything, so the peak is that of 19 and 38."""
BANDS = {1024: (4,), 2048: (4, 16), 4096: (8, 32), 8192: (8, 64), 16384: (128,)}
FP8_GIB = 11.08
"""FLUX.1's weights in fp8."""


@dataclass(frozen=True, slots=True)
class Row:
    """kind: "stock", with one band, or "tiled".

    peak_activation_gib: followed. predicted_gib: the same by `clear_core.bands.memory`, which the nodes go by.
    needed_gib: by that, with the weights in use and workspaces: all that a card needs beside the weights.
    """

    pixels: int
    bands: int
    kind: str
    radius: int
    peak_activation_gib: float
    predicted_gib: float
    needed_gib: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Peak(TorchDispatchMode):
    """Follows the storages of all tensors made while it is on; those known before are not counted."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self._now = 0
        self._outside = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name in self._alive or name in self._outside:
            return
        self._alive[name] = storage.nbytes()
        self._now += self._alive[name]
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._gone, name)

    def _gone(self, name: int) -> None:
        self._now -= self._alive.pop(name)


class Bench:
    """The model without content, and the nodes."""

    def __init__(self, blocks: tuple[int, int] = BLOCKS) -> None:
        import_host()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            shape = {**FULL_SIZE, "depth": blocks[0], "depth_single_blocks": blocks[1]}
            self._model = flux_model(dtype=torch.bfloat16, **shape)
        self._apply, self._bands = node_class("apply", "CLEARApply"), node_class("multi_gpu", "CLEARMultiGPU")
        sdpa: Any = pack_module("clear_core.backends.sdpa.backend")
        sdpa.SdpaBackend.run = _within_budget

    def stock(self, pixels: int) -> Row:
        model = self._model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = _nothing
        grid = Grid(pixels // PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN)
        predicted = stock_bytes(grid, TEXT_TOKENS, ModelShape())
        return Row(pixels, 1, "stock", 0, self._peak(model, pixels) / 2**30, predicted / 2**30, predicted / 2**30)

    def tiled(self, pixels: int, bands: int) -> Row:
        clear = run_node(self._apply, model=self._model, weights=None, radius=RADIUS, backend="sdpa")[0]
        model = run_node(self._bands, model=clear, devices="cpu", bands=bands)[0]
        grid = Grid(pixels // PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN)
        plan = BandPlan.cut(grid, bands, Window(RADIUS))
        predicted = activation_bytes(plan, 0, TEXT_TOKENS, ModelShape())
        needed = banded_bytes(plan, TEXT_TOKENS, ModelShape())
        peak = self._peak(model, pixels)
        return Row(pixels, bands, "tiled", RADIUS, peak / 2**30, predicted / 2**30, needed / 2**30)

    def _peak(self, model: Any, pixels: int) -> int:
        import comfy.sampler_helpers

        base = model.model
        options = {**model.model_options, "transformer_options": dict(model.model_options["transformer_options"])}
        comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
        with self._mode, torch.no_grad():
            half = torch.bfloat16
            given = {
                "c_crossattn": torch.empty(1, TEXT_TOKENS, FULL_SIZE["context_in_dim"], dtype=half),
                "y": torch.empty(1, FULL_SIZE["vec_in_dim"], dtype=half),
                "guidance": torch.empty(1),
            }
            latent, time = torch.empty(1, 16, pixels // 8, pixels // 8, dtype=half), torch.empty(1)
            with Peak(iter([*base.parameters(), *base.buffers()])) as peak:
                base.apply_model(latent, time, transformer_options=options["transformer_options"], **given)
        return peak.bytes


def measure(pixels: int, bench: Bench) -> Iterator[Row]:
    """Stock, then by number of bands."""
    yield bench.stock(pixels)
    for bands in BANDS[pixels]:
        yield bench.tiled(pixels, bands)


def table(rows: list[Row]) -> str:
    head = f"{'image':>7} {'kind':<6} {'bands':>6} {'peak GiB':>9} {'predicted':>10} {'all needed':>11}"
    lines = [f"{head} {'+ fp8 weights':>14}"]
    for row in rows:
        lines.append(
            f"{row.pixels:>7} {row.kind:<6} {row.bands:>6} {row.peak_activation_gib:>9.2f} {row.predicted_gib:>10.2f} "
            f"{row.needed_gib:>11.2f} {FP8_GIB + row.needed_gib:>14.2f}"
        )
    return "\n".join(lines)


def _within_budget(backend: Any, call: Any) -> Any:
    """What a backend takes at most: its budget and the text's own keys, values and rows (tests/core/test_memory.py).

    Its tiles one by one would take minutes and come to the same.
    """
    del backend
    text = 4 * call.pattern.layout.text * call.query.shape[1] * call.query.shape[3]
    scratch = call.query.new_empty(call.budget // call.query.element_size() + text)
    out = call.query.new_empty(call.batch, call.query.shape[2], call.query.shape[1] * call.query.shape[3])
    lse = call.query.new_empty(call.query.shape[:3], dtype=torch.float32) if call.return_lse else None
    del scratch
    result: Any = pack_module("clear_core.call")
    return result.AttentionResult(out, lse)


def _nothing(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
    """Attention's output and nothing else."""
    del func, k, v, kwargs
    return q.new_empty(q.shape[0], q.shape[2], heads * q.shape[3])
