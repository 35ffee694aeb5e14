"""Packs that swap the model's class, forward or attention, wholly or in part: the node and the log say who."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core.layout import Grid
from devtools.models import flux_model, sample

from host import packs
from host.comparing import error
from host.oracle import with_mask

GRID = Grid(8, 9)  # of what `sampled` samples: 3 layers in each of 2 steps


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """This pack's warnings so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.message for record in caplog.records if record.name == "clear-attention"]


def sampled(model: Any) -> Tensor:
    return sample(model, 16, 18)


def missed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("not used")]


BYPASSED = (
    "the model has the forward of {}, which passes by ComfyUI's hooks. Remove the node that puts it there, or connect "
    "a model without it"
)


@pytest.mark.parametrize("how", ["by_object_patch", "on_the_model"])
def test_a_swapped_class_after_clear_is_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], how: str
) -> None:
    pack = packs.load("reflux", "RES4LYF.flux.model")
    expected = sampled(flux_model())
    out = sampled(getattr(pack, how)(nodes_api.apply(model, radius=2)))
    assert error(out, expected) < 1e-6
    reason = BYPASSED.format("RES4LYF.flux.model")
    assert missed(shown["CLEARApply"][-1]) == [f"not used: 6 layer calls, {reason}"]
    assert warnings() == [f"CLEAR is not used in 3 layers: {reason}"]


def test_what_was_logged_once_is_shown_in_every_run(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    patched = packs.load("reflux", "RES4LYF.flux.model").by_object_patch(nodes_api.apply(model, radius=2))
    for _ in range(2):
        sampled(patched)
        assert missed(shown["CLEARApply"][-1])[0].startswith("not used: 6 layer calls")
    assert len(warnings()) == 1


def test_a_step_cache_around_another_packs_forward_is_no_takeover(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0]
    patched = packs.load("teacache", "teacache.nodes").apply(nodes_api.apply(cached, radius=2), "named")
    sample(patched, 16, 18, steps=8)
    text = shown["CLEARApply"][-1]
    (line,) = [line for line in text.splitlines() if line.startswith("CLEAR ran:")]
    assert 0 < int(line.split()[2]) < 8 * 3
    assert not missed(text) and not warnings()


def test_bands_that_a_swapped_class_ignores_are_mentioned(model: Any, nodes_api: Any, shown: Any) -> None:
    patched = nodes_api.apply(model, radius=2)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=3, text_merge="exact")
    sampled(packs.load("reflux", "RES4LYF.flux.model").by_object_patch(banded))
    assert "ComfyUI's hooks; CLEAR Multi-GPU cuts nothing either. Remove" in shown["CLEARApply"][-1]


def test_a_forward_put_into_the_model_is_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    patched = nodes_api.apply(model, radius=2)
    expected = sampled(patched)
    assert not missed(shown["CLEARApply"][-1])
    with packs.load("nag", "ComfyUI-NAG.flux.model").sampling(model):
        assert error(sampled(patched), sampled(flux_model())) < 1e-6
    reason = BYPASSED.format("ComfyUI-NAG.flux.model")
    assert missed(shown["CLEARApply"][-1]) == [f"not used: 6 layer calls, {reason}"]
    assert warnings() == [f"CLEAR is not used in 3 layers: {reason}"]
    assert torch.equal(sampled(patched), expected)
    assert not missed(shown["CLEARApply"][-1])


@pytest.mark.parametrize("before", [True, False])
def test_a_forward_that_gives_the_blocks_no_options_is_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], before: bool
) -> None:
    pack = packs.load("teacache", "teacache.nodes")
    patched = nodes_api.apply(pack.apply(model), radius=2) if before else pack.apply(nodes_api.apply(model, radius=2))
    assert error(sampled(patched), sampled(flux_model())) < 1e-6
    (line,) = missed(shown["CLEARApply"][-1])
    assert line.startswith(
        "not used: 6 layer calls, the model has the forward of teacache.nodes, which gives the model's blocks no "
        "transformer_options, so no attention hook runs. Update that pack or remove its node"
    )
    assert len(warnings()) == 1


def test_a_forward_of_another_pack_that_passes_everything_on_is_shown(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    pack = packs.load("teacache", "teacache.nodes")
    out = sampled(pack.apply(nodes_api.apply(model, radius=2), "named"))
    assert error(out, sampled(with_mask(flux_model(), GRID, 2))) < 1e-5
    text = shown["CLEARApply"][-1]
    assert "the model has the forward of teacache.nodes; every layer came to CLEAR" in text.splitlines()
    assert not missed(text) and not warnings()


def test_a_forward_that_does_not_name_its_blocks_runs_dense_and_is_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    pack = packs.load("teacache", "teacache.nodes")
    assert error(sampled(pack.apply(nodes_api.apply(model, radius=2), "unnamed")), sampled(flux_model())) < 1e-6
    text = shown["CLEARApply"][-1]
    assert "full attention: 6 layer calls, the model's forward does not say which block attends" in text
    assert "the model has the forward of teacache.nodes" in text
    assert not missed(text) and len(warnings()) == 1


def test_layers_that_the_hosts_own_guidance_skips_are_no_takeover(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    patched = nodes_api.apply(model, radius=2)
    skipping = SkipLayerGuidanceDiT.execute(patched, 3.0, 0.0, 1.0, double_layers="0", single_layers="1").args[0]
    sampled(skipping)
    text = shown["CLEARApply"][-1]
    # Two steps of three layers, and in each the forward that guides: without double block 0 and single block 1.
    assert "CLEAR ran: 8 layer calls" in text
    assert not missed(text) and not warnings()


@pytest.mark.parametrize("layers", [{("single", 0), ("single", 1)}, {("double", 0)}])
def test_a_part_of_the_layers_taken_over_is_counted_and_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], layers: set[tuple[str, int]]
) -> None:
    pack = packs.load("solattn", "SolAttn.nodes")
    sampled(
        pack.apply(
            nodes_api.apply(model, radius=2),
            lambda options: (options["block_type"], options["block_index"]) in layers,
        )
    )
    reason = "another node's attention (SolAttn.nodes) computed them. Put Apply CLEAR Attention after that node"
    text = shown["CLEARApply"][-1]
    assert missed(text) == [f"not used: {2 * len(layers)} layer calls, {reason}"]
    assert f"CLEAR ran: {2 * (3 - len(layers))} layer calls" in text
    assert warnings() == [f"CLEAR is not used in {len(layers)} layers: {reason}"]


