"""`python dev.py pack` tells apart what composes, what loses the window, and what ends with an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from devtools.pack_trial import Outcome, Trial, try_node


class AnotherPacksNode:
    """As node packs write them."""

    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "scale": ("FLOAT", {"default": 1.0}), "mode": (["a", "b"],)}}


class Scales(AnotherPacksNode):
    """Changes the image, and no hook of CLEAR's."""

    def patch(self, model: Any, scale: float, mode: str) -> tuple[Any]:
        assert mode == "a"
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * scale)
        return (patched,)


class Crops(AnotherPacksNode):
    """Runs the model on a part of the image with an odd number of rows, which the host pads to whole tokens."""

    def patch(self, model: Any, scale: float, mode: str) -> tuple[Any]:
        def part(apply_model: Any, given: dict[str, Any]) -> Tensor:
            out = torch.zeros_like(given["input"])
            out[..., :31, :] = apply_model(given["input"][..., :31, :], given["timestep"], **given["c"])
            return out

        patched = model.clone()
        patched.set_model_unet_function_wrapper(part)
        return (patched,)


class TakesOver(AnotherPacksNode):
    """Puts its own dense attention in the place of whatever was there."""

    def patch(self, model: Any, scale: float, mode: str) -> tuple[Any]:
        patched = model.clone()
        options = patched.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda func, *args, **kwargs: func(*args, **kwargs)
        return (patched,)


class Breaks(AnotherPacksNode):
    """Fails where another node has patched the model's attention."""

    def patch(self, model: Any, scale: float, mode: str) -> tuple[Any]:
        if "optimized_attention_override" in model.model_options["transformer_options"]:
            raise RuntimeError("patched already")
        return (model.clone(),)


def outcomes(pack: dict[str, Any], node: type[AnotherPacksNode], **inputs: Any) -> dict[str, Outcome]:
    nodes = {**pack, node.__name__: node}
    return {outcome.order: outcome for outcome in try_node(nodes, Trial(node.__name__, inputs))}


def test_a_node_that_composes_is_exact_in_every_order(pack: dict[str, Any]) -> None:
    found = outcomes(pack, Scales, scale=0.9)
    assert list(found) == ["Apply, node", "node, Apply", "node, Apply, 2 bands", "Apply, 2 bands, node"]
    for outcome in found.values():
        assert outcome.error is not None and outcome.error < 1e-6, outcome
        assert outcome.dense is not None and outcome.dense > 1e-3, outcome
        assert ": exact (" in str(outcome)


def test_a_part_of_odd_size_has_the_hosts_number_of_tokens(pack: dict[str, Any]) -> None:
    found = outcomes(pack, Crops)
    assert all(": exact (" in str(outcome) for outcome in found.values()), list(map(str, found.values()))


def test_a_node_that_takes_the_hook_loses_the_window_only_behind_apply(pack: dict[str, Any]) -> None:
    found = outcomes(pack, TakesOver)
    lost = found["Apply, node"]
    assert lost.dense == 0 and lost.error is not None and lost.error > 1e-3
    assert "the window is lost" in str(lost)
    assert ": exact (" in str(found["node, Apply"])


def test_a_node_with_an_attention_of_its_own_is_not_taken_for_exact() -> None:
    assert "the window is lost" in str(Outcome("Apply, node", error=0.0, dense=0.0))
    assert str(Outcome("Apply, node", error=0.0, dense=0.1)) == "Apply, node: exact (0.0e+00)"
    assert str(Outcome("Apply, node", error=2e-2, dense=0.1)) == "Apply, node: differs (2.0e-02)"


def test_an_error_is_told_with_its_text(pack: dict[str, Any]) -> None:
    found = outcomes(pack, Breaks)
    assert found["Apply, node"].refusal == "RuntimeError: patched already"
    assert str(found["Apply, node"]).endswith("refused: RuntimeError: patched already")
    assert ": exact (" in str(found["node, Apply"])
