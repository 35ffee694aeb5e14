"""The part `devices` of `python dev.py card`, which needs several cards, on simulated ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.card import devices
from benchmarks.card.scale import Scale
from devtools.cards import cards
from devtools.cards_model import SHAPE
from devtools.models import FULL_SIZE


def test_a_layer_and_a_step_run_on_every_card(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no values and take no time: what is checked is where things lie."""
    scale = Scale(torch.device("cuda", 0), (8, 12), (3, 5), heads=1, repeats=1, bands=())
    monkeypatch.setattr(devices, "FULL_SIZE", {**FULL_SIZE, **SHAPE})
    monkeypatch.setattr(devices, "TENTH", {"depth": 1, "depth_single_blocks": 1})
    # There is no generator of a card's numbers without one.
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": SimpleNamespace(manual_seed=lambda seed: None))
    used: list[tuple[int, ...]] = []
    with cards(2) as found:

        def once(functions: Mapping[str, Callable[[], object]], *_: object) -> dict[str, float]:
            for function in functions.values():
                function()
            used.append(tuple(found.memory.used(card) for card in range(2)))
            return dict.fromkeys(functions, 1.0)

        monkeypatch.setattr(devices, "medians", once)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", found.cuda.memory_allocated)
        *copies, layer, step = devices.rows(scale)
    assert [row["cards"] for row in copies] == ["0 to 1", "1 to 0"]
    assert [row["what"] for row in (layer, step)] == ["a layer", "a step of 2 blocks"]
    for row, (on_one, on_all) in ((layer, used[-4:-2]), (step, used[-2:])):
        assert (row["cards"], row["bands"]) == (2, 8)
        assert list(row["peak GiB on one"]) == ["cuda:0"]
        assert list(row["peak GiB on all"]) == ["cuda:0", "cuda:1"]
        assert on_all[1] > on_one[1]
    on_one, on_all = used[-2:]
    assert on_all[1] - on_one[1] > 0.3 * on_one[0], "a copy of the weights"
