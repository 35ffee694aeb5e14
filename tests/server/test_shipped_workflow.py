"""The workflow that ships: its two forms, what the page needs of it, and that it runs."""

from __future__ import annotations

from typing import Any

from harness import workflow

PACK_NODES = ("CLEARWeightsLoader", "CLEARApply")


def test_both_forms_are_the_same_workflow(object_info: dict[str, Any]) -> None:
    assert workflow.to_api(workflow.load(workflow.UI_FILE), object_info) == workflow.load(workflow.API_FILE)


def test_page_opens_it_without_red_nodes(object_info: dict[str, Any]) -> None:
    """Every node type is known, and every link joins an output to an input of its type."""
    ui = workflow.load(workflow.UI_FILE)
    nodes = {node["id"]: node for node in ui["nodes"]}
    types = {node["type"] for node in ui["nodes"]} - {"MarkdownNote"}
    assert types <= object_info.keys()
    assert set(PACK_NODES) <= types
    for link_id, source, source_slot, target, target_slot, kind in ui["links"]:
        info = object_info[nodes[source]["type"]]
        inputs = object_info[nodes[target]["type"]]["input"]
        slot = nodes[target]["inputs"][target_slot]
        declared = {**inputs["required"], **inputs.get("optional", {})}[slot["name"]][0]
        assert info["output"][source_slot] == kind == declared
        assert slot["link"] == link_id
        assert link_id in nodes[source]["outputs"][source_slot]["links"]


def test_page_can_offer_every_missing_model() -> None:
    """Each file a loader names comes with an address of the hub and a folder."""
    for node in workflow.load(workflow.UI_FILE)["nodes"]:
        named = {v for v in node.get("widgets_values", []) if str(v).endswith(".safetensors")}
        offered = {model["name"]: model for model in node["properties"].get("models", [])}
        assert named == offered.keys()
        for name, model in offered.items():
            assert model["url"].startswith("https://huggingface.co/")
            assert "/resolve/" in model["url"]
            assert model["url"].endswith(f"/{name}")
    assert [path.split("/")[0] for path in workflow.SHIPPED.paths()] == [
        model["directory"]
        for kind in ("UNETLoader", "DualCLIPLoader", "VAELoader", "CLEARWeightsLoader")
        for node in workflow.load(workflow.UI_FILE)["nodes"]
        if node["type"] == kind
        for model in node["properties"]["models"]
    ]


def test_runs_end_to_end_twice(client: Any, demo_prompt: Any, picture: Any) -> None:
    """Loader nodes, CLEAR in every layer of every step, previews, VAE decode, PNG; then another seed."""
    pictures = []
    for seed in (1, 2):
        prompt = demo_prompt(width=256, height=256, steps=2, seed=seed)
        run = client.run(prompt)
        assert run.status == "success"
        sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")
        assert [step.value for step in run.steps_of(sampler)] == [1, 2]
        assert run.previews
        # 2 steps of 1 double and 1 single block
        node, text = run.texts[-1]
        assert node == workflow.node_id(prompt, "CLEARApply")
        assert "window: 4 layer calls" in text
        assert "\ndense: " not in text
        pictures.append(picture(run))
    for image in pictures:
        assert image.shape == (256, 256, 3)
        assert image.std() > 10
    assert abs(pictures[0].astype(int) - pictures[1]).mean() > 10
