"""Peak memory of one training step of FLUX.1 on a card, computed without doing the arithmetic, and a model of its time.

The host's own model at its full 12 billion parameters, 1024 x 1024 pixels and one sample, runs forward and backward
under PyTorch's FakeTensorMode. A dispatch mode follows the storages. Where the trained weights are kept in main memory,
so are their gradients and the optimizer's state, and none of them counts. The peak is that of tensors: CUDA's context
and the allocator's fragmentation come on top. The optimizer's step, tensor by tensor, needs less.

The time is a model: the operations that PyTorch's FlopCounterMode counts, at the rate that is given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from devtools.inprocess import import_host, pack_module
from devtools.models import FULL_SIZE, flux_model

from .memory import Peak

RADIUS, PIXELS, TEXT, RANK = 16, 1024, 512, 64
MOMENTS = 2  # of the optimizer, for each trained value
GIB = 2**30
LINK = 20e9
"""Bytes a second between main memory and a card, PCIe 4.0 x16 as it is reached."""


@dataclass(frozen=True, slots=True)
class Case:
    """base: dtype of the frozen model. offloaded: trained weights, gradients and moments wait in main memory.

    bound_gib: the card's memory that it is meant for, less what other programs and CUDA need.
    """

    base: torch.dtype
    output: str
    method: str
    offloaded: bool
    bound_gib: float

    @property
    def name(self) -> str:
        base = {torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8"}[self.base]
        what = f"LoRA {RANK}" if self.output == "LoRA" else "weights"
        return f"{what}, {self.method}, {base} base{', offloaded' if self.offloaded else ''}"


FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
CASES = (
    Case(FP8, "LoRA", "layer by layer", False, 20),
    Case(FP8, "LoRA", "end to end", False, 20),
    Case(FP8, "weights", "layer by layer", True, 22),
    Case(FP8, "weights", "end to end", True, 22),
    Case(BF16, "weights", "end to end", False, 60),
)


@dataclass(frozen=True, slots=True)
class Row:
    """base_gib: the frozen model. peak_gib: with it. main_gib: what is kept in main memory. tflop: of one step."""

    case: str
    base_gib: float
    peak_gib: float
    main_gib: float
    bound_gib: float
    tflop: float
    transfer_s: float

    def seconds(self, tflops: float) -> float:
        return self.tflop / tflops + self.transfer_s

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class _Card(Peak):
    """Of one card: what is kept in main memory is not counted."""

    def moved_out(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._outside.add(storage._cdata)
        self._now -= self._alive.get(storage._cdata, 0)
        if storage._cdata in self._alive:
            self._alive[storage._cdata] = 0


def measure(case: Case, depth: tuple[int, int] = (19, 38)) -> Row:
    """depth: numbers of double and of single blocks."""
    import_host()
    model_module, trained_module = pack_module("nodes.host.distill.model"), pack_module("clear_core.distill.trained")
    window = pack_module("clear_core.window").Window(RADIUS)
    attention = pack_module("clear_core.distill.attention").WindowAttention(window)
    # allow_mutation_on_saved_tensors knows tensors by their address, which is 0 for all that have no content.
    by_storage = mock.patch("torch.autograd.graph._get_sid", lambda t: (t.untyped_storage()._cdata, t._version))
    with by_storage, FakeTensorMode(allow_non_fake_inputs=True):
        flux = _base(case.base, depth)
        student = model_module.DistilledModel(flux, attention)
        base = sum(p.nbytes for p in flux.parameters())
        with _Card(iter([*flux.parameters(), *flux.buffers()])) as card, FlopCounterMode(display=False) as flops:
            if case.output == "LoRA":
                trained = trained_module.Lora(student.shapes, RANK, 1, 0)
            else:
                trained = trained_module.FullWeights(dict(student.own_weights(torch.bfloat16, torch.device("cpu"))))
            parameters = list(trained.parameters.values())
            moments = [torch.empty_like(p) for p in parameters for _ in range(MOMENTS)]
            if case.offloaded:
                for tensor in [*parameters, *moments]:
                    card.moved_out(tensor)
            card.bytes = 0  # of the step alone
            flops.flop_counts.clear()

            def after_block(_: Any) -> None:
                for parameter in parameters if case.offloaded else ():
                    if parameter.grad is not None:
                        card.moved_out(parameter.grad)

            _step(case, student, trained, after_block)
        kept = sum(t.nbytes for t in [*parameters, *parameters, *moments]) if case.offloaded else 0
        total = flops.get_total_flops() / 1e12
    # Weights to the card and gradients back, in 32 bits.
    moved = 2 * sum(p.nbytes for p in parameters) / LINK if case.offloaded else 0.0
    return Row(case.name, base / GIB, (base + card.bytes) / GIB, kept / GIB, case.bound_gib, total, moved)


def table(found: list[Row], tflops: float) -> str:
    head = f"{'':<44} {'base GiB':>9} {'peak GiB':>9} {'bound':>6} {'main memory':>12} {'TFLOP':>6} {'s (model)':>10}"
    lines = [head]
    for row in found:
        lines.append(
            f"{row.case:<44} {row.base_gib:>9.1f} {row.peak_gib:>9.1f} {row.bound_gib:>6.0f} {row.main_gib:>12.1f} "
            f"{row.tflop:>6.0f} {row.seconds(tflops):>10.1f}"
        )
    lines.append(f"s (model): not measured; at {tflops:g} TFLOP/s and {LINK / 1e9:g} GB/s to main memory")
    return "\n".join(lines)


def _base(dtype: torch.dtype, depth: tuple[int, int]) -> Any:
    shape = {**FULL_SIZE, "depth": depth[0], "depth_single_blocks": depth[1]}
    model: Any = flux_model(dtype=torch.bfloat16, **shape)
    flux = model.model.diffusion_model
    if dtype != torch.bfloat16:
        for block in (*flux.double_blocks, *flux.single_blocks):
            for layer in block.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.comfy_cast_weights = True  # type: ignore[assignment]
                    layer.weight = torch.nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    return flux


def _step(case: Case, student: Any, trained: Any, after_block: Any) -> None:
    inputs = pack_module("nodes.host.distill.model").Inputs
    half = torch.bfloat16
    given = {
        "context": torch.empty(1, TEXT, FULL_SIZE["context_in_dim"], dtype=half),
        "y": torch.empty(1, FULL_SIZE["vec_in_dim"], dtype=half),
        "guidance": torch.empty(1, dtype=half),
    }
    side = PIXELS // 8
    latent = inputs(torch.empty(1, 16, side, side, dtype=half), torch.empty(1), given)
    if case.method == "layer by layer":
        student.layer_by_layer(trained, latent, 1.0, after_block)
    else:
        student.end_to_end(trained, latent, torch.empty(1, 16, side, side), 1.0, after_block)
