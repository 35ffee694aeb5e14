"""What a prompt's images will say about CLEAR: which requests are listened to, and what is taken over from earlier."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

GRAPH = {
    "1": {"class_type": "CLEARApply", "inputs": {"radius": 8}},
    "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 1}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "a"}},
}


@pytest.fixture
def metadata(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.metadata")


@pytest.fixture
def records(metadata: Any) -> Any:
    return metadata.PromptRecords()


def request(graph: Any = GRAPH, **changes: Any) -> dict[str, Any]:
    return {"prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": {}}}, **changes}


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    return {**GRAPH, node: {**GRAPH[node], "inputs": {**GRAPH[node]["inputs"], **inputs}}}


def runs_of(sent: dict[str, Any]) -> list[Any] | None:
    found = sent["extra_data"]["extra_pnginfo"].get("clear_attention")
    return found and found["runs"]


class Host:
    """Says which node of which prompt is executing."""

    def __init__(self, records: Any, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self._records, self._monkeypatch, self._module = records, monkeypatch, module

    def sample(self, sent: dict[str, Any], node: str, **record: Any) -> None:
        context = SimpleNamespace(prompt_id=sent.get("prompt_id", "unknown"), node_id=node)
        self._monkeypatch.setattr(self._module, "get_executing_context", lambda: context)
        self._records.add(record)


@pytest.fixture
def host_of(records: Any, monkeypatch: pytest.MonkeyPatch, metadata: Any) -> Host:
    return Host(records, monkeypatch, metadata)


def test_a_run_writes_into_its_own_prompt(records: Any, host_of: Host) -> None:
    first, second = records.queued(request(prompt_id="mine")), records.queued(request(changed("2", seed=2)))
    assert first["prompt_id"] == "mine"
    host_of.sample(second, "2", radius=9)
    assert runs_of(first) is None
    assert runs_of(second) == [{"node": "2", "radius": 9}]


def test_stages_are_a_list_in_their_order(records: Any, host_of: Host) -> None:
    sent = records.queued(request())
    for node in ("2.0.0.5", "2.0.0.9", "2.0.0.9"):
        host_of.sample(sent, node, radius=8)
    assert [run["node"] for run in runs_of(sent) or ()] == ["2.0.0.5", "2.0.0.9", "2.0.0.9"]


def test_the_same_graph_before_a_sampler_has_the_same_record(records: Any, host_of: Host) -> None:
    host_of.sample(records.queued(request()), "2", radius=8)
    assert runs_of(records.queued(request(changed("3", filename_prefix="b")))) == [{"node": "2", "radius": 8}]
    for other in (changed("2", seed=2), changed("1", radius=9), {f"1{node}": GRAPH[node] for node in GRAPH}):
        assert runs_of(records.queued(request(other))) is None


def test_what_runs_again_replaces_what_was_taken_over(records: Any, host_of: Host) -> None:
    first = records.queued(request())
    for node in ("2.0.0.5", "2.0.0.9"):
        host_of.sample(first, node, radius=8)
    second = records.queued(request())
    host_of.sample(second, "2.0.0.9", radius=7)
    assert [(run["node"], run["radius"]) for run in runs_of(second) or ()] == [("2.0.0.5", 8), ("2.0.0.9", 7)]
    assert [run["radius"] for run in runs_of(first) or ()] == [8, 8]


def test_a_prompt_without_clear_is_left_alone(records: Any) -> None:
    sent = {"prompt": {"1": {"class_type": "KSampler", "inputs": {}}}, "extra_data": {"extra_pnginfo": {"a": 1}}}
    before = {**sent}
    assert records.queued(sent) == before


def test_nothing_is_given_to_a_prompt_that_brings_no_place_for_it(records: Any, host_of: Host) -> None:
    sent = records.queued({"prompt": GRAPH})
    host_of.sample(sent, "2", radius=8)
    assert sent.keys() == {"prompt", "prompt_id"}


def test_metadata_can_be_disabled(records: Any, host_of: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.cli_args

    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    sent = records.queued(request())
    host_of.sample(sent, "2", radius=8)
    assert sent == request()


CIRCLE = {"1": {"class_type": "CLEARApply", "inputs": {"model": ["1", 0]}}}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"prompt": None},
        {"prompt": [1, 2]},
        {"prompt": {"1": None}, "extra_data": {"extra_pnginfo": {}}},
        {"prompt": {"1": {"class_type": "CLEARApply", "inputs": 3}}, "extra_data": {"extra_pnginfo": {}}},
        {"prompt": GRAPH, "extra_data": "none"},
        {"prompt": GRAPH, "extra_data": {"extra_pnginfo": [1]}},
        {"prompt": CIRCLE, "extra_data": {"extra_pnginfo": {}}},
    ],
)
def test_what_is_no_prompt_passes(records: Any, sent: Any) -> None:
    assert records.queued(sent) is sent


def test_a_run_of_no_known_prompt_is_none(records: Any, host_of: Host) -> None:
    host_of.sample({"prompt_id": "somebody's"}, "2", radius=8)


def test_the_number_of_prompts_is_bounded(records: Any, metadata: Any, host_of: Host) -> None:
    first = records.queued(request())
    for seed in range(metadata._PROMPTS):
        records.queued(request(changed("2", seed=seed + 10)))
    host_of.sample(first, "2", radius=8)
    assert runs_of(first) is None
