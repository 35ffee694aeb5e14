"""Whose code a model runs: the host's, or a pack's by its name in custom_nodes."""

from __future__ import annotations

from functools import wraps
from typing import Any
from unittest.mock import patch

import pytest
import torch

from devtools.models import chroma_model, flux_model

from host import packs


@pytest.fixture
def overrides(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.overrides")


@pytest.mark.parametrize("make", [flux_model, chroma_model])
def test_the_hosts_own_model_has_no_owner(host: Any, overrides: Any, make: Any) -> None:
    flux = make().model.diffusion_model
    assert (overrides.forward_owner(flux), overrides.block_owner(flux)) == ("", "")
    compiled = torch.compile(flux, backend="eager")
    assert (overrides.forward_owner(compiled), overrides.block_owner(compiled)) == ("", "")


def test_a_class_that_a_pack_put_in_names_the_pack(host: Any, overrides: Any) -> None:
    model = packs.load("reflux", "RES4LYF.flux.model").on_the_model(flux_model())
    assert overrides.forward_owner(model.model.diffusion_model) == "RES4LYF.flux.model"
    assert overrides.forward_owner(torch.compile(model.model.diffusion_model, backend="eager")) == "RES4LYF.flux.model"


def test_a_forward_in_the_instance_names_the_pack(host: Any, overrides: Any) -> None:
    model = flux_model()
    flux = model.model.diffusion_model
    with packs.load("nag", "ComfyUI-NAG.flux.model").sampling(model):
        assert overrides.forward_owner(flux) == "ComfyUI-NAG.flux.model"
    assert overrides.forward_owner(flux) == ""


def test_a_forward_in_the_class_names_the_pack_though_it_calls_itself_the_hosts(host: Any, overrides: Any) -> None:
    flux = flux_model().model.diffusion_model
    pack = packs.load("teacache", "teacache.nodes")
    pretending = wraps(type(flux).forward_orig)(pack.forward_orig)
    assert pretending.__module__ == "comfy.ldm.flux.model"
    with patch.object(type(flux), "forward_orig", pretending):
        assert overrides.forward_owner(flux) == "teacache.nodes"


def test_a_block_that_a_pack_replaced_names_the_pack(host: Any, overrides: Any) -> None:
    flux = flux_model().model.diffusion_model
    pack = packs.load("teacache", "Blocks.nodes")
    flux.single_blocks[1].forward = pack.forward_orig.__get__(flux.single_blocks[1])
    assert overrides.block_owner(flux) == "Blocks.nodes"


def test_names_are_joined_and_this_packs_own_left_out(host: Any, nodes_api: Any, overrides: Any) -> None:
    one, other = packs.load("nag", "One"), packs.load("nag", "Other")
    ours = nodes_api.module("nodes.host.flux_model").transformer_of
    functions = [one.nag_forward, ours, other.nag_forward, one.nag_forward, flux_model().model.apply_model]
    assert overrides.foreign(functions) == "One and Other"
