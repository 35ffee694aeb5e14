"""A LoRA of core's format before and after Apply CLEAR Attention, judged by the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from host.pictures.studio import DIFFERENT, EQUAL, WHOLE, Studio, own_weights, psnr, scenery

RANK, SCALE = 4, 0.15

Change = Callable[[Any], Any]
"""Of a MODEL."""


@pytest.fixture(scope="module")
def with_lora(host: Any, nodes_api: Any, studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Change:
    """A MODEL through Load LoRA (Model), with a file as the distillation writes it."""
    folder = tmp_path_factory.mktemp("loras")
    stored = nodes_api.module("nodes.host.distill.stored_weights").StoredWeights(studio.model, "model")
    names = [key.removesuffix(".weight") for key in stored.names if key.endswith(".weight")]
    generator = torch.Generator().manual_seed(1)
    hidden = studio.model.model.diffusion_model.hidden_size
    shapes = dict.fromkeys(names, (hidden, hidden))
    lora = nodes_api.module("clear_core.distill.trained").Lora(shapes, RANK, 1, seed=0)
    parameters = {
        key: SCALE * torch.randn(tensor.shape, generator=generator) if ".lora_B." in key else tensor
        for key, tensor in lora.parameters.items()
    }
    output = nodes_api.module("clear_core.distill.output")
    output.save_lora(folder / "small.safetensors", parameters, {}, dtype=torch.float32)

    def load(model: Any) -> Any:
        import folder_paths

        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
            loader = host.LoraLoaderModelOnly()
            return loader.load_lora_model_only(model, "small.safetensors", 1.0)[0]

    return load


def before(model: Any, with_lora: Change, apply: Change) -> Any:
    return apply(with_lora(model))


def after(model: Any, with_lora: Change, apply: Change) -> Any:
    return with_lora(apply(model))


def test_under_a_window_over_all_it_does_what_it_does_to_the_dense_model(
    studio: Studio, dense: Tensor, nodes_api: Any, with_lora: Change
) -> None:
    expected = studio.pictures(with_lora(studio.model))
    assert psnr(expected, dense) < DIFFERENT
    assert scenery(studio.scores(expected)) == scenery(studio.scores(dense))
    for order in (before, after):
        model = order(studio.model, with_lora, lambda model: nodes_api.apply(model, radius=WHOLE))
        assert psnr(studio.pictures(model), expected) > EQUAL


def test_over_distilled_weights_the_order_does_not_show(
    studio: Studio, dense: Tensor, nodes_api: Any, with_lora: Change, tmp_path: Path
) -> None:
    """The weights lie below the LoRA whichever node comes first."""
    weights = nodes_api.weights(own_weights(nodes_api, studio.model, tmp_path / "clear_local_3.safetensors", 0.1))
    first, second = (
        studio.pictures(order(studio.model, with_lora, lambda model: nodes_api.apply(model, weights)))
        for order in (before, after)
    )
    assert psnr(first, second) > EQUAL
    assert psnr(first, dense) < DIFFERENT
