"""ComfyUI's own server as a child process that cannot be left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import torch

from .environment import BASE, HOST, PACK_FOLDER

# The server's first thread waits for its standard input to close, and it closes when we do: whatever ends
# this process, even a kill, ends the server too, on every system.
_LAUNCH = """
import os, runpy, sys, threading
def leave_with_parent():
    while os.read(0, 1024):
        pass
    os._exit(0)
threading.Thread(target=leave_with_parent, daemon=True).start()
sys.path[0] = os.getcwd()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def only_this_pack(folder: Path, *others: str) -> list[str]:
    """Options of a server whose output, input, temp and user folders are made in `folder`.

    It has no pack but this one and `others`, the names of their folders.
    """
    options = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_FOLDER, *others]
    for name in ("output", "input", "temp", "user"):
        (folder / name).mkdir()
        options += [f"--{name}-directory", str(folder / name)]
    return options


class ServerError(Exception):
    """The server did not start, or has ended; the text holds the end of its log."""


class ComfyServer:
    """A running server; a context manager. `log` is what it has printed so far.

    options: further arguments of ComfyUI's main.py.
    base: its base folder; models, nodes and user files are looked for below it.
    port: 0 for any free one.
    cpu: None for the best device there is.
    """

    def __init__(
        self,
        log_file: Path,
        *,
        options: Sequence[str] = (),
        base: Path = BASE,
        port: int = 0,
        cpu: bool | None = None,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self._log_file = log_file
        self._options = list(options)
        self._base = base
        self._cpu = not _has_accelerator() if cpu is None else cpu
        self._echo = echo
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def start(self, timeout: float = 180) -> None:
        """Returns when the server answers. Raises ServerError, with its log, when it does not."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        (self._base / "user").mkdir(parents=True, exist_ok=True)
        # It must find its own modules and none of ours, as on a user's machine.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *self._arguments()],
                cwd=HOST,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us, and we stop the server in our own time.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        if self._echo is not None:
            threading.Thread(target=self._follow, args=(self._echo,), daemon=True).start()
        try:
            self._wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the server ends."""
        return self._running().wait()

    def stop(self) -> None:
        """Returns when the server and everything it started are gone. Harmless when there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        own = ["--base-directory", str(self._base), "--port", str(self.port), "--disable-auto-launch"]
        own += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        return own + (["--cpu"] if self._cpu else []) + self._options

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            code = self._running().poll()
            if code is not None:
                raise ServerError(f"ComfyUI ended with code {code} while starting:\n{self._log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.address}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-30:])

    def _follow(self, echo: Callable[[str], None]) -> None:
        """Pass the log's new text on, until the server is gone."""
        with self._log_file.open(encoding="utf-8", errors="replace", newline="") as log:
            while self._process is not None:
                text = log.read()
                if text:
                    echo(text)
                else:
                    time.sleep(0.1)


def free_port(first: int = 0) -> int:
    """`first` if it is free, else the next free one after it; 0 for any."""
    for port in range(first, first + 100) if first else (0,):
        with socket.socket() as probe:
            if os.name != "nt":
                # As the server does: a port whose last owner has just gone is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerError(f"ports {first} to {first + 99} are all in use; choose another with --port")


def _has_accelerator() -> bool:
    backends = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
    return any(backend is not None and backend.is_available() for backend in backends)
