"""A frozen base whose blocks are sharded over processes: each holds a part, and gathers a block while it computes it.

PyTorch's `fully_shard` (FSDP2) divides each tensor of a block along its first dimension. It is applied to a container
around the block that is never called, so its hooks do not run: they would pass the block's inputs through a custom
autograd function, whose outputs the host's blocks cannot change in place. A block is gathered and freed explicitly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

REPLICATED, SHARDED = PLACEMENTS = ("replicated", "sharded")
"""How the processes hold the base: each all of it, or each a part of every block."""

_PLAIN: Final = (Tensor, nn.Parameter)


class ShardingError(ValueError):
    """The base cannot be sharded; the text says what to do."""


def check_possible() -> None:
    """Raises ShardingError unless several processes have joined, and PyTorch has FSDP2."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ShardingError(
            f"base is {SHARDED!r}, which needs several processes, and this is a single one. Start it by torchrun, or "
            f"set base to {REPLICATED!r}."
        )
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError as error:
        raise ShardingError(_too_old(f"it cannot be imported: {error}")) from error
    if not hasattr(FSDPModule, "set_custom_all_gather"):
        raise ShardingError(_too_old("FSDPModule has no set_custom_all_gather"))


class Shards:
    """Modules that are sharded, one group of tensors each, over the processes of torch.distributed's default group.

    held: bytes of the modules that this process keeps. whole: bytes of the modules together. largest: of one module.
    received: bytes that came from other processes so far, by gathering.
    """

    def __init__(self, device: torch.device) -> None:
        """device: where the shards are kept and modules are gathered. After `check_possible`."""
        from torch.distributed import device_mesh, get_world_size

        self._mesh = device_mesh.init_device_mesh(device.type, (get_world_size(),))
        self._device, self._gather = device, _GatherBytes()
        self._containers: dict[nn.Module, Any] = {}
        self.held = self.whole = self.largest = 0

    @property
    def received(self) -> int:
        return self._gather.received

    def add(self, name: str, module: nn.Module) -> None:
        """Shard a module, whose tensors are freed but for this process's part; it stays frozen.

        module: is on any device and stays usable in `gathered`. name: for errors. Scalars, such as scales of 8-bit
        weights, are kept by each process. Raises ShardingError for tensors of another kind than PyTorch's own.
        """
        parameters = dict(module.named_parameters())
        for key, tensor in parameters.items():
            if type(tensor) not in _PLAIN:
                raise ShardingError(
                    f"{name}.{key} is a {type(tensor).__name__}; tensors of 8, 16 or 32 bits can be sharded. Choose a "
                    f"model file in bfloat16 or plain fp8, or set base to {REPLICATED!r}."
                )
        from torch.distributed.fsdp import fully_shard

        scalars = {tensor for tensor in parameters.values() if not tensor.ndim}
        for tensor in parameters.values():
            tensor.requires_grad_(False)
        for tensor in scalars:
            tensor.data = tensor.data.to(self._device)
        size = sum(tensor.nbytes for tensor in parameters.values())
        sharded: Any = fully_shard(nn.Sequential(module), mesh=self._mesh, ignored_params=scalars)
        sharded.set_custom_all_gather(self._gather)
        self._containers[module] = sharded
        self.held += sum(_local(tensor).nbytes for tensor in module.parameters())
        self.whole += size
        self.largest = max(self.largest, size)

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        """The module's tensors are whole within; all processes have to enter, in the same order of modules.

        What is kept of them for a backward, and views of them, are lost when it ends.
        """
        sharded = self._containers[module]
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()


class _GatherBytes:
    """FSDP2's all-gather, in bytes: gloo has none for 8-bit floats, and the values do not matter to it."""

    def __init__(self) -> None:
        self.received = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        import torch.distributed as dist

        self.received += output_tensor.nbytes - input_tensor.nbytes
        whole, part = (tensor.view(torch.uint8) for tensor in (output_tensor, input_tensor))
        # One collective, which PyTorch 2.13 has renamed.
        gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return gather(whole, part, group=group, async_op=async_op)


def _local(tensor: Any) -> Tensor:
    """What this process keeps of a tensor, padding included."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _too_old(reason: str) -> str:
    return (
        f"base is {SHARDED!r}, which needs PyTorch's fully_shard (FSDP2), and {torch.__version__} is too old for it "
        f"({reason}). Update PyTorch, or set base to {REPLICATED!r}."
    )
