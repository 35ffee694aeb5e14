"""Several simulated cards, through the nodes: no operation meets tensors of two devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from devtools.cards import cards
from devtools.cards_model import model_on, sample_on

ORDERS = ["cuda:0,cuda:1", "cuda:1,cuda:0"]


def in_bands(nodes_api: Any, home: torch.device, devices: str, bands: int = 4, **settings: Any) -> Any:
    """A model on `home` with CLEAR, in bands."""
    patched = nodes_api.apply(model_on(home), **{"radius": 3, **settings})
    return nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=bands, text_merge="exact")[0]


@pytest.mark.parametrize("devices", ORDERS)
def test_an_attention_mask_goes_to_every_card(host: Any, nodes_api: Any, devices: str) -> None:
    tokens = 9 + 6 * 5
    with cards(2) as found:
        model = in_bands(nodes_api, found.devices[0], devices)
        # As Apply Style Model gives it: of a size of its own, which the host brings to that of the image.
        cond = {"attention_mask": torch.zeros(1, tokens, tokens), "attention_mask_img_shape": (6, 5)}
        out = sample_on(model, 24, 18, cond=cond)
        assert (out.device, out.shape) == (found.devices[0], (1, 16, 24, 18))


@pytest.mark.parametrize("devices", ORDERS)
def test_reference_images_go_to_the_card_that_is_named_first(host: Any, nodes_api: Any, devices: str) -> None:
    with cards(2) as found:
        model = in_bands(nodes_api, found.devices[0], devices)
        references = [torch.randn(1, 16, *size) for size in ((24, 18), (12, 30))]
        out = sample_on(model, 24, 18, cond={"reference_latents": references})
        assert (out.device, out.shape) == (found.devices[0], (1, 16, 24, 18))
