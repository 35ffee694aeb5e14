"""One step of the set-up: a line on the screen, its output in a log, and advice when it fails.

Standard library only: dev.py imports this before there is an environment.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / ".dev"
LOG = DEV / "setup.log"


class DevError(Exception):
    """The set-up cannot continue; the message says why and what to do."""


def run_step(title: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Run `command`, its output into the log. Raises DevError with the end of that output and advice."""
    print(f"  {title} ...", end="", flush=True)
    started = time.monotonic()
    with LOG.open("a", encoding="utf-8", errors="replace") as log:
        log.write(f"\n== {title}\n")
        log.flush()
        code = subprocess.run([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, env=env).returncode
    if code == 0:
        print(f" {time.monotonic() - started:.0f} s")
        return
    print(" failed")
    output = LOG.read_text(encoding="utf-8", errors="replace").rpartition(f"== {title}\n")[2]
    raise DevError("\n".join([*output.strip().splitlines()[-15:], "", _advice(title, output)]))


def _advice(title: str, output: str) -> str:
    """What to do about a failure, by what its output contains. The order matters: the first match wins."""
    known = {
        "No space left": f"The disk is full. Free some space on the disk of {ROOT} and start again.",
        "Disk quota": "Your disk quota is used up. Free some space and start again.",
        "name resolution": "There is no network. Connect (or set a proxy for pip) and start again.",
        "getaddrinfo failed": "There is no network. Connect (or set a proxy for pip) and start again.",
        "NewConnectionError": "The package index cannot be reached. Check the network and pip's settings.",
        "ensurepip": "This Python lacks the venv module; on Debian and Ubuntu: apt install python3-venv.",
        "npm error": "The npm registry cannot be reached. Check the network and npm's settings (registry, proxy).",
        "chromium": "The tests need Chromium, Chrome or Edge. Install one, or set CLEAR_BROWSER to its path.",
        "No matching distribution": "The package index cannot be reached (check the network and pip's settings), "
        f"or has no such package for Python {sys.version.split()[0]}; 3.11 to 3.13 have them all.",
    }
    for sign, advice in known.items():
        if sign in output:
            return advice
    return f"{title} failed. The full log is {LOG}. Starting again continues where it stopped."
