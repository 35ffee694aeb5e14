"""Which graphs a worker runs: the part of a prompt that makes a model, and nothing that writes or reads elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from devtools import workflow

from host.executing import load_core_nodes


@pytest.fixture
def graphs(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.cluster.graph")


@pytest.fixture
def classes(host: Any) -> dict[str, Any]:
    """Of the host, with its guiders."""
    load_core_nodes(host, ("nodes_custom_sampler",))
    return host.NODE_CLASS_MAPPINGS


class Prompt:
    """Of the host's executor, as far as a node sees it."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self._nodes = nodes

    def get_node(self, number: str) -> Any:
        return self._nodes[number]


def test_the_models_part_of_a_shipped_workflow(graphs: Any, pack: dict[str, Any]) -> None:
    prompt = workflow.server_form("03_prompt_to_2k")
    end = workflow.node_id(prompt, "ModelSamplingFlux")
    graph, node, output = graphs.model_graph(Prompt(prompt), end, "model")
    kinds = {each["class_type"] for each in graph.values()}
    assert kinds == {"CLEARApply", "CLEARWeightsLoader", "UNETLoader"}
    assert (graph[node]["class_type"], output) == ("CLEARApply", 0)
    assert graphs.refusal(graph, pack) == ""
    with pytest.raises(ValueError, match="max_shift is not linked: connect a model"):
        graphs.model_graph(Prompt(prompt), end, "max_shift")


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("BasicGuider", {"conditioning": ["4", 0]}),
        ("CFGGuider", {"positive": ["4", 0], "negative": ["4", 0], "cfg": 2.0}),
        ("DualCFGGuider", {"cond1": ["4", 0], "cond2": ["4", 0], "negative": ["4", 0], "cfg_conds": 2.0}),
    ],
)
def test_the_model_of_a_guider(graphs: Any, classes: dict[str, Any], kind: str, inputs: dict[str, Any]) -> None:
    prompt = {
        "guider": {"class_type": kind, "inputs": {**inputs, "model": ["cut", 1]}},
        "sampler": {"class_type": "CLEARTiledSampler", "inputs": {"guider": ["guider", 0], "machines": "host:1"}},
    }
    assert graphs.guided_model(Prompt(prompt), "sampler", "guider", classes) == ("guider", "model")


class _Two:
    """A guider of another pack, of two models; the second may be left out."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"strong": ("MODEL",), "cfg": ("FLOAT", {})}, "optional": {"weak": ("MODEL", {})}}


@pytest.mark.parametrize(
    ("inputs", "takes"), [({"strong": ["1", 0], "weak": ["2", 0]}, "strong, weak"), ({"cfg": ["3", 0]}, "none")]
)
def test_a_guider_of_no_model_or_several_is_named(graphs: Any, inputs: dict[str, Any], takes: str) -> None:
    prompt = Prompt(
        {
            "7": {"class_type": "TwoModels", "inputs": inputs},
            "sampler": {"class_type": "CLEARTiledSampler", "inputs": {"guider": ["7", 0], "sampler": None}},
        }
    )
    words = rf"node 7 \(TwoModels\) takes {takes}: put CLEAR Multi-GPU in front of the guider"
    with pytest.raises(ValueError, match=words):
        graphs.guided_model(prompt, "sampler", "guider", {"TwoModels": _Two})
    with pytest.raises(ValueError, match="sampler is not linked: connect a guider"):
        graphs.guided_model(prompt, "sampler", "sampler", {"TwoModels": _Two})


def test_a_guider_whose_second_model_is_left_out(graphs: Any) -> None:
    prompt = {
        "7": {"class_type": "TwoModels", "inputs": {"strong": ["1", 0], "cfg": ["3", 0]}},
        "sampler": {"class_type": "CLEARTiledSampler", "inputs": {"guider": ["7", 0]}},
    }
    assert graphs.guided_model(Prompt(prompt), "sampler", "guider", {"TwoModels": _Two}) == ("7", "strong")


def test_a_worker_drives_nobody(graphs: Any) -> None:
    """CLEAR Multi-GPU with machines before the sampler with machines, their address by a link."""
    prompt = {
        "where": {"class_type": "PrimitiveString", "inputs": {"value": "10.0.0.1:8189"}},
        "cut": {"class_type": "CLEARMultiGPU", "inputs": {"model": ["load", 0], "bands": 2, "machines": ["where", 0]}},
        "load": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux"}},
        "guider": {"class_type": "BasicGuider", "inputs": {"model": ["cut", 0]}},
    }
    graph, node, _ = graphs.model_graph(Prompt(prompt), "guider", "model")
    assert graph[node]["inputs"] == {"model": ["load", 0], "bands": 2, "machines": ""}
    assert graph.keys() == {"cut", "load"}
    assert prompt["cut"]["inputs"]["machines"] == ["where", 0]


@pytest.mark.parametrize(
    ("kind", "inputs", "reason"),
    [
        ("SaveImage", {"filename_prefix": "x"}, r"node 1 \(SaveImage\) writes files or shows results"),
        ("LoadImage", {"image": "photo.png"}, "reads the file 'photo.png' of the input folder"),
        ("UNETLoader", {"unet_name": "../../secret"}, "reads '../../secret': a worker reads nothing outside"),
        ("UNETLoader", {"unet_name": "/etc/passwd"}, "reads '/etc/passwd'"),
        ("UNETLoader", {"unet_name": "C:\\secret"}, "reads 'C:.*secret'"),
        ("NoSuchNode", {}, r"node 1 \(NoSuchNode\) is not installed there"),
        ("LoraLoaderModelOnly", {"model": ["9", 0]}, "takes model from a node that is not part of the graph"),
    ],
)
def test_what_a_worker_does_not_run(
    graphs: Any, pack: dict[str, Any], kind: str, inputs: dict[str, Any], reason: str
) -> None:
    assert re.search(reason, graphs.refusal({"1": {"class_type": kind, "inputs": inputs}}, pack))


@pytest.mark.parametrize("text", ["192.168.1.10", "host:0", "host:70000", "a b:80", "http://host:80", ":80"])
def test_an_address_that_is_none_says_what_is_allowed(nodes_api: Any, pack: dict[str, Any], text: str) -> None:
    machines = nodes_api.module("nodes.options.machines")
    with pytest.raises(ValueError, match=r"machines is '.*'; write the address and port of this machine"):
        machines.parse_address(text)
    for kind in ("CLEARMultiGPU", "CLEARTiledSampler"):
        assert pack[kind].validate_inputs(machines=text) is not True


def test_addresses(nodes_api: Any) -> None:
    machines = nodes_api.module("nodes.options.machines")
    assert machines.parse_address("  ") is None
    assert str(machines.parse_address(" 10.0.0.1:8189 ")) == "10.0.0.1:8189"
    assert str(machines.parse_address("[fd00::1]:8189")) == "[fd00::1]:8189"
    assert machines.parse_address("[fd00::1]:8189").host == "fd00::1"
    everyone = machines.parse_address("10.0.0.1:8189 all")
    assert everyone.everyone and everyone == machines.parse_address("10.0.0.1:8189")
