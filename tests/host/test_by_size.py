"""What Apply CLEAR Attention leaves to the size of the image: NTK scaling and proportional attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from devtools.models import flux_model, inputs, run_forward

from host import packs

LARGE = (384, 512)  # latent cells: 3072 x 4096 px, where both begin
SMALL = (384, 488)  # 3072 x 3904 px, just below 12 megapixels
BY_HAND: dict[str, Any] = {"ntk_factor": 10.0, "proportional_attention": True}
NONE: dict[str, Any] = {"ntk_factor": 1.0, "proportional_attention": False}


def forward(model: Any, size: tuple[int, int]) -> Tensor:
    return run_forward(model, **inputs(*size))


@pytest.mark.parametrize(("size", "by_hand"), [(LARGE, BY_HAND), (SMALL, NONE)], ids=["large", "small"])
@pytest.mark.parametrize(("bands", "devices"), [(1, "cpu"), (5, "cpu"), (4, "cpu,cpu")], ids=str)
def test_what_the_size_decides_is_what_one_would_set_by_hand(
    host: Any, nodes_api: Any, size: tuple[int, int], by_hand: dict[str, Any], bands: int, devices: str
) -> None:
    def run(**settings: Any) -> Tensor:
        patched = nodes_api.apply(flux_model(), radius=2, **settings)
        cut = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=bands, text_merge="exact")[0]
        return forward(cut, size)

    assert torch.equal(run(), run(**by_hand))


def test_one_model_follows_the_sizes_of_its_forwards(host: Any, nodes_api: Any) -> None:
    model = flux_model()
    patched = nodes_api.apply(model, radius=2)
    by_hand = {size: forward(nodes_api.apply(flux_model(), radius=2, **NONE), size) for size in [SMALL, (64, 64)]}
    for size in (SMALL, LARGE, (64, 64), SMALL):
        out = forward(patched, size)
        assert size not in by_hand or torch.equal(out, by_hand[size])
    assert model.model.diffusion_model.pe_embedder.theta == 10000


def test_a_value_that_was_chosen_stays(host: Any, nodes_api: Any) -> None:
    chosen = forward(nodes_api.apply(flux_model(), radius=2, **NONE), LARGE)
    assert not torch.equal(chosen, forward(nodes_api.apply(flux_model(), radius=2), LARGE))
    on = {"proportional_attention": True}
    small = (32, 32)
    expected = forward(nodes_api.apply(flux_model(), radius=2, ntk_factor=1.0, **on), small)
    assert torch.equal(forward(nodes_api.apply(flux_model(), radius=2, **on), small), expected)


def test_a_forward_that_fails_leaves_the_models_own_positions(host: Any, nodes_api: Any) -> None:
    model = flux_model()
    patched = nodes_api.apply(model, radius=2)

    def broken(args: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("in the middle of a forward")

    patched.set_model_patch(broken, "post_input")
    with pytest.raises(RuntimeError, match="in the middle"):
        forward(patched, LARGE)
    assert model.model.diffusion_model.pe_embedder.theta == 10000


def test_the_node_says_what_the_size_decided(host: Any, nodes_api: Any, shown: Any) -> None:
    patched = nodes_api.apply(flux_model(), radius=2)
    words = "by size (4096 x 3072 px): ntk_factor 10, proportional attention"
    forward(patched, SMALL)
    assert words not in shown["CLEARApply"][-1]
    forward(patched, LARGE)
    assert words in shown["CLEARApply"][-1].splitlines()


@pytest.mark.parametrize("before", [True, False])
def test_positions_of_another_pack_are_left_to_it(host: Any, nodes_api: Any, shown: Any, before: bool) -> None:
    pack = packs.load("dype", "ComfyUI-DyPE.patch_utils")

    def run(**settings: Any) -> Tensor:
        model = pack.apply(flux_model()) if before else flux_model()
        patched = nodes_api.apply(model, radius=2, **settings)
        return forward(patched if before else pack.apply(patched), LARGE)

    out = run()
    words = "by size (4096 x 3072 px): proportional attention; positions are left to the other node"
    assert words in shown["CLEARApply"][-1].splitlines()
    assert torch.equal(out, run(ntk_factor=1.0, proportional_attention=True))
