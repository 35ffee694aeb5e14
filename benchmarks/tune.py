"""Try configurations of the fused kernel on this card: what `config_for` in the triton backend is chosen from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import Chip, KernelConfig, chip_of, specialised_config
from clear_core.call import AttentionCall
from clear_core.flux import HEAD_DIM

from .attention import Case, make_call
from .timing import medians, wait

_SIDE = 256


@dataclass(frozen=True, slots=True)
class Tuned:
    """One configuration at one radius. compile_seconds: of the first call; executed_tflops: what it reached."""

    radius: int
    config: dict[str, object]
    compile_seconds: float
    seconds: float
    executed_tflops: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def candidates(chip: Chip) -> list[KernelConfig]:
    """Tiles, boxes, warps and stages that the compiler takes without spilling much; the specialised kernel's last."""
    shapes = [((8, 16), (8, 8), 64), ((8, 16), (8, 16), 128), ((8, 16), (4, 8), 64), ((8, 8), (8, 8), 64)]
    readers = (True, False) if chip.capability >= (9, 0) else (False,)
    usual = [
        KernelConfig(tile, box, block, warps, stages, reader)
        for tile, box, block in shapes
        for warps in (8, 4)
        for stages in (3, 2)
        for reader in readers
        if not (warps == 8 and tile == (8, 8))
    ]
    specialised = specialised_config(chip, 2)
    if specialised is None:
        return usual
    return [*usual, specialised, *(replace(specialised, box=(8, 8), block=64, stages=stages) for stages in (3, 4))]


def tuned(
    call: AttentionCall, configs: Iterable[KernelConfig], repeats: int
) -> Iterator[tuple[KernelConfig, Tuned | str]]:
    """Each configuration over a call's image queries alone; in place of a figure, why one cannot be run."""
    backend, device = TritonBackend(), call.query.device
    text, radius = call.pattern.text_query_tokens, call.pattern.circle.radius
    call = replace(call, query=call.query[:, :, text:], pattern=replace(call.pattern, text_queries=False))
    for config in configs:
        try:
            started = time.perf_counter()
            backend.launch(call, config)
            wait(device)
            compiling = time.perf_counter() - started
            seconds = medians({"kernel": partial(backend.launch, call, config)}, device, repeats)["kernel"]
        except Exception as problem:  # out of shared memory, or a shape this chip cannot have
            yield config, str(problem).splitlines()[0][:120]
            continue
        flops = 4 * call.heads * HEAD_DIM * backend.executed_pairs(call, config)
        yield config, Tuned(radius, asdict(config), compiling, seconds, flops / seconds / 1e12)


def run(device: torch.device, repeats: int) -> Iterator[Tuned]:
    """Image queries only, 4096 px, every candidate; prints as it goes."""
    found: list[Tuned] = []
    for radius in (16, 8, 32):
        call = make_call(Case(_SIDE, radius, 1, 24, torch.bfloat16, False, False), device)
        for config, row in tuned(call, candidates(chip_of(device)), repeats):
            if isinstance(row, str):
                print(f"r {radius:>2}  {config}  cannot: {row}", flush=True)
                continue
            print(
                f"r {radius:>2}  {row.seconds * 1e3:8.2f} ms {row.executed_tflops:6.0f} TFLOP/s  {config}", flush=True
            )
            found.append(row)
            yield row
    for radius in (8, 16, 32):
        best = min((row for row in found if row.radius == radius), key=lambda row: row.seconds, default=None)
        if best is not None:
            print(f"best at r {radius}: {best.seconds * 1e3:.2f} ms, {best.config}")
