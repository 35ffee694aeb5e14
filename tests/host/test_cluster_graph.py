"""Which graphs a worker runs: the part of a prompt that makes a model, and nothing that writes or reads elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from devtools import workflow


@pytest.fixture
def graphs(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.cluster.graph")


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
    assert pack["CLEARMultiGPU"].validate_inputs(machines=text) is not True


def test_addresses(nodes_api: Any) -> None:
    machines = nodes_api.module("nodes.options.machines")
    assert machines.parse_address("  ") is None
    assert str(machines.parse_address(" 10.0.0.1:8189 ")) == "10.0.0.1:8189"
    assert str(machines.parse_address("[fd00::1]:8189")) == "[fd00::1]:8189"
    assert machines.parse_address("[fd00::1]:8189").host == "fd00::1"
    everyone = machines.parse_address("10.0.0.1:8189 all")
    assert everyone.everyone and everyone == machines.parse_address("10.0.0.1:8189")
