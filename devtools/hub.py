"""A Hugging Face hub on the loopback interface: a real HTTP server for the client's requests, with injected faults.

    HEAD, GET  /{repository}/resolve/{revision}/{name}   302 to the storage, with size and digest in headers
    GET        /storage/{digest}                          at another origin; ranges

Faults are attributes, to be set while it runs; those that are lists are used up, one entry an answer.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

REPOSITORY, REVISION = "Huage001/CLEAR", "main"
PAGE = b"<!DOCTYPE html><title>Welcome to Hotel Wi-Fi</title>"
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One that came in. url: as it was written, whole where the server was used as a proxy."""

    method: str
    url: str
    range: str | None
    token: str | None

    @property
    def to_storage(self) -> bool:
        return urlsplit(self.url).path.startswith("/storage/")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that goes away is none
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


def small_files() -> dict[str, bytes]:
    """The released files by name, whole sets of weights of a FLUX so small that each has 168 kB."""
    from safetensors.torch import save

    from clear_core.hub.released import RELEASED

    from .models import clear_tensors, flux_model

    model = flux_model(hidden_size=64, axes_dim=[8, 12, 12])
    return {released.name: save(clear_tensors(model, factor=released.down_factor)) for released in RELEASED}


class LoopbackHub:
    """A running hub; a context manager. files: by name."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.requests: list[Request] = []
        self.token: str | None = None  # asked for by the hub
        self.hub_statuses: list[int] = []
        self.storage_statuses: list[int] = []
        self.cuts: list[int] = []  # bytes after which an answer of the storage breaks off
        self.extra_headers: dict[str, str] = {}  # with every error
        self.metadata: dict[str, str | None] = {}  # of the hub; None leaves a header out
        self.storage_headers: dict[str, str | None] = {}
        self.damage: bytes | None = None  # what the storage has instead of the file
        self.page_from_hub = self.page_from_storage = False
        self.ranges = True
        self.rate: float | None = None  # bytes a second
        self.hold_hub = False  # answer nothing until `go`
        self.hold_at: int | None = None  # stop at that byte of the file until `go`
        self.held, self.go = threading.Event(), threading.Event()
        self._hub, self._storage = (_Server(("127.0.0.1", 0), self._handler()) for _ in range(2))
        self.address = f"http://127.0.0.1:{self._hub.server_port}"
        self.storage_address = f"http://127.0.0.1:{self._storage.server_port}"

    def url(self, name: str) -> str:
        return f"{self.address}/{REPOSITORY}/resolve/{REVISION}/{name}"

    def ranges_asked(self) -> list[str | None]:
        """Of the storage, in order."""
        return [request.range for request in self.requests if request.to_storage]

    def __enter__(self) -> LoopbackHub:
        for server in (self._hub, self._storage):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go.set()
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._serve()

            def do_GET(self) -> None:
                self._serve()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                headers = self.headers
                request = Request(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
                try:
                    if "/api/" in self.path:  # the client's own errands
                        _send(self, 404, {})
                        return
                    hub.requests.append(request)
                    _answer_storage(hub, self, request) if request.to_storage else _answer_hub(hub, self, request)
                except OSError:  # the client has gone
                    self.close_connection = True

        return Handler


def _send(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str | None], body: bytes = b"") -> None:
    handler.send_response(status)
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name, value)
    if "Content-Length" not in headers:  # None: none
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def _answer_hub(hub: LoopbackHub, handler: BaseHTTPRequestHandler, request: Request) -> None:
    name = urlsplit(request.url).path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
    if hub.hold_hub:
        hub.held.set()
        hub.go.wait()
    if hub.page_from_hub:
        _send(handler, 200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
    elif hub.hub_statuses:
        _send(handler, hub.hub_statuses.pop(0), hub.extra_headers)
    elif hub.token is not None and request.token != f"Bearer {hub.token}":
        _send(handler, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    elif name not in hub.files:
        _send(handler, 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
    else:
        data = hub.files[name]
        digest = hashlib.sha256(data).hexdigest()
        metadata = {
            "X-Repo-Commit": "0123456789abcdef0123456789abcdef01234567",
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{digest}"',
            "ETag": '"0123456789abcdef0123456789abcdef01234567"',
            "Accept-Ranges": "bytes",
            "Location": f"{hub.storage_address}/storage/{digest}",
        }
        _send(handler, 302, metadata | hub.metadata)


def _answer_storage(hub: LoopbackHub, handler: BaseHTTPRequestHandler, request: Request) -> None:
    digest = urlsplit(request.url).path.rpartition("/")[2]
    data = next(data for data in hub.files.values() if hashlib.sha256(data).hexdigest() == digest)
    data = data if hub.damage is None else hub.damage
    if hub.page_from_storage:
        _send(handler, 200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
        return
    if hub.storage_statuses:
        _send(handler, hub.storage_statuses.pop(0), hub.extra_headers)
        return
    asked = re.fullmatch(r"bytes=(\d+)-", request.range or "") if hub.ranges else None
    start = int(asked[1]) if asked else 0
    headers: dict[str, str | None] = {"Content-Type": "application/octet-stream"}
    headers["Content-Length"] = str(len(data) - start)
    if asked:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    _send(handler, 206 if asked else 200, headers | hub.storage_headers)
    end = min(len(data), start + hub.cuts.pop(0)) if hub.cuts else len(data)
    for at in range(start, end, _BLOCK):
        block = data[at : min(at + _BLOCK, end)]
        if hub.hold_at is not None and at <= hub.hold_at < at + len(block) and not hub.go.is_set():
            handler.wfile.write(block[: hub.hold_at - at])
            hub.held.set()
            hub.go.wait()
            block = block[hub.hold_at - at :]
        handler.wfile.write(block)
        if hub.rate:
            time.sleep(len(block) / hub.rate)
    if end < len(data):
        handler.close_connection = True
