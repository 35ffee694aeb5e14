"""How a process holds the model that is distilled: loaded by the host, or sharded over several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

import comfy.model_management
import torch

from ....clear_core.distill.sharding import REPLICATED, SHARDED, Shards, check_possible

ROOM: Final = 4 * 2**30
"""Bytes left free on the device for activations."""
_BLOCKS = ("double_blocks", "single_blocks")


class Base(Protocol):
    """What a `Session` asks of the model's holder."""

    def load(self, model: Any) -> None:
        """Make a MODEL ready to compute. Raises ValueError where that cannot be."""
        ...

    def gathered(self, block: Any) -> AbstractContextManager[None]:
        """A context in which the weights of one of the host's blocks are whole."""
        ...


class Replicated:
    """The host loads the whole model, with its patches, and offloads what does not fit. shards: there are none."""

    shards: Shards | None = None

    def load(self, model: Any) -> None:
        comfy.model_management.load_models_gpu([model], memory_required=ROOM)

    def gathered(self, block: Any) -> AbstractContextManager[None]:
        return nullcontext()


class Sharded:
    """The blocks are sharded; what is outside them is whole in each process. The host's loading stays out of it.

    shards: None before a model is loaded.
    """

    def __init__(self) -> None:
        """Raises ShardingError where there is one process, or PyTorch is too old."""
        check_possible()
        self.shards: Shards | None = None

    def load(self, model: Any) -> None:
        if model.patches:
            raise ValueError(
                f"base is {SHARDED!r}, and the model has patches of {len(model.patches)} weights, such as a LoRA's. "
                f"Save the patched model as a file and distill that, or set base to {REPLICATED!r}."
            )
        device = torch.device(model.load_device)
        transformer = model.model.diffusion_model
        shards = Shards(device)
        for kind in _BLOCKS:
            for index, block in enumerate(getattr(transformer, kind)):
                shards.add(f"{kind}.{index}", block)
        for name, module in transformer.named_children():
            if name not in _BLOCKS:
                module.to(device)
        self.shards = shards

    def gathered(self, block: Any) -> AbstractContextManager[None]:
        assert self.shards is not None
        return self.shards.gathered(block)


def base_of(name: str) -> Replicated | Sharded:
    """name: of `sharding.PLACEMENTS`. Raises ShardingError where the base cannot be sharded."""
    return Sharded() if name == SHARDED else Replicated()
