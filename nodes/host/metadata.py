"""What CLEAR did, in the metadata of the images that a prompt saves.

Nodes that save images write every entry of the prompt's `extra_pnginfo`, a dict that all nodes of the prompt share. The
server's handler sees this dict when the prompt is queued, a sampling run knows the id of its prompt, and so finds the
dict and adds the entry `KEY`. A prompt that brings no `extra_pnginfo` stays as it is: nodes of other packs read theirs.

ComfyUI does not sample again where nothing before a sampler has changed. For such a sampler the prompt takes over what
was recorded when an earlier prompt ran the same node with the same graph before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import comfy.cli_args
from comfy_execution.utils import get_executing_context

from ...clear_core.cache import BoundedCache
from ..compat import pack_version
from .server import running_server

KEY = "clear_attention"

Record = dict[str, Any]
"""One sampling run, ready for JSON; `run_record` documents it."""

_log = logging.getLogger("clear-attention")
_PROMPTS = 1000  # of which the latest are known; ComfyUI itself keeps 10,000 with their workflows
_RUNS = 200  # sampling nodes whose outputs ComfyUI may still have


@dataclass(slots=True, eq=False)
class _Prompt:
    """pnginfo: what its nodes save. signatures: of its nodes, by id. runs: by the id of the node that sampled."""

    pnginfo: dict[str, Any]
    signatures: dict[str, str]
    runs: dict[str, list[Record]] = field(default_factory=dict)
    sampled: set[str] = field(default_factory=set)  # nodes that have run in this prompt

    def write(self) -> None:
        runs = [run for node in self.runs.values() for run in node]
        if runs:
            self.pnginfo[KEY] = {"version": _version(), "runs": runs}


class PromptRecords:
    """The records of the prompts of one server."""

    def __init__(self) -> None:
        self._prompts: BoundedCache[str, _Prompt] = BoundedCache(_PROMPTS)
        self._earlier: BoundedCache[str, dict[str, list[Record]]] = BoundedCache(_RUNS)  # by signature, then as in runs

    def queued(self, request: dict[str, Any]) -> dict[str, Any]:
        """The server's handler of a prompt that is about to be queued; returns the same request."""
        try:
            self._remember(request)
        except Exception:  # whatever a client may have sent: not for this pack to refuse
            _log.debug("CLEAR: no metadata for this prompt", exc_info=True)
        return request

    def add(self, record: Record) -> None:
        """A sampling run of the prompt that is executing has finished."""
        prompt_id, node = _executing()
        prompt = self._known(prompt_id)
        if prompt is None:
            return
        if node not in prompt.sampled:
            prompt.sampled.add(node)
            prompt.runs[node] = []
        prompt.runs[node].append({"node": node, **record})
        owner = node.partition(".")[0]  # 20.0.0.5 is a node that node 20 has expanded into
        if signature := prompt.signatures.get(owner):
            self._earlier.get(signature, dict)[node] = list(prompt.runs[node])
        prompt.write()

    def _remember(self, request: dict[str, Any]) -> None:
        graph, pnginfo = request.get("prompt"), (request.get("extra_data") or {}).get("extra_pnginfo")
        if not isinstance(graph, dict) or comfy.cli_args.args.disable_metadata:
            return
        if not isinstance(pnginfo, dict):
            pnginfo = {}  # that nobody saves; but a later prompt may take its runs over
        pnginfo.pop(KEY, None)  # of another image, sent back by a client
        if not any(str(node.get("class_type")).startswith("CLEAR") for node in graph.values()):
            return
        # The host takes the id from the request where there is one.
        prompt_id = str(request.setdefault("prompt_id", str(uuid.uuid4())))
        prompt = _Prompt(pnginfo, _signatures(graph))
        for signature in prompt.signatures.values():
            for node, runs in self._recorded(signature).items():
                prompt.runs[node] = list(runs)
        prompt.write()
        self._prompts.get(prompt_id, lambda: prompt)

    def _known(self, prompt_id: str) -> _Prompt | None:
        try:
            return self._prompts.get(prompt_id, _nothing)
        except KeyError:
            return None

    def _recorded(self, signature: str) -> dict[str, list[Record]]:
        try:
            return self._earlier.get(signature, _nothing)
        except KeyError:
            return {}


def _nothing() -> Any:
    raise KeyError


def _executing() -> tuple[str, str]:
    """The ids of the prompt and the node that are executing; "" where that is not known."""
    context = get_executing_context()
    if context is not None:
        return str(context.prompt_id), str(context.node_id)
    server = running_server()  # a pack that samples in a thread of its own
    return str(getattr(server, "last_prompt_id", "")), str(getattr(server, "last_node_id", ""))


def _signatures(graph: dict[str, Any]) -> dict[str, str]:
    """By node: a digest of its id and of everything before it. Raises for a graph that is none."""
    made: dict[str, str] = {}

    def sign(node: str) -> str:
        if node not in made:
            inputs = {name: link(value) for name, value in graph[node].get("inputs", {}).items()}
            text = json.dumps([node, graph[node].get("class_type"), inputs], sort_keys=True)
            made[node] = hashlib.sha256(text.encode()).hexdigest()
        return made[node]

    def link(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2 and value[0] in graph
        return [sign(value[0]), value[1]] if is_link else value

    for node in graph:
        sign(node)  # a circle ends in a RecursionError
    return made


@cache
def _version() -> str:
    return pack_version()


RECORDS: Final = PromptRecords()
"""Of this process's server."""


def add_prompt_handler() -> None:
    """See every prompt before it is queued, if there is a server."""
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(RECORDS.queued)
