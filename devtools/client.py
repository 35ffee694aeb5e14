"""A client for ComfyUI's HTTP and WebSocket API: what the page does, without the page."""

from __future__ import annotations

import io
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import websocket
from PIL import Image

Prompt = dict[str, Any]
Status = Literal["success", "interrupted"]

_PREVIEW, _TEXT = 1, 3


class ClientError(Exception):
    """The server refused a request, or a node failed; the text is the server's own, made readable.

    body: the server's answer as it came, for a refused request.
    """

    def __init__(self, text: str, body: str = "") -> None:
        super().__init__(text)
        self.body = body


@dataclass(frozen=True, slots=True)
class Step:
    """A node reported that `value` of `total` parts are done, at `when` (seconds, monotonic)."""

    node_id: str
    value: int
    total: int
    when: float


@dataclass(slots=True)
class Run:
    """What came of one prompt, in the order in which it came."""

    prompt_id: str
    status: Status = "success"
    started: bool = False
    steps: list[Step] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # (node id, progress text)
    previews: list[bytes] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)  # by node id, as in the history
    cached: list[str] = field(default_factory=list)
    sent: dict[str, list[Any]] = field(default_factory=dict)  # by type: a pack's messages to its page

    def steps_of(self, node_id: str) -> list[Step]:
        return [step for step in self.steps if step.node_id == node_id]

    def images(self) -> list[dict[str, str]]:
        """References to the images that were saved, for `ComfyClient.image`."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class ComfyClient:
    """A client of the server at `address` (http://host:port)."""

    def __init__(self, address: str, timeout: float = 300) -> None:
        self._address = address.rstrip("/")
        self._timeout = timeout
        self._id = uuid.uuid4().hex

    # ---- one request, one answer -----------------------------------------------------------------

    def get(self, path: str) -> bytes:
        return self._request(urllib.request.Request(self._address + path))

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self._address + path, data, headers))

    def object_info(self) -> dict[str, Any]:
        return self.get_json("/object_info")

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server remembers of a run; it writes that down a moment after the run's last message."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if entry := self.get_json(f"/history/{prompt_id}").get(prompt_id):
                return entry
            time.sleep(0.05)
        raise ClientError(f"the server knows nothing of prompt {prompt_id}")

    def image(self, reference: dict[str, str]) -> bytes:
        return self.get("/view?" + urllib.parse.urlencode(reference))

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def upload(self, name: str, data: bytes) -> str:
        """Put an image into the server's input folder; returns the name it got there."""
        border = uuid.uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{border}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        answer = self._request(urllib.request.Request(f"{self._address}/upload/image", body, headers))
        return json.loads(answer)["name"]

    def upload_picture(self, name: str, picture: Image.Image) -> str:
        """`upload` as a PNG."""
        data = io.BytesIO()
        picture.save(data, "PNG")
        return self.upload(name, data.getvalue())

    # ---- prompts -------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Prompt,
        on_event: Callable[[Run], None] | None = None,
        *,
        pnginfo: dict[str, Any] | None = None,
    ) -> Run:
        """Queue `prompt` (API format) and follow it to its end.

        pnginfo: what saved images carry beside the prompt, as the page sends the workflow.
        on_event is called with the run so far whenever a step or a text arrived; it may interrupt.
        Raises ClientError when the prompt is refused, a node fails, or the server is silent for too long.
        """
        socket = self._connect()
        try:
            run = Run(self.queue(prompt, pnginfo))
            while True:
                message = self._receive(socket)
                if isinstance(message, bytes):
                    # These do not say whose they are: before its start, of a prompt that is still running.
                    if run.started:
                        _read_binary(message, run)
                elif _read_text(json.loads(message), run):
                    break
                if on_event is not None:
                    on_event(run)
            return run
        finally:
            socket.close()

    def _connect(self) -> websocket.WebSocket:
        address = self._address.replace("http", "ws", 1)
        return websocket.create_connection(f"{address}/ws?clientId={self._id}", timeout=self._timeout)

    def queue(self, prompt: Prompt, pnginfo: dict[str, Any] | None = None) -> str:
        """Queue `prompt` and return its id. Raises ClientError, naming the node, when the server refuses it."""
        try:
            extra = {} if pnginfo is None else {"extra_data": {"extra_pnginfo": pnginfo}}
            answer = json.loads(self.post("/prompt", {"prompt": prompt, "client_id": self._id, **extra}))
        except ClientError as error:
            raise ClientError(_explain_refusal(error.body, prompt) or str(error)) from error
        if answer.get("node_errors"):
            # The server runs the valid part of a prompt; the errors of the rest must not get lost.
            raise ClientError(_explain_node_errors(answer["node_errors"], prompt))
        return answer["prompt_id"]

    def _receive(self, socket: websocket.WebSocket) -> str | bytes:
        try:
            return socket.recv()
        except websocket.WebSocketTimeoutException:
            raise ClientError(f"the server was silent for {self._timeout:.0f} s") from None
        except (websocket.WebSocketException, OSError) as error:
            raise ClientError(f"the server went away in the middle of a prompt: {error}") from error

    def _request(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            body = error.read().decode(errors="replace")
            raise ClientError(f"{request.full_url}: {error.code}: {body}", body) from error
        except (urllib.error.URLError, OSError) as error:
            raise ClientError(f"{request.full_url}: no answer ({error})") from error


def _read_binary(message: bytes, run: Run) -> None:
    (kind,) = struct.unpack_from(">I", message)
    if kind == _PREVIEW:
        run.previews.append(message[8:])
    elif kind == _TEXT:
        (length,) = struct.unpack_from(">I", message, 4)
        node_id, text = message[8 : 8 + length], message[8 + length :]
        # As the page shows it: a line of Markdown ends with two spaces.
        run.texts.append((node_id.decode(), text.decode(errors="replace").replace("  \n", "\n")))


def _read_text(message: dict[str, Any], run: Run) -> bool:
    """Take a message in; True when it was the last one of this run."""
    data = message.get("data", {})
    if "." in message["type"]:
        run.sent.setdefault(message["type"], []).append(data)
    if data.get("prompt_id") != run.prompt_id:
        return False
    match message["type"]:
        case "execution_start":
            run.started = True
        case "progress":
            run.steps.append(Step(str(data["node"]), data["value"], data["max"], time.monotonic()))
        case "execution_cached":
            run.cached = list(data["nodes"])
        case "executed":
            run.outputs[data["node"]] = data["output"] or {}
        case "execution_interrupted":
            run.status = "interrupted"
            return True
        case "execution_error":
            where = f"{data['node_type']} (node {data['node_id']})"
            raise ClientError(f"{where} failed: {data['exception_message'].strip()}")
        case "execution_success":
            return True
    return False


def _explain_refusal(body: str, prompt: Prompt) -> str:
    """The reasons in the server's answer to a prompt, a line each; "" where it gave none."""
    try:
        answer = json.loads(body)
        reasons = _explain_node_errors(answer.get("node_errors") or {}, prompt)
        return f"{answer['error']['message']}\n{reasons}".strip()
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""


def _explain_node_errors(errors: dict[str, Any], prompt: Prompt) -> str:
    lines = []
    for node_id, node in errors.items():
        name = prompt.get(node_id, {}).get("class_type", "?")
        for reason in node["errors"]:
            lines.append(f"{name} (node {node_id}): {reason['message']}: {reason['details']}")
    return "\n".join(lines)
