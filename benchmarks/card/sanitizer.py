"""The fused kernel's self-test under NVIDIA's compute-sanitizer, which sees reads and writes beyond a tensor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from .scale import Scale
from .supervise import Row

_CALLS = """
import torch
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.self_test import KernelVariant
for lse in (False, True):
    variant = KernelVariant(torch.device("cuda", 0), torch.bfloat16, 128, 2, lse)
    print("self-test:", TritonBackend().self_test_failure(variant) or "passed")
"""


def rows(scale: Scale) -> Iterator[Row]:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if scale.rehearsal or tool is None:
        yield {"left out": "a rehearsal has no card" if scale.rehearsal else "there is no compute-sanitizer"}
        return
    # Memory from CUDA itself: in PyTorch's own pool a tensor's neighbour is no error.
    settings = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", _CALLS]
    found = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    said = [line for line in found.stdout.splitlines() if "ERROR SUMMARY" in line or "self-test" in line]
    yield {"exit code": found.returncode, "right": found.returncode == 0, "said": "; ".join(said)}
