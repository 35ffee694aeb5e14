"""The guard that PyTorch's C++ code takes when it indexes a tensor of a CUDA device: one that does nothing.

A build of PyTorch with CUDA registers such a guard by itself under FakeTensorMode. One without CUDA has none at all,
and indexing a fake tensor on cuda:0 raises "PyTorch is not linked with support for cuda devices".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# c10::DeviceType and the table of c10/core/impl/DeviceGuardImplInterface.h, indexed by it.
_CPU, _CUDA = 0, 1
_TABLE = "_ZN3c104impl26device_guard_impl_registryE"


@contextmanager
def guard_without_cuda() -> Iterator[None]:
    """Let CUDA have the CPU's guard, which does nothing, where PyTorch was built without CUDA."""
    if torch.cuda._is_compiled():
        yield
        return
    suffix = {"linux": "so", "darwin": "dylib"}.get(sys.platform)
    if suffix is None:
        raise RuntimeError(
            f"Cards cannot be simulated on {sys.platform} with a CPU build of PyTorch; use Linux or macOS."
        )
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libc10.{suffix}"))
    table = (ctypes.c_void_p * 2).in_dll(library, _TABLE)
    before = table[_CUDA]
    table[_CUDA] = table[_CPU]
    try:
        yield
    finally:
        table[_CUDA] = before
