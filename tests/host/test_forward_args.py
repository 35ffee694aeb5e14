"""The arguments of a forward of the host's transformer, bound by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def forward_args(host: Any, nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.forward_args").ForwardArgs


def flux(
    x: Any, timestep: Any, context: Any, y: Any = None, guidance: Any = None, transformer_options: Any = {}, **rest: Any
) -> dict[str, Any]:
    return {"x": x, "context": context, "y": y, "guidance": guidance, "options": transformer_options, "rest": rest}


def chroma(
    x: Any, timestep: Any, context: Any, guidance: Any, transformer_options: Any = {}, **rest: Any
) -> dict[str, Any]:
    return {"x": x, "context": context, "guidance": guidance, "options": transformer_options, "rest": rest}


def test_each_signature_is_read_by_its_own_order(forward_args: Any) -> None:
    x, context = torch.zeros(1), torch.ones(1)
    for forward, args in ((flux, (x, 1, context, "y", 3.5)), (chroma, (x, 1, context, 3.5))):
        given = forward_args.of(forward, args, {"transformer_options": {"a": 1}})
        assert (given.x is x, given.context is context, given.get("guidance")) == (True, True, 3.5)
        assert given.options == {"a": 1}
        assert given.call(forward)["guidance"] == 3.5
    assert forward_args.of(chroma, (x, 1, context, 3.5), {}).get("y") is None


def test_what_is_replaced_arrives_and_the_original_stays(forward_args: Any) -> None:
    given = forward_args.of(flux, (1, 2, 3), {"attention_mask": "mask", "other": 4})
    assert (given.get("attention_mask"), given.options) == ("mask", {})
    changed = given.replaced(x=5, guidance=6, attention_mask=None, transformer_options={"b": 2}, new=7)
    assert changed.call(flux) == {
        "x": 5,
        "context": 3,
        "y": None,
        "guidance": 6,
        "options": {"b": 2},
        "rest": {"other": 4, "new": 7},
    }
    assert given.call(flux)["x"] == 1
    assert given.call(flux)["rest"] == {"attention_mask": "mask", "other": 4}


def test_a_function_whose_signature_another_pack_hid_is_read_by_order(forward_args: Any) -> None:
    def hidden(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    given = forward_args.of(hidden, (1, 2, {"a": 1}), {"other": 3}, order=("x", "t", "transformer_options"))
    assert (given.x, given.get("t"), given.options, given.get("other")) == (1, 2, {"a": 1}, 3)
    assert given.replaced(transformer_options={}).call(hidden) == ((1, 2, {}), {"other": 3})


def test_arguments_that_do_not_fit_are_refused(forward_args: Any) -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'context'"):
        forward_args.of(flux, (1, 2), {})
