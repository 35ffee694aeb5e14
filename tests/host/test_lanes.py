"""`devices`: what the text says, and what it comes to on machines with and without GPUs."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def lanes(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.options.lanes")


TWO_GPUS = ("cuda:0", "cuda:1", "cpu")


@pytest.mark.parametrize(
    ("text", "machine", "expected", "missing"),
    [
        ("auto", TWO_GPUS, [("cuda:0", None), ("cuda:1", None)], ()),
        ("", ("cuda:1", "cuda:0", "cpu"), [("cuda:1", None), ("cuda:0", None)], ()),
        ("auto", ("cpu", "cuda:0"), [("cpu", None)], ()),
        ("auto", ("xpu:0", "xpu:1", "cpu"), [("xpu:0", None)], ()),
        ("cuda=3, CPU", TWO_GPUS, [("cuda:0", 3.0), ("cpu", None)], ()),
        ("cuda:1,cuda:1", TWO_GPUS, [("cuda:1", None), ("cuda:1", None)], ()),
        ("cuda:7,cuda:1=0.5,xpu", TWO_GPUS, [("cuda:1", 0.5)], ("cuda:7", "xpu:0")),
        ("cuda:7", TWO_GPUS, [("cuda:0", None)], ("cuda:7",)),
        ("mps", ("mps:0", "cpu"), [("mps:0", None)], ()),
    ],
)
def test_lanes_of_a_machine(lanes: Any, text: str, machine: Any, expected: Any, missing: Any) -> None:
    found = lanes.resolve_lanes(lanes.parse_devices(text), machine)
    assert [(lane.name, lane.share) for lane in found.lanes] == expected
    assert found.missing == missing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "devices has 'gpu'; write auto, or names such as cuda:0,cuda:1"),
        ("auto,cpu", "devices has 'auto'"),
        ("cpu,", "devices has ''"),
        ("cpu=0", "devices has 'cpu=0'"),
        ("cuda:100", "devices has 'cuda:100'"),
        (",".join(["cpu"] * 257), "257 names; at most 256"),
        ("x" * 5000, "5,000 characters long"),
    ],
)
def test_what_names_no_device_is_refused(lanes: Any, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lanes.parse_devices(text)


def test_a_machine_is_listed_with_its_own_device_first(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = nodes_api.module("nodes.host.machine")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def names(home: str) -> list[str]:
        found = [machine.device_name(device) for device in machine.machine_devices(torch.device(home))]
        return [name for name in found if not name.startswith(("xpu", "mps"))]

    assert names("cuda:1") == ["cuda:1", "cuda:0", "cuda:2", "cpu"]
    assert names("cpu") == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    assert machine.device_name(torch.device("mps")) == "mps:0"
