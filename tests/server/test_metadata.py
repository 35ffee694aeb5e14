"""What saved images say about CLEAR, in a real server: read back from the PNG and compared with the node's own text."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page

from devtools import workflow
from devtools.client import ComfyClient, Run
from devtools.page import change_widgets, drop_png, open_workflow, shipped

WORKFLOW = {"nodes": [], "extra": {"of": "the page"}}


@pytest.fixture
def saved(client: ComfyClient) -> Callable[[Run], dict[str, Any]]:
    """The metadata of the one image that a run saved."""

    def read(run: Run) -> dict[str, Any]:
        (reference,) = run.images()
        with Image.open(io.BytesIO(client.image(reference))) as image:
            return {str(key): json.loads(text) for key, text in image.info.items()}

    return read


def pnginfo() -> dict[str, Any]:
    return {"workflow": WORKFLOW}


def said(prompt: Any, run: Run) -> list[str]:
    """The last text of Apply CLEAR Attention."""
    apply = workflow.node_id(prompt, "CLEARApply")
    return [text for node, text in run.texts if node == apply][-1].splitlines()


def counted(lines: list[str], kind: str) -> dict[str, int]:
    found = [re.fullmatch(rf"{kind}: (\d+) layer calls(?: by|,) (.*)", line) for line in lines]
    return {match[2]: int(match[1]) for match in found if match}


def test_the_record_is_what_the_node_says(
    client: ComfyClient, models: Path, demo_prompt: Any, saved: Callable[[Run], dict[str, Any]]
) -> None:
    prompt = demo_prompt(
        {"CLEARApply": {"down_factor": 2, "strength": 0.5, "ntk_factor": 10.0, "end_percent": 0.5}},
        width=192,
        height=128,
        steps=3,
        seed=701,
    )
    run = client.run(prompt, pnginfo=pnginfo())
    metadata = saved(run)
    assert metadata["workflow"] == WORKFLOW
    assert {node: saved["inputs"] for node, saved in metadata["prompt"].items()} == {
        node: sent["inputs"] for node, sent in prompt.items()
    }
    record = metadata["clear_attention"]
    project = (workflow.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{record["version"]}"' in project
    (ran,) = record["runs"]
    lines = said(prompt, run)
    window, full = counted(lines, "CLEAR ran"), counted(lines, "full attention")
    assert len(window) == len(full) == 1
    file = (models / "clear" / workflow.DEMO.clear).read_bytes()
    assert ran == {
        "node": workflow.node_id(prompt, "SamplerCustomAdvanced"),
        "weights": {"file": workflow.DEMO.clear, "sha256": hashlib.sha256(file).hexdigest()},
        "radius": workflow.DEMO.radius,
        "down_factor": 2,
        "strength": 0.5,
        "ntk_factor": 10.0,
        "proportional_attention": False,
        "references": "window",
        "blocks": "all",
        "start_percent": 0.0,
        "end_percent": 0.5,
        "backend": "auto",
        "window": window,
        "full_attention": full,
        "not_used": {},
        "full_attention_share": round(sum(full.values()) / (sum(full.values()) + sum(window.values())), 4),
        "bands": 1,
        "devices": ["cpu"],
        "width": 192,
        "height": 128,
        "batch": 1,
        "steps": 3,
    }


def test_bands_and_devices(client: ComfyClient, demo_prompt: Any, saved: Callable[[Run], dict[str, Any]]) -> None:
    prompt = demo_prompt(seed=702)
    apply = workflow.node_id(prompt, "CLEARApply")
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if value == [apply, 0]:
                node["inputs"][name] = ["bands", 0]
    inputs = {"model": [apply, 0], "devices": "cpu,cpu", "bands": 4, "text_merge": "exact"}
    prompt["bands"] = {"class_type": "CLEARMultiGPU", "inputs": inputs, "_meta": {"title": "Bands"}}
    run = client.run(prompt, pnginfo=pnginfo())
    (ran,) = saved(run)["clear_attention"]["runs"]
    assert (ran["bands"], ran["devices"]) == (4, ["cpu", "cpu"])
    assert all("in bands" in how for how in ran["window"])


def test_a_sampler_that_is_not_run_again_keeps_its_record(
    client: ComfyClient, demo_prompt: Any, saved: Callable[[Run], dict[str, Any]]
) -> None:
    first = client.run(demo_prompt(seed=703, prefix="first"))  # without a workflow: nothing to write into
    assert saved(first).keys() == {"prompt"}
    prompt = demo_prompt(seed=703, prefix="second")
    second = client.run(prompt, pnginfo=pnginfo())
    assert workflow.node_id(prompt, "SamplerCustomAdvanced") in second.cached
    (kept,) = saved(second)["clear_attention"]["runs"]
    other = client.run(demo_prompt({"CLEARApply": {"radius": 3}}, seed=703), pnginfo=pnginfo())
    (ran,) = saved(other)["clear_attention"]["runs"]
    assert (kept["radius"], ran["radius"]) == (workflow.DEMO.radius, 3)
    # The first once more: ComfyUI has forgotten its samples, and samples again.
    again = client.run(demo_prompt(seed=703, prefix="third"), pnginfo=pnginfo())
    assert saved(again)["clear_attention"]["runs"] == [kept]


def test_what_a_client_sends_back_is_not_taken_for_a_record(
    client: ComfyClient, demo_prompt: Any, saved: Callable[[Run], dict[str, Any]]
) -> None:
    prompt = workflow.without_clear(demo_prompt(seed=704))
    run = client.run(prompt, pnginfo={**pnginfo(), "clear_attention": {"runs": [{"radius": 99}]}})
    assert saved(run).keys() == {"prompt", "workflow"}


def test_an_image_that_is_dropped_opens_its_workflow(page: Page, client: ComfyClient) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    change_widgets(page, {**workflow.DEMO.changes(), **workflow.sampling(width=128, height=128, steps=1, seed=705)})
    shape = """() => app.graph.nodes.map((node) => [node.id, node.type, node.serialize().widgets_values])
        .sort((a, b) => a[0] - b[0])"""
    before = page.evaluate(shape)
    page.evaluate("() => app.queuePrompt(0)")  # which then draws another seed
    done = "() => Object.values(app.nodeOutputs).find((made) => made?.images?.[0]?.type === 'output')?.images[0]"
    reference = page.wait_for_function(done, timeout=180_000).json_value()
    data = client.image(reference)
    with Image.open(io.BytesIO(data)) as image:
        (ran,) = json.loads(image.info["clear_attention"])["runs"]
    assert (ran["steps"], ran["radius"]) == (1, workflow.DEMO.radius)
    page.evaluate("() => app.graph.clear()")
    drop_png(page, data)
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(before))
    assert page.evaluate(shape) == before
