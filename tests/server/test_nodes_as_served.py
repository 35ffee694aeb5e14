"""What the server tells the page about the pack: nodes, templates, refusals, uploads."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image

from devtools import workflow
from devtools.client import ClientError
from devtools.server import PACK_FOLDER

# Saved workflows store widget values by position: this list may grow at its end and never change otherwise.
APPLY = {
    "model": ("MODEL", None),
    "weights": ("CLEAR_WEIGHTS", None),
    "radius": ("INT", 0),
    "down_factor": ("INT", 0),
    "strength": ("FLOAT", 1.0),
    "backend": ("COMBO", "auto"),
    "ntk_factor": ("FLOAT", 0.0),
    "proportional_attention": ("BOOLEAN", False),
    "start_percent": ("FLOAT", 0.0),
    "end_percent": ("FLOAT", 1.0),
    "references": ("COMBO", "window"),
    "blocks": ("STRING", "all"),
}
LIMITS = {
    "radius": (0, 128),
    "down_factor": (0, 8),
    "strength": (0, 1),
    "ntk_factor": (0, 100),
    "start_percent": (0, 1),
    "end_percent": (0, 1),
}


def declared(object_info: dict[str, Any], node: str) -> dict[str, Any]:
    groups = object_info[node]["input"]
    return {**groups.get("required", {}), **groups.get("optional", {})}


def test_apply_node(object_info: dict[str, Any]) -> None:
    info = object_info["CLEARApply"]
    inputs = declared(object_info, "CLEARApply")
    assert info["display_name"] == "Apply CLEAR Attention"
    assert info["output"] == ["MODEL"]
    assert inputs.keys() == APPLY.keys()
    for name, (kind, default) in APPLY.items():
        assert inputs[name][0] == kind
        assert inputs[name][1].get("default") == default
        assert inputs[name][1]["tooltip"]
    for name, (low, high) in LIMITS.items():
        assert (inputs[name][1]["min"], inputs[name][1]["max"]) == (low, high)
    assert set(info["input"]["optional"]) == {"weights", "references", "blocks"}
    assert inputs["backend"][1]["options"][0] == "auto"
    assert {"sdpa", "reference"} <= set(inputs["backend"][1]["options"])
    assert inputs["references"][1]["options"] == ["window", "all tokens"]


def test_widgets_keep_their_positions(object_info: dict[str, Any]) -> None:
    order = [name for name, (kind, _) in APPLY.items() if kind not in ("MODEL", "CLEAR_WEIGHTS")]
    assert list(workflow.widget_names("CLEARApply", object_info))[: len(order)] == order


def test_widgets_of_training_keep_their_positions(object_info: dict[str, Any]) -> None:
    """Their seeds have no control beside them, which would be saved too."""
    orders = {
        "CLEARTrainingSet": "name source folder prompts width height steps seed",
        "CLEARDistill": "radius down_factor method output rank steps batch learning_rate optimizer seed name "
        "save_every resume cooldown timestep_shift flow_weight output_weight attention_weight "
        "micro_batch layers",
    }
    for node, order in orders.items():
        names = order.split()
        assert list(workflow.widget_names(node, object_info))[: len(names)] == names


def test_widgets_of_bands_keep_their_positions(object_info: dict[str, Any]) -> None:
    names = ["devices", "bands", "text_merge", "machines"]
    for node in ("CLEARMultiGPU", "CLEARTiledSampler"):
        assert list(workflow.widget_names(node, object_info))[: len(names)] == names
        assert object_info[node]["input"]["optional"].keys() == {"machines"}
        assert object_info[node]["input"]["optional"]["machines"][1]["default"] == ""
    assert list(workflow.widget_names("CLEARHighRes", object_info))[-2:] == ["save_stages", "machines"]


def test_loader_node(object_info: dict[str, Any]) -> None:
    info = object_info["CLEARWeightsLoader"]
    inputs = declared(object_info, "CLEARWeightsLoader")
    assert info["display_name"] == "Load CLEAR Weights"
    assert info["output"] == ["CLEAR_WEIGHTS"]
    assert list(inputs) == ["weights_name", "download"]
    assert {workflow.DEMO.clear, workflow.SHIPPED.clear} <= set(inputs["weights_name"][1]["options"])
    assert set(info["input"]["optional"]) == {"download"}
    assert inputs["download"][1]["options"] == ["when missing", "never"]
    assert inputs["download"][1]["default"] == "when missing"


def test_template_browser_lists_and_serves_the_workflows(client: Any) -> None:
    assert sorted(client.get_json("/workflow_templates")[PACK_FOLDER]) == list(workflow.NAMES)
    for name in workflow.NAMES:
        served = client.get(f"/api/workflow_templates/{PACK_FOLDER}/{name}.json")
        assert json.loads(served) == workflow.page_form(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CLEARApply": {"start_percent": 0.8, "end_percent": 0.2}}, ("start_percent", "0.8", "end_percent", "0.2")),
        ({"CLEARApply": {"radius": 129}}, ("radius", "129", "128")),
    ],
)
def test_impossible_inputs_are_refused_when_queued(
    client: Any, demo_prompt: Any, change: workflow.Changes, words: tuple[str, ...]
) -> None:
    with pytest.raises(ClientError) as refusal:
        client.run(demo_prompt(change))
    for word in words:
        assert word in str(refusal.value)


def test_absent_weights_file_is_named(client: Any, demo_prompt: Any) -> None:
    refused = r"CLEARWeightsLoader.*Put clear_local_16.safetensors.*into .*clear and reload the page"
    with pytest.raises(ClientError, match=refused):
        client.queue(demo_prompt({"CLEARWeightsLoader": {"weights_name": "nowhere.safetensors"}}))


def test_failing_node_says_what_to_do(client: Any, demo_prompt: Any) -> None:
    """An error in the middle of a prompt names the node, the value and the fix."""
    prompt = demo_prompt()
    prompt[workflow.node_id(prompt, "CLEARApply")]["inputs"].pop("weights")
    prompt.pop(workflow.node_id(prompt, "CLEARWeightsLoader"))
    with pytest.raises(ClientError, match=r"CLEARApply \(node 5\).*radius is 0.*no weights"):
        client.run(prompt)


def test_uploaded_image_comes_back(client: Any) -> None:
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(data, "PNG")
    name = client.upload("small.png", data.getvalue())
    assert client.image({"filename": name, "type": "input"}) == data.getvalue()


def test_a_node_added_again_shows_its_own_text(client: Any, demo_prompt: Any) -> None:
    """Deleted and added again with the same settings: ComfyUI could give it what the old one gave out."""
    prompt = demo_prompt()
    client.run(prompt)
    old = workflow.node_id(prompt, "CLEARApply")
    anew = json.loads(json.dumps(prompt).replace(f'["{old}", 0]', '["anew", 0]'))
    anew["anew"] = anew.pop(old)
    run = client.run(anew)
    assert "\nCLEAR ran: " in [text for node, text in run.texts if node == "anew"][-1]
    assert old not in {node for node, _ in run.texts}
