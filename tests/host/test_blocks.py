"""`blocks`: the chosen ones use the window and the distilled weights, the others stay the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clear_core.layout import Grid
from devtools.models import clear_tensors, flux_model, inputs, run_forward

from host.comparing import error
from host.oracle import with_mask

CHOICES = {
    "double": {("double", 0), ("double", 1)},
    "single": {("single", 0), ("single", 1), ("single", 2)},
    "s1": {("single", 1)},
    "S0-1, d1": {("single", 0), ("single", 1), ("double", 1)},
    "d0 single": {("double", 0), ("single", 0), ("single", 1), ("single", 2)},
}


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model(depth=2, depth_single_blocks=3)


def masked_in(model: Any, grid: Grid, radius: int, chosen: set[tuple[str, int]]) -> Any:
    """The oracle's mask in some blocks only."""
    patched = with_mask(model, grid, radius)
    options = patched.model_options["transformer_options"]
    masked = options["optimized_attention_override"]

    def some(func: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs["transformer_options"]
        inside = (given["block_type"], given["block_index"]) in chosen
        return masked(func, *args, **kwargs) if inside else func(*args, **kwargs)

    options["optimized_attention_override"] = some
    return patched


@pytest.mark.parametrize("text", CHOICES)
def test_the_mask_holds_in_the_chosen_blocks(model: Any, nodes_api: Any, text: str) -> None:
    given = inputs(24, 18)
    out = run_forward(nodes_api.apply(model, radius=3, blocks=text), **given)
    assert error(out, run_forward(masked_in(model, Grid(12, 9), 3, CHOICES[text]), **given)) < 1e-5
    assert error(out, run_forward(nodes_api.apply(model, radius=3), **given)) > 1e-3


@pytest.mark.parametrize("text", CHOICES)
def test_the_other_blocks_keep_their_weights(model: Any, nodes_api: Any, tmp_path: Path, text: str) -> None:
    save_file(clear_tensors(model), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    output = nodes_api.apply_output(model, weights, blocks=text)
    run_forward(output.args[0], **inputs(8, 8))
    changed = {
        tuple(key.split(".")[1:3])
        for key, value in model.model.state_dict().items()
        if not torch.equal(before[key], value)
    }
    assert changed == {(f"{kind}_blocks", str(index)) for kind, index in CHOICES[text]}
    assert f"in blocks {text}; the others dense" in output.ui["text"][0]


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize("text", ["double", "S0-1, d1"])
def test_in_bands(model: Any, nodes_api: Any, factor: int, devices: str, text: str) -> None:
    given = inputs(40, 18)
    patched = nodes_api.apply(model, radius=3, down_factor=factor, blocks=text, proportional_attention=True)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=5, text_merge="exact")
    assert error(run_forward(banded, **given), run_forward(patched, **given)) < 1e-6


def test_all_blocks_by_name_are_all(model: Any, nodes_api: Any) -> None:
    given = inputs(16, 18)
    expected = run_forward(nodes_api.apply(model, radius=3), **given)
    for text in ("all", "double, single", "d0-1 s0-2"):
        assert torch.equal(run_forward(nodes_api.apply(model, radius=3, blocks=text), **given), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "blocks is '', of which '' cannot be read. Write all, double"),
        ("some", "of which 'some' cannot be read"),
        ("s3-1", "of which 's3-1' cannot be read"),
        ("d0, x4", "of which 'x4' cannot be read"),
        ("s0-99999", "of which 's0-99999' cannot be read"),
        ("d2", "this model has 2 double and 3 single blocks: d0-1 and s0-2 are allowed"),
        ("s1-3", "this model has 2 double and 3 single blocks"),
    ],
)
def test_what_cannot_be_read_is_refused(
    model: Any, nodes_api: Any, pack: dict[str, Any], text: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        nodes_api.apply(model, radius=3, blocks=text)
    if "cannot be read" in words:
        assert words in pack["CLEARApply"].validate_inputs(blocks=text)
