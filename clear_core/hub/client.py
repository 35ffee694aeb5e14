"""What is said to the hub, through its own client: huggingface_hub knows mirrors, tokens, proxies and offline mode.

Its whole-file download is not used: it leaves a cache beside the file, cannot be cancelled while the network is silent,
and from version 2 on no longer resumes. Its session and its metadata are, which all versions have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

_NOT_THE_HUB = (
    "the answer is not the hub's: a web page of the network (a log-in page of a hotel or company, say), a proxy or a "
    "mirror that leaves out size and SHA-256 answered in its place. Open the address in a browser to see"
)


class Failure(Exception):
    """Why it cannot go on, as a clause of a sentence."""


class Unsteady(Failure):
    """What may pass by itself. after: seconds to wait before asking again, where the hub says so."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


@dataclass(frozen=True, slots=True)
class Promise:
    """What the hub says of a file. size: bytes; sha256: in hexadecimal."""

    size: int
    sha256: str


def ask(url: str) -> Promise:
    """The hub's metadata of the file at `url`. Raises Failure, Unsteady where asking again may help."""
    try:
        from huggingface_hub import constants, get_hf_file_metadata
    except ImportError as error:
        raise Failure(
            f"the Python package huggingface_hub cannot be used ({error}): run pip install -r requirements.txt in this "
            "pack's folder, with ComfyUI's own Python"
        ) from error
    with _explained(url):
        found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not found.size or found.size < 0 or not _SHA256.fullmatch(found.etag or ""):
        raise Failure(_NOT_THE_HUB)
    return Promise(found.size, found.etag or "")


def pieces(url: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes from `start` on of a file of `size` bytes, as they come in.

    Raises Failure; Unsteady where the connection broke or the hub has no time now, and going on later may help.
    """
    at = start
    with _explained(url), _get(url, start) as (answer, chunks):
        skip = _bytes_to_skip(answer, start, size)
        for chunk in chunks:
            kept = chunk[skip:]
            skip -= len(chunk) - len(kept)
            at += len(kept)
            if at > size:
                raise Failure(f"more than the {size:,} bytes came that the hub promised")
            if kept:
                yield kept
    if at < size:
        raise Unsteady("the connection ended early")


@contextmanager
def _get(url: str, start: int) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """The answer to a request for everything from `start` on, and its body."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # offsets are those of the file, not of a packed one
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx, from version 1 of the client on
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
            yield answer, answer.iter_bytes()
    else:  # requests
        with session.get(url, headers=headers, timeout=timeout, stream=True) as answer:
            yield answer, answer.iter_content(_CHUNK)


def _bytes_to_skip(answer: Any, start: int, size: int) -> int:
    """How much of a body is already here: nothing, or all before `start` where a server knows no ranges."""
    status, headers = answer.status_code, answer.headers
    if status not in (200, 206):
        raise _refusal(status, headers)
    if headers.get("content-type", "").startswith("text/html"):
        raise Failure(_NOT_THE_HUB)
    if status == 206:
        found = _RANGE.fullmatch(headers.get("content-range", ""))
        if not found or int(found[1]) != start or found[2] not in ("*", str(size)):
            raise Failure(
                f"the server was asked for bytes {start} to {size - 1} of {size} and answered with "
                f"{headers.get('content-range', 'others')!r}"
            )
        return 0
    length = headers.get("content-length")
    if length is not None and length != str(size):
        raise Failure(f"{length} bytes were about to come instead of the {size} that the hub promised")
    return start


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns the client's errors into Failure and Unsteady."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except Failure:
        raise
    except OfflineModeIsEnabled as error:
        raise Failure("the hub's client is in offline mode: unset HF_HUB_OFFLINE and restart ComfyUI") from error
    except Exception as error:  # of the client, of requests or of httpx, by its version: they have no class in common
        answer: Any = getattr(error, "response", None)
        if answer is not None:
            raise _refusal(answer.status_code, answer.headers) from error
        raise Unsteady(
            f"the connection to {urlsplit(url).netloc} failed ({error or type(error).__name__}); look at the "
            "network, the proxy and HF_ENDPOINT"
        ) from error


def _refusal(status: int, headers: Mapping[str, str]) -> Failure:
    """An HTTP status as the reason it stands for."""
    if status == 401:
        return Failure(
            "the hub asks for a log-in (HTTP 401): set HF_TOKEN to a valid token, or remove one that has expired"
        )
    if status == 403:
        return Failure(
            "access is refused (HTTP 403): by the hub, if your token lacks the right to read, or by a proxy or firewall"
        )
    if status == 404:
        return Failure("there is no such file at the address (HTTP 404): a mirror may lack it, or it was moved")
    if status == 429:
        after = headers.get("retry-after", "")
        return Unsteady(
            "the hub had too many requests from your address (HTTP 429): wait some minutes, or set HF_TOKEN, which "
            "raises the limit",
            float(after) if after.isdecimal() else 0.0,
        )
    if status >= 500:
        return Unsteady(f"the hub or its storage has a fault (HTTP {status}): try again later")
    return Failure(f"the answer was HTTP {status}")
