"""One part in a process of its own: what it found until it ended, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = "done"
Row = dict[str, Any]

_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: DONE, or how the part ended. seconds: that it took. rows: what it found until then.

    log: the last lines of its output. source: the commit that it ran from, once saved.
    """

    status: str
    seconds: float
    rows: list[Row]
    log: list[str]
    source: str = ""


def supervise(command: Sequence[str], folder: Path, limit: float, settings: Mapping[str, str] | None = None) -> Outcome:
    """Run a part. A hang, a crash or an illegal access on the card costs this part alone.

    command: appends its rows to the file that `CLEAR_CARD_ROWS` names, a line of JSON each (`append`).
    folder: for its files. limit: seconds, after which its processes are ended. settings: of its environment.
    """
    found, log = folder / "rows.jsonl", folder / "log.txt"
    found.unlink(missing_ok=True)
    environment = {**os.environ, **(settings or {}), "CLEAR_CARD_ROWS": str(found)}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = _status(process.wait(limit))
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {limit:.0f} s"
        finally:
            _end(process)
    return Outcome(status, time.monotonic() - started, read_rows(found), _tail(log))


def append(row: Row) -> None:
    """Save one row of the part that this process is."""
    with Path(os.environ["CLEAR_CARD_ROWS"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _status(code: int) -> str:
    if code == 0:
        return DONE
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, which share its session; a compiler's workers would outlive it."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> list[str]:
    return log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
