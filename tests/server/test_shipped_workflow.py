"""The workflows that ship: their two forms, what the page needs of them, and that they run."""

from __future__ import annotations

from typing import Any

import pytest

from devtools import workflow

FOLDERS = {
    "UNETLoader": ["diffusion_models"],
    "DualCLIPLoader": ["text_encoders", "text_encoders"],
    "CLIPLoader": ["text_encoders"],
    "VAELoader": ["vae"],
    "CLEARWeightsLoader": ["clear"],
    "LoraLoader": ["loras"],
    "LoraLoaderModelOnly": ["loras"],
    "CreateHookLora": ["loras"],
    "CreateHookLoraModelOnly": ["loras"],
    "ControlNetLoader": ["controlnet"],
    "StyleModelLoader": ["style_models"],
    "CLIPVisionLoader": ["clip_vision"],
}
"""A loader's folders below models, one for each file it names."""


def test_every_workflow(object_info: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name in workflow.NAMES:
        with subtests.test(name=name, check="both forms are the same workflow"):
            assert workflow.to_api(workflow.page_form(name), object_info) == workflow.server_form(name)
        with subtests.test(name=name, check="the page opens it without red nodes"):
            check_nodes_and_links(object_info, name)
        with subtests.test(name=name, check="the page can offer every missing model"):
            check_offered_models(name)
        with subtests.test(name=name, check="a note says what to load and what to expect"):
            check_note(name)


def check_nodes_and_links(object_info: dict[str, Any], name: str) -> None:
    """Every node type is known, and every link joins an output to an input of its type."""
    ui = workflow.page_form(name)
    nodes = {node["id"]: node for node in ui["nodes"]}
    types = {node["type"] for node in ui["nodes"]} - {"MarkdownNote"}
    assert types <= object_info.keys()
    assert types & {"CLEARApply", "CLEARHighRes", "CLEARDistill", "CLEARSweep"}
    for link_id, source, source_slot, target, target_slot, kind in ui["links"]:
        info = object_info[nodes[source]["type"]]
        inputs = object_info[nodes[target]["type"]]["input"]
        slot = nodes[target]["inputs"][target_slot]
        declared = {**inputs["required"], **inputs.get("optional", {})}[slot["name"]][0]
        assert info["output"][source_slot] == kind == declared
        assert slot["link"] == link_id
        assert link_id in nodes[source]["outputs"][source_slot]["links"]


def check_offered_models(name: str) -> None:
    """Each file a loader names comes with an address of the hub and a folder."""
    for node in workflow.page_form(name)["nodes"]:
        named = {v for v in node.get("widgets_values", []) if str(v).endswith(".safetensors")}
        models = node["properties"].get("models", [])
        offered = {model["name"]: model for model in models}
        assert named == offered.keys()
        assert [model["directory"] for model in models] == FOLDERS.get(node["type"], [])
        for file, model in offered.items():
            assert model["url"].startswith("https://huggingface.co/")
            assert "/resolve/" in model["url"]
            assert model["url"].endswith(f"/{file}")


def check_note(name: str) -> None:
    (note,) = [node for node in workflow.page_form(name)["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert text.startswith("## ")
    assert "**Expect" in text
    assert "**Files**" in text


def test_runs_end_to_end_twice(client: Any, demo_prompt: Any, picture: Any) -> None:
    """Loader nodes, CLEAR in every layer of every step, previews, VAE decode, PNG; then another seed."""
    pictures = []
    for seed in (1, 2):
        prompt = demo_prompt(width=144, height=128, steps=2, seed=seed)
        run = client.run(prompt)
        assert run.status == "success"
        sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")
        assert [step.value for step in run.steps_of(sampler)] == [1, 2]
        assert run.previews
        # 2 steps of 1 double and 1 single block
        node, text = run.texts[-1]
        assert node == workflow.node_id(prompt, "CLEARApply")
        assert "CLEAR ran: 4 layer calls" in text
        assert "\nfull attention: " not in text
        pictures.append(picture(run))
    for image in pictures:
        assert image.shape == (128, 144, 3)
        assert image.std() > 10
    assert abs(pictures[0].astype(int) - pictures[1]).mean() > 10
