"""A distillation of the tiny FLUX in a process of its own, alone or under torchrun.

Arguments: FOLDER STEPS BATCH SAVE_EVERY, then NAME=VALUE of `Run`.

Prints a line for each step, and at the end one with the bytes of the base that were held at once and received.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from devtools.inprocess import import_host, pack_module
from devtools.models import flux_model

SCALED = "scaled"
"""Stored as float8_e4m3fn, with a scale for each weight."""


@dataclass(frozen=True)
class Run:
    """singles: single blocks of the model. stored: dtype of its blocks' weights, which are computed in float32, or
    `SCALED`. start: a file of the folder, weights for a model whose linear layers are nine tenths of this one's."""

    optimizer: str = "AdamW"
    rate: float = 1e-3
    output: str = "weights"
    base: str = "replicated"
    singles: int = 2
    stored: str = "float32"
    start: str = ""

    @classmethod
    def of(cls, given: list[str]) -> Run:
        values: dict[str, Any] = dict(item.split("=", 1) for item in given)
        numbers = {name: kind(values[name]) for name, kind in (("rate", float), ("singles", int)) if name in values}
        return cls(**{**values, **numbers})


def model_of(singles: int, stored: str) -> Any:
    """As Load Diffusion Model makes one of such a file."""
    model = flux_model(depth_single_blocks=singles)
    if stored == "float32":
        return model
    model.model.manual_cast_dtype = torch.float32
    transformer = model.model.diffusion_model
    for layer in linears(transformer):
        layer.comfy_cast_weights = True
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        for layer in linears(block):
            scale_down(layer) if stored == SCALED else cast(layer, getattr(torch, stored))
    return model


def linears(module: torch.nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def cast(layer: Any, dtype: torch.dtype) -> None:
    for tensor in layer.parameters():
        tensor.data = tensor.data.to(dtype)


def scale_down(layer: Any) -> None:
    """A layer of a file in fp8 with a scale for each weight: the host's own class, around the layer's tensors."""
    from comfy.ops import scaled_fp8_ops

    layer.__class__ = scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear
    scale = layer.weight.detach().abs().max() / 448
    layer.weight.data = (layer.weight.data / scale).to(torch.float8_e4m3fn)
    layer.scale_weight, layer.scale_input = torch.nn.Parameter(scale, requires_grad=False), None


def original(run: Run) -> Any:
    """The model that weights to start from were made for."""
    model = model_of(run.singles, run.stored)
    for layer in linears(model.model.diffusion_model):
        layer.weight.data = (layer.weight.data.float() * 0.9).to(layer.weight.dtype)
    return model


def held(dtype: torch.dtype) -> int:
    """Bytes of all tensors of a dtype in this process, whoever has them."""
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor) and item.dtype == dtype]
    plain = [item.to_local() if hasattr(item, "to_local") else item for item in tensors]
    storages = {item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in plain}
    return sum(storages.values())


def main(folder: Path, steps: int, batch: int, save_every: int, run: Run) -> None:
    import_host()
    torch.set_num_threads(1)
    settings = pack_module("clear_core.distill.settings").Settings(
        radius=2,
        steps=steps,
        batch=batch,
        learning_rate=run.rate,
        seed=3,
        method="both",
        optimizer=run.optimizer,
        output=run.output,
        rank=4,
    )
    job = pack_module("nodes.host.distill.job").Job("mine", settings, save_every, folder=folder)
    files = tuple(sorted((folder / "set").glob("*.safetensors")))
    samples = pack_module("clear_core.distill.samples").TrainingSet(folder / "set", files)
    most = 0

    def check() -> None:
        nonlocal most
        if run.stored == "bfloat16":
            most = max(most, held(torch.bfloat16))

    with pack_module("clear_core.distill.processes").joined() as processes:

        def say(session: object, trained: object, point: object) -> None:
            print(f"rank {processes.rank} {point}", flush=True)

        base = pack_module("nodes.host.distill.base").base_of(run.base)
        start, start_base = None, None
        if run.start:
            start, start_base = pack_module("clear_core.weights").read_weights(folder / run.start), original(run)
        model = model_of(run.singles, run.stored)
        found, _, _ = job.run(model, samples, start, say, check, processes, base=base, start_base=start_base)
        print("from", found.note, flush=True)
        shards = base.shards
        sizes = [0] * 4 if shards is None else [shards.held, shards.whole, shards.largest, shards.received]
        print("bytes", processes.rank, most, *sizes, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), Run.of(sys.argv[5:]))
    pack_module("clear_core.distill.processes").end_process()