@pytest.mark.parametrize("step", [0, 1])
def test_steps_taken_over_are_counted_and_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], step: int
) -> None:
    sigmas: list[float] = []

    def in_step(options: Any) -> bool:
        sigma = float(options["sigmas"][0])
        sigmas.extend([sigma] if sigma not in sigmas else [])
        return sigmas.index(sigma) == step

    sampled(packs.load("solattn", "SolAttn.nodes").apply(nodes_api.apply(model, radius=2), in_step))
    assert missed(shown["CLEARApply"][-1])[0].startswith("not used: 3 layer calls, another node's attention (SolAttn")
    assert len(warnings()) == 1


def test_a_replaced_block_is_counted_and_named(model: Any, nodes_api: Any, shown: Any) -> None:
    patched = nodes_api.apply(packs.load("blocks", "Blocks.nodes").without_options(model, 1), radius=2)
    sampled(patched)
    text = shown["CLEARApply"][-1]
    assert "CLEAR ran: 4 layer calls" in text
    assert missed(text) == [
        "not used: 2 layer calls, Blocks.nodes skipped these blocks or computed them without ComfyUI's attention hook"
    ]


def test_a_wrapper_that_answers_for_the_model_is_named(model: Any, nodes_api: Any, shown: Any) -> None:
    sampled(packs.load("blocks", "Blocks.nodes").answering(nodes_api.apply(model, radius=2)))
    assert missed(shown["CLEARApply"][-1]) == [
        "not used: 6 layer calls, Blocks.nodes answers in the place of the model's forward. Remove its node"
    ]


@pytest.mark.parametrize("bands", [1, 3])
def test_nothing_is_said_where_every_layer_came(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], bands: int
) -> None:
    pack = packs.load("solattn", "SolAttn.nodes")
    patched = pack.apply(nodes_api.apply(model, radius=2), lambda options: False)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=bands, text_merge="exact")
    sampled(banded)
    assert not missed(shown["CLEARApply"][-1])
    assert not warnings()


def test_a_model_whose_class_a_pack_swapped_is_refused_naming_it(model: Any, nodes_api: Any) -> None:
    swapped = packs.load("reflux", "RES4LYF.flux.model").by_object_patch(model)
    words = r"^RES4LYF.flux.model has swapped the class of this model \(ReFlux\).*Connect the model from before"
    with pytest.raises(ValueError, match=words):
        nodes_api.apply(swapped, radius=2)
    packs.load("reflux", "ComfyUI-Fluxtapoz.flux.model").on_the_model(model)
    words = r"^ComfyUI-Fluxtapoz.flux.model has swapped.*on the loaded model itself.*restart ComfyUI"
    with pytest.raises(ValueError, match=words):
        nodes_api.apply(model, radius=2)


def test_the_loaders_model_can_be_used_while_another_clone_has_a_swapped_class(
    model: Any, nodes_api: Any, shown: Any
) -> None:
    swapped = packs.load("reflux", "RES4LYF.flux.model").by_object_patch(model)
    dense = sampled(swapped)
    assert type(model.model.diffusion_model).__name__ == "ReFlux"
    patched = nodes_api.apply(model, radius=2)
    assert error(sampled(patched), sampled(with_mask(flux_model(), GRID, 2))) < 1e-5
    assert not missed(shown["CLEARApply"][-1])
    assert error(sampled(swapped), dense) < 1e-6


DYPE = "ComfyUI-DyPE.patch_utils"


def test_positions_replaced_after_clear_cost_ntk_factor_and_are_named(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]]
) -> None:
    pack = packs.load("dype", DYPE)
    patched = nodes_api.apply(model, radius=2, ntk_factor=10.0)
    sampled(patched)
    assert "ntk_factor" not in shown["CLEARApply"][-1]
    sampled(pack.apply(patched))
    words = (
        "ntk_factor 10 has no effect: another node replaced the model's positions after this one "
        f"({DYPE}.PosEmbedFlux). Set ntk_factor to 1, or remove that node"
    )
    assert words in shown["CLEARApply"][-1]
    assert warnings() == [f"CLEAR: {words}"]
    # The order that Apply itself can see is refused there.
    with pytest.raises(ValueError, match=rf"ntk_factor is 10, but another node already replaced.*{DYPE}.PosEmbedFlux"):
        nodes_api.apply(pack.apply(model), radius=2, ntk_factor=10.0)


@pytest.mark.parametrize("before", [True, False])
def test_positions_of_another_pack_are_shown(
    model: Any, nodes_api: Any, shown: Any, warnings: Callable[[], list[str]], before: bool
) -> None:
    pack = packs.load("dype", DYPE)
    patched = nodes_api.apply(pack.apply(model), radius=2) if before else pack.apply(nodes_api.apply(model, radius=2))
    assert error(sampled(patched), sampled(with_mask(pack.apply(flux_model()), GRID, 2))) < 1e-5
    assert f"positions by {DYPE}.PosEmbedFlux" in shown["CLEARApply"][-1].splitlines()
    assert not warnings()
