"""The host's own executor in the test's process, with nodes that stand for loaders and one that keeps images."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from host.giving import giving

Prompt = dict[str, dict[str, Any]]
ENDS = ("execution_success", "execution_interrupted", "execution_error")
"""Events that end a prompt."""


def load_core_nodes(host: Any, names: Iterable[str]) -> None:
    """Files of the host's comfy_extras, without their ending."""
    for name in names:
        path = Path(host.__file__).parent / "comfy_extras" / f"{name}.py"
        assert asyncio.run(host.load_custom_node(str(path), module_parent="comfy_extras"))


def keeping(keep: Callable[[str, list[Tensor]], None]) -> type:
    """An output node that passes on the images it gets, one or a list, with a name."""

    class Keeping:
        INPUT_IS_LIST = True
        OUTPUT_NODE = True
        RETURN_TYPES = ()
        FUNCTION = "keep"
        CATEGORY = "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"images": ("IMAGE",), "name": ("STRING", {})}}

        def keep(self, images: list[Tensor], name: list[str]) -> dict[str, Any]:
            keep(name[0], images)
            return {}

    return Keeping


@dataclass
class Run:
    """What came of one prompt. ran: the nodes that were executed, by type, in order; those from the cache are not."""

    images: dict[str, list[Tensor]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    shown_on: list[str] = field(default_factory=list)  # the node on the page that each of them lights up
    steps: list[int] = field(default_factory=list)  # the samplers' progress, as it was reported
    bar: list[float] = field(default_factory=list)  # of the upscale's node, as the page draws it
    ended: str = ""


class Executor(ABC):
    """The host's executor, over the part of a server that it talks to. cache: a name of the host's `CacheType`."""

    client_id: str | None = None
    last_node_id: str | None = None

    def __init__(self, cache: str = "CLASSIC") -> None:
        import execution

        self._execution: Any = execution
        # Limits of caches that are not used here; hosts have different ones.
        limits: dict[str, float] = defaultdict(float)
        self._executor = self._execution.PromptExecutor(self, self._execution.CacheType[cache], limits)

    def execute(self, prompt: Prompt) -> tuple[Any, Any] | None:
        """Check a prompt and run it, as the host does; where it is refused, why, and each node's errors."""
        valid, problem, outputs, details = asyncio.run(self._execution.validate_prompt("test", prompt, None))
        if not valid:
            return problem, details
        self._executor.execute(prompt, "test", {"client_id": "test"}, outputs)
        return None

    @abstractmethod
    def send_sync(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        """What the server would tell the page."""


class Queue(Executor):
    """Runs prompts as the page queues them. In them, a node called Keep keeps the values that it gets.

    shown: what nodes gave to the page.
    """

    def __init__(self, **kinds: tuple[Any, ...]) -> None:
        """kinds: of Keep's inputs, by name, as the host's INPUT_TYPES has them."""
        super().__init__()
        self.kept: list[tuple[Any, ...]] = []
        self.shown: list[dict[str, Any]] = []
        self.ended = ""
        kept = self.kept

        class Keep:
            OUTPUT_NODE = True
            RETURN_TYPES = ()
            FUNCTION = "keep"
            CATEGORY = "tests"

            @classmethod
            def INPUT_TYPES(cls) -> dict[str, Any]:
                return {"required": kinds}

            def keep(self, **values: Any) -> dict[str, Any]:
                kept.append(tuple(values[name] for name in kinds))
                return {}

        self.keep = Keep

    def queue(self, prompt: Prompt) -> str:
        """Run a prompt; why it was refused or what it ended with."""
        refused = self.execute(deepcopy(prompt))  # the host writes into it
        if refused is not None:
            return "; ".join(error["details"] for node in refused[1].values() for error in node["errors"])
        return self.ended

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        if event == "executed":
            self.shown.append(data["output"])
        if event in ENDS:
            self.ended = data.get("exception_message", event)


class Machine(Executor):
    """An executor with models of its own."""

    def __init__(self, host: Any, given: Mapping[str, tuple[str, Any]], cache: str = "CLASSIC") -> None:
        """given: what stands for loaders, by the node's name: the kind of its output, and the value."""
        super().__init__(cache)
        self._host = host
        self._nodes = {
            **{name: giving(kind, value) for name, (kind, value) in given.items()},
            "Keep": keeping(lambda name, images: self._now.images.update({name: images})),
        }

    def run(self, prompt: Prompt, at_step: Callable[[int], None] = lambda steps: None) -> Run:
        """Check a prompt and run it, as the host does. at_step: called after each sampling step with their number."""
        import comfy.utils

        self._now, self._at_step = Run(), at_step
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(comfy.utils, "PROGRESS_BAR_HOOK", self._progress)
            for name, node in self._nodes.items():
                patched.setitem(self._host.NODE_CLASS_MAPPINGS, name, node)
            refused = self.execute(prompt)
            assert refused is None, refused
        return self._now

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        from comfy_execution.progress import get_progress_state

        if event == "executing":
            self._now.ran.append(get_progress_state().dynprompt.get_node(data["node"])["class_type"])
            self._now.shown_on.append(data["display_node"])
        if event == "progress_state":
            prompt = get_progress_state().dynprompt
            states = [state for state in data["nodes"].values() if state["state"] == "running"]
            of_node = [s for s in states if prompt.get_node(s["display_node_id"])["class_type"] == "CLEARHighRes"]
            if of_node:
                self._now.bar.append(min(state["value"] / state["max"] for state in of_node))
        if event in ENDS:
            self._now.ended = data.get("exception_message", event)

    def _progress(self, value: int, total: int, preview: Any, node_id: str | None = None) -> None:
        """What the host's `main.py` puts here: cancels, and tells the page."""
        import comfy.model_management
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        comfy.model_management.throw_exception_if_processing_interrupted()
        get_progress_state().update_progress(get_executing_context().node_id, value, total, preview)
        if self._now.ran[-1] == "CLEARTiledSampler":
            self._now.steps.append(value)
            self._at_step(len(self._now.steps))


class Graph(dict[str, dict[str, Any]]):
    """A prompt, node by node."""

    def add(self, kind: str, **values: Any) -> list[Any]:
        """A node; the link to its first output."""
        key = str(len(self) + 1)
        self[key] = {"class_type": kind, "inputs": values}
        return [key, 0]
