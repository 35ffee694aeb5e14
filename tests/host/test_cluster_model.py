"""A forward's arguments as tensors that travel, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.ldm.flux.model import Flux
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor


@pytest.fixture(scope="session")
def travel(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.cluster.model")


@pytest.fixture(scope="session")
def forward_args(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.forward_args").ForwardArgs


def numbered(count: int) -> list[Tensor]:
    """Tensors that differ in value and shape."""
    return [torch.full((1, number + 1), float(number)) for number in range(count)]


def plain(**more: Any) -> dict[str, Any]:
    x, timestep, context, pooled, guidance = numbered(5)
    return {"x": x, "timestep": timestep, "context": context, "y": pooled, "guidance": guidance, **more}


def there_and_back(travel: Any, forward_args: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """By the signature of the host's own FLUX."""
    called = forward_args.of(Flux.forward.__get__(object()), (), arguments)
    sent = travel.tensors_of(called, called.arguments)
    assert all(isinstance(each, Tensor) for each in sent.values())
    return travel.arguments_of(sent)


def same(one: Any, other: Any) -> bool:
    """Of the same structure, with the very same tensors."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one is other


# Which layers a ControlNet has residuals for. What follows the last of them is as if it were not there.
LAYERS = some.lists(some.booleans(), max_size=12).map(lambda layers: [*layers, True])


@given(references=some.integers(1, 12), input_layers=LAYERS, output_layers=LAYERS)
def test_arguments_come_back(
    travel: Any, forward_args: Any, references: int, input_layers: list[bool], output_layers: list[bool]
) -> None:
    control = {
        name: [tensor if there else None for tensor, there in zip(numbered(len(layers)), layers, strict=True)]
        for name, layers in (("input", input_layers), ("output", output_layers))
    }
    arguments = plain(ref_latents=numbered(references), control=control, attention_mask=torch.ones(1, 4))
    assert same(there_and_back(travel, forward_args, arguments), arguments)


def test_what_is_none_is_left_out_and_so_are_the_options(travel: Any, forward_args: Any) -> None:
    """`attention_mask` and `guidance` are None in an ordinary forward; options are each machine's own."""
    arguments = plain(guidance=None, control=None, ref_latents=None, attention_mask=None, unknown=None)
    found = there_and_back(travel, forward_args, {**arguments, "transformer_options": {"patches": {}}})
    assert same(found, {name: arguments[name] for name in ("x", "timestep", "context", "y")})


def test_residuals_after_the_last_are_as_if_not_there(travel: Any, forward_args: Any) -> None:
    first, second = numbered(2)
    control = {"input": [None, first, None, second, None], "output": [None, None]}
    found = there_and_back(travel, forward_args, plain(control=control))
    assert same(found["control"], {"input": [None, first, None, second]})


@pytest.mark.parametrize(
    ("name", "value"), [("vinput", torch.zeros(1)), ("sharpness", 0.5), ("attention_mask", [1, 0]), ("guidance", 3.5)]
)
def test_what_cannot_travel_is_named(travel: Any, forward_args: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"the argument {name} of the model's forward cannot be sent"):
        there_and_back(travel, forward_args, plain(**{name: value}))
