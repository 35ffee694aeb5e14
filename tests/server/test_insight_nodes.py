"""CLEAR Report, CLEAR Factors and CLEAR Attention Map on the real server: pictures and text, shown and handed on."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from devtools import workflow


def test_the_nodes_show_their_picture_and_their_text(client: Any, demo_prompt: Any) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 4}}, width=256, height=192)
    loaders = ("UNETLoader", "CLEARWeightsLoader", "DualCLIPLoader", "CLEARApply", "Prompt", "FluxGuidance", "Width")
    kept = [workflow.node_id(prompt, name) for name in (*loaders, "Height", "EmptySD3LatentImage")]
    nodes = {key: prompt[key] for key in kept}
    model = [workflow.node_id(prompt, "CLEARApply"), 0]
    nodes["report"] = {"class_type": "CLEARReport", "inputs": {"model": model, "width": 1024, "height": 1536}}
    nodes["map"] = {
        "class_type": "CLEARAttentionMap",
        "inputs": {
            "model": model,
            "positive": [workflow.node_id(prompt, "FluxGuidance"), 0],
            "latent_image": [workflow.node_id(prompt, "EmptySD3LatentImage"), 0],
            "seed": 3,
            "percent": 0.2,
            "block": "s0",
            "head": -1,
            "x": 0.5,
            "y": 0.5,
        },
    }
    nodes["factors"] = {
        "class_type": "CLEARFactors",
        "inputs": {
            "model": model,
            "positive": [workflow.node_id(prompt, "FluxGuidance"), 0],
            "latent_image": [workflow.node_id(prompt, "EmptySD3LatentImage"), 0],
            "seed": 3,
            "percents": "0.5",
            "least_mass": 0.9,
            "largest_error": 0.1,
            "radius": 4,
            "blocks": "all",
            "queries": 16,
        },
    }
    run = client.run(nodes)
    words = {
        "report": (
            "FLUX.1, radius 4",
            "Attention in one step, all 2 layers:",
            "  1024 x 1536: dense",
            "Backend on this machine: ",
        ),
        "factors": (
            "2 layers of 24 heads",
            "queries: 16 of 192 image tokens, drawn with seed 3",
            "This model has CLEAR (radius 4",
            "Radius 4, as asked: ",
            "| s0 | ",
        ),
        "map": (
            "FLUX.1, single block 0, mean of 24 heads",
            "of 12 x 16 image tokens",
            "of the dense attention to the image lies in the window",
        ),
    }
    # The page draws "images" itself; the pack's own panel draws the maps, and the page must not draw them again.
    pictures = {"report": "images", "map": "clear_map", "factors": "images"}
    assert "images" not in run.outputs["map"]
    for node, said in words.items():
        (text,) = run.outputs[node]["text"]
        assert all(word in text for word in said), text
        shown = [shown for where, shown in run.texts if where == node][-1]
        assert set(shown.split("\n")) <= set(text.split("\n"))
        (reference,) = run.outputs[node][pictures[node]]
        with Image.open(io.BytesIO(client.image(reference))) as picture:
            assert picture.width == 1600
    (shown_map,) = run.outputs["map"]["clear_map"]
    assert (shown_map["grid"], shown_map["query"]) == ([12, 16], [6, 8])
    assert shown_map["size"] == list(picture.size)
