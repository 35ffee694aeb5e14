"""The self-test of the specialised kernel, in a process of its own.

Its partitions wait for each other: on a chip or with a compiler where they are wrong, it would not fail but hang, and
ComfyUI with it. A process that hangs or crashes is ended, and says as much as one that finds a wrong result.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .self_test import KernelVariant, PassingFailure

_SECONDS = 90  # a start of PyTorch and two compilations take about 20
_ROOT = Path(__file__).parents[3]  # of the package, by whatever name ComfyUI imports it


def failure_apart(variant: KernelVariant, command: Sequence[str] = (), seconds: float = _SECONDS) -> str | None:
    """Why a variant cannot be used, as a clause; None where it passed, with and without the log-sum-exp.

    command: of the process, which is handed the variant; that of this module by default.
    Raises PassingFailure where the process had no room.
    """
    logging.info("CLEAR: testing the kernel for Hopper chips on %s, in a process of its own", variant.device)
    command = command or (sys.executable, "-c", _PROGRAM, str(_ROOT))
    try:
        ended = subprocess.run(
            [*command, json.dumps(_as_text(variant))], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its self-test did not end within {seconds:g} s"
    if ended.returncode != 0:
        last = (ended.stderr.strip() or "no message").splitlines()[-1]
        return f"its self-test ended with exit code {ended.returncode} ({last})"
    found = json.loads(ended.stdout.splitlines()[-1])
    if found["passing"]:
        raise PassingFailure(found["failure"])
    return found["failure"]


def _as_text(variant: KernelVariant) -> dict[str, object]:
    dtype = str(variant.dtype).removeprefix("torch.")
    return {**asdict(variant), "device": str(variant.device), "dtype": dtype}


_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from clear_core.backends.triton.trial_process import main
main(sys.argv[2])
"""
