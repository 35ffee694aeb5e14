"""What the process of a `trial` runs."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from .backend import TritonBackend
from .self_test import KernelVariant, PassingFailure, kernel_failure


def main(text: str) -> None:
    """Test a variant in this process, with and without the log-sum-exp; prints what was found as JSON."""
    fields = json.loads(text)
    fields |= {"device": torch.device(fields["device"]), "dtype": getattr(torch, fields["dtype"])}
    variant, run = KernelVariant(**fields), TritonBackend().run_specialised
    found: dict[str, object] = {"failure": None, "passing": False}
    try:
        found["failure"] = kernel_failure(run, variant) or kernel_failure(run, replace(variant, return_lse=True))
    except (PassingFailure, torch.OutOfMemoryError) as passing:
        found = {"failure": str(passing), "passing": True}
    print(json.dumps(found), flush=True)
