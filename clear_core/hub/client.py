"""Requests to the hub through its own client: huggingface_hub handles mirrors, tokens, proxies and offline mode.

Only the client's session and metadata are used, which all versions have. Its whole-file download leaves a cache beside
the file, cannot be cancelled while the network is silent, and from version 2 on no longer resumes.
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
    "the answer is not the hub's: a web page of the network (such as a login page of a hotel or company), a proxy or a "
    "mirror that leaves out size and SHA-256 answered instead. Open the address in a browser to see"
)


class Failure(Exception):
    """Why the download cannot continue, as a clause of a sentence."""


class TransientError(Failure):
    """A failure that a retry may solve. after: seconds to wait before it, where the hub says so."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it. size: bytes; sha256: in hexadecimal."""

    size: int
    sha256: str


def file_info(url: str) -> RemoteFile:
    """The hub's metadata of the file at `url`. Raises Failure; TransientError where a retry may help."""
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
    return RemoteFile(found.size, found.etag or "")


def stream(url: str, start: int, size: int, *, token: bool = True) -> Iterator[bytes]:
    """The bytes of a file of `size` bytes from `start` on, as they arrive. token: send the user's, if there is one.

    Raises Failure; TransientError where the connection broke or the hub is overloaded.
    """
    at = start
    with _explained(url), _get(url, start, token) as (answer, chunks):
        skip = _bytes_to_skip(answer, start, size)
        for chunk in chunks:
            kept = chunk[skip:]
            skip -= len(chunk) - len(kept)
            at += len(kept)
            if at > size:
                raise Failure(f"more than the {size:,} bytes arrived that the hub announced")
            if kept:
                yield kept
    if at < size:
        raise TransientError("the connection ended early")


@contextmanager
def _get(url: str, start: int, token: bool) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """The answer to a request for everything from `start` on, and its body."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    headers = build_hf_headers(token=None if token else False)
    headers["Accept-Encoding"] = "identity"  # offsets are those of the file, not of a packed one
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
    """Bytes of the body that are already here: none, or all before `start` where a server ignores ranges."""
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
        raise Failure(f"the server announced {length} bytes instead of the {size} of the hub")
    return start


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the client's errors into Failure and TransientError."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except Failure:
        raise
    except OfflineModeIsEnabled as error:
        raise Failure("the hub's client is in offline mode: unset HF_HUB_OFFLINE and restart ComfyUI") from error
    except Exception as error:  # of the client, of requests or of httpx, by version: no common class
        answer: Any = getattr(error, "response", None)
        if answer is not None:
            raise _refusal(answer.status_code, answer.headers) from error
        raise TransientError(
            f"the connection to {urlsplit(url).netloc} failed ({error or type(error).__name__}); look at the "
            "network, the proxy and HF_ENDPOINT"
        ) from error


def _refusal(status: int, headers: Mapping[str, str]) -> Failure:
    """The reason that an HTTP status stands for."""
    if status == 401:
        return Failure(
            "the hub requires a login (HTTP 401): set HF_TOKEN to a valid token, or remove one that has expired"
        )
    if status == 403:
        return Failure(
            "access is refused (HTTP 403): by the hub, if your token lacks the right to read, or by a proxy or firewall"
        )
    if status == 404:
        return Failure("there is no such file at the address (HTTP 404): a mirror may lack it, or it was moved")
    if status == 429:
        after = headers.get("retry-after", "")
        return TransientError(
            "the hub had too many requests from your address (HTTP 429): wait some minutes, or set HF_TOKEN, which "
            "raises the limit",
            float(after) if after.isdecimal() else 0.0,
        )
    if status >= 500:
        return TransientError(f"the hub or its storage failed (HTTP {status}): try again later")
    return Failure(f"the answer was HTTP {status}")
