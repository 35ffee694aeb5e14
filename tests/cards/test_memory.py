"""ComfyUI's own model management on simulated cards, FLUX.1 in bands at its real size: what is loaded and offloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.cards import GIB
from devtools.cards_memory import CardAfter, prepared

ROOT = Path(__file__).parents[2]
FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16


def run(
    nodes_api: Any, count: int, gib: float, dtype: torch.dtype, pixels: int = 8192, bands: int = 0
) -> list[CardAfter]:
    def in_bands(model: Any) -> Any:
        clear = nodes_api.apply(model, radius=16)
        return nodes_api.execute("CLEARMultiGPU", model=clear, devices="auto", bands=bands, text_merge="exact")[0]

    after = prepared(count, int(gib * GIB), dtype, pixels, in_bands, nodes_api.module, bands)
    assert [card.device.index for card in after] == list(range(count))
    # Never more than the card has, for any weights.
    assert all(card.spare >= 0 for card in after), after
    return after


@pytest.mark.parametrize(("workflow", "gib"), [("06_8k_on_16gb", 16), ("07_16k_on_24gb", 24)])
def test_the_workflows_images_fit_with_a_twentieth_to_spare(host: Any, nodes_api: Any, workflow: str, gib: int) -> None:
    nodes = json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8"))["nodes"]
    widgets = {node["type"]: node.get("widgets_values") for node in nodes}
    assert widgets["UNETLoader"][1] == "fp8_e4m3fn"
    (card,) = run(nodes_api, 1, gib, FP8, widgets["ImageScale"][1], widgets["CLEARTiledSampler"][1])
    assert card.offloaded == 0
    assert card.kept == ()
    assert card.spare >= gib * GIB / 20


@pytest.mark.parametrize(("gib", "dtype"), [(16, FP8), (32, BF16)])
def test_a_second_card_that_holds_the_weights_once_holds_all_of_them(
    host: Any, nodes_api: Any, gib: float, dtype: torch.dtype
) -> None:
    """They were put there before the host made room, counted twice, and offloaded below 2.1 times their size."""
    first, second = run(nodes_api, 2, gib, dtype)
    assert first.offloaded == second.offloaded == 0
    assert first.loaded == second.loaded
    assert first.need > 0.9 * second.need  # half of the image each


@pytest.mark.parametrize(("gib", "dtype"), [(8, FP8), (12, BF16)])
def test_small_cards_offload_what_does_not_fit(host: Any, nodes_api: Any, gib: float, dtype: torch.dtype) -> None:
    for card in run(nodes_api, 2, gib, dtype):
        assert card.offloaded > 0
        # What is free beside the bands' need is not wasted: at most a few layers' worth.
        assert card.spare < 2 * GIB
