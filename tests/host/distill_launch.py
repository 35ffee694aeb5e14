"""Distillations in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from devtools.inprocess import HOST, ROOT

WORKER = str(ROOT / "tests" / "host" / "distill_worker.py")
LATE = str(ROOT / "tests" / "host" / "distill_late.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
_ENVIRONMENT = {
    **os.environ,
    "CLEAR_HOST": str(HOST),
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # a process that aborts says where
}


def started(*arguments: object) -> subprocess.Popen[str]:
    """A Python process."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(*arguments: object) -> str:
    """What a Python process that ended well has printed."""
    process = started(*arguments)
    out, errors = process.communicate()
    # What a worker says comes first, torchrun's summary of it last.
    assert process.returncode == 0, errors if len(errors) < 9000 else f"{errors[:6000]}\n[...]\n{errors[-3000:]}"
    return out
