"""CLEAR 4K / 8K on the small FLUX, judged by the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from host.pictures.studio import DIFFERENT, EQUAL, Studio, own_weights, psnr
from host.test_preset import WEIGHTS, expanded, preset


@pytest.fixture
def released(studio: Studio, nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/clear that holds every file of the presets, with the model's own weights."""
    import folder_paths

    for radius in set(WEIGHTS.values()):
        own_weights(nodes_api, studio.model, tmp_path / f"clear_local_{radius}.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clear", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def test_detail_covers_a_small_picture_and_is_the_dense_model_on_its_schedule(
    studio: Studio, dense: Tensor, nodes_api: Any, released: Path
) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    (shifted,) = ModelSamplingFlux().patch(studio.model, max_shift=1.1, base_shift=1.1, width=256, height=256)
    pictures = studio.pictures(preset(nodes_api, studio.model, "detail"))
    assert psnr(pictures, studio.pictures(shifted)) > EQUAL
    assert not torch.equal(pictures, dense)  # the host's own shift is 1.15


def test_memory_saver_is_the_picture_of_its_single_nodes(
    studio: Studio, dense: Tensor, nodes_api: Any, released: Path
) -> None:
    """Radius 8, in two bands."""
    pictures = studio.pictures(preset(nodes_api, studio.model, "memory saver"))
    by_hand = expanded(nodes_api, released, studio.model, "memory saver", "cpu", (32, 32))
    assert torch.equal(pictures, studio.pictures(by_hand))
    assert psnr(pictures, dense) < DIFFERENT
