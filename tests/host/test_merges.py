"""Merges of models and LoRAs around Apply CLEAR Attention: what the layers' weights are, against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import clear_tensors, flux_model, sample

from host.comparing import error

HIDDEN = 32


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


def another(factor: float = -0.5) -> Any:
    """A model of other weights."""
    model = flux_model()
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(factor).add_(0.01)
    return model


@pytest.fixture
def weights(model: Any, nodes_api: Any, tmp_path: Path) -> Any:
    save_file(clear_tensors(model), tmp_path / "clear_local_3.safetensors")
    return nodes_api.weights(tmp_path / "clear_local_3.safetensors")


def loaded(model: Any) -> dict[str, Tensor]:
    """The weights that a forward of a MODEL would use."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    out = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    model.detach()
    return out


def merge(node: str = "ModelMergeSimple", **values: Any) -> Callable[[Any, Any], Any]:
    from comfy_extras import nodes_model_merging

    return lambda one, two: getattr(nodes_model_merging, node)().merge(one, two, **values)[0]


def flux_merge(ratio: float) -> Callable[[Any, Any], Any]:
    from comfy_extras.nodes_model_merging_model_specific import ModelMergeFlux1

    values = {name: ratio for name in ModelMergeFlux1.INPUT_TYPES()["required"] if not name.startswith("model")}
    return lambda one, two: ModelMergeFlux1().merge(one, two, **values)[0]


def lora(seed: int, names: tuple[str, ...] = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0")):
    generator = torch.Generator().manual_seed(seed)
    file: dict[str, Tensor] = {}
    for name in (*names, "single_transformer_blocks.1.attn.to_k"):
        file[f"transformer.{name}.lora_A.weight"] = torch.randn(4, HIDDEN, generator=generator) * 0.3
        file[f"transformer.{name}.lora_B.weight"] = torch.randn(HIDDEN, 4, generator=generator) * 0.3
    return file


def with_lora(model: Any, file: dict[str, Tensor], strength: float = 0.8) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, dict(file), strength, 0.0)[0]


def change(file: dict[str, Tensor], name: str, strength: float = 0.8) -> Tensor:
    """What a LoRA adds to a tensor of the weights file."""
    layer = name.removesuffix(".weight")
    if f"transformer.{layer}.lora_B.weight" not in file:
        return torch.zeros(())
    return strength * file[f"transformer.{layer}.lora_B.weight"] @ file[f"transformer.{layer}.lora_A.weight"]


def check(got: dict[str, Tensor], base: dict[str, Tensor], weights: Any, strength: float = 1.0, added: Any = None):
    """The distilled layers are CLEAR's over `base` plus what is added; every other weight is base's."""
    rest = {name: torch.ones(len(tensor), dtype=torch.bool) for name, tensor in got.items()}
    for name, tensor in weights.attention.items():
        key, rows = host_name(name)
        expected = (1 - strength) * base[key][rows] + strength * tensor + (added(name) if added else 0)
        assert error(got[key][rows], expected) < 1e-6, name
        rest[key][rows] = False
    for name, rows in rest.items():
        torch.testing.assert_close(got[name][rows], base[name][rows], rtol=2e-6, atol=1e-7)


def host_name(name: str) -> tuple[str, slice]:
    import comfy.utils

    found = comfy.utils.flux_to_diffusers({"depth": 1, "depth_single_blocks": 2, "hidden_size": HIDDEN})[name]
    return (found, slice(None)) if isinstance(found, str) else (found[0], slice(found[1][1], sum(found[1][1:])))


MERGES: dict[str, Callable[[], Callable[[Any, Any], Any]]] = {
    "simple": lambda: merge(ratio=0.6),
    "only the first": lambda: merge(ratio=1.0),
    "only the second": lambda: merge(ratio=0.0),
    "by blocks": lambda: flux_merge(0.3),
    "add": lambda: merge("ModelAdd"),
    "subtract": lambda: merge("ModelSubtract", multiplier=0.7),
    "several": lambda: lambda one, two: flux_merge(0.3)(merge("ModelAdd")(merge(ratio=0.6)(one, two), two), one),
    "an added difference": lambda: (
        lambda one, two: merge("ModelAdd")(one, merge("ModelSubtract", multiplier=1.0)(two, one))
    ),
}


@pytest.mark.parametrize("strength", [1.0, 0.25])
@pytest.mark.parametrize("how", MERGES)
def test_over_a_merge_the_distilled_layers_are_clears(
    model: Any, weights: Any, nodes_api: Any, how: str, strength: float
) -> None:
    merged = MERGES[how]()(model, another())
    output = nodes_api.apply_output(merged, weights, strength=strength)
    base = loaded(merged)
    check(loaded(output.args[0]), base, weights, strength)
    # The model that came in stays the merge that it was.
    assert all(torch.equal(tensor, base[name]) for name, tensor in loaded(merged).items())
    words = "replace the merge" if strength == 1 else "are blended into the merge"
    said = f"merged model: in the distilled layers CLEAR's weights {words}" in output.ui["text"][0]
    assert said == (how != "only the first")


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_loras_around_a_merge_stay_on_top_with_the_share_that_the_merge_gave_them(
    model: Any, weights: Any, nodes_api: Any, strength: float
) -> None:
    other = another()
    before, second, after, last = (lora(seed) for seed in range(4))
    base = loaded(merge(ratio=0.6)(model, other))
    merged = merge(ratio=0.6)(with_lora(model, before), with_lora(other, second))
    patched = with_lora(nodes_api.apply(with_lora(merged, after), weights, strength=strength), last)

    def added(name: str) -> Tensor:
        return 0.6 * change(before, name) + 0.4 * change(second, name) + change(after, name) + change(last, name)

    check(loaded(patched), base, weights, strength, added)
    assert (
        error(added("transformer_blocks.0.attn.to_q.weight"), change(after, "transformer_blocks.0.attn.to_q.weight"))
        > 0.1
    )


def test_a_lora_between_two_merges(model: Any, weights: Any, nodes_api: Any) -> None:
    other, file = another(), lora(1)
    first, second = merge(ratio=0.6), merge("ModelSubtract", multiplier=0.5)
    base = loaded(second(first(model, other), other))
    patched = nodes_api.apply(second(with_lora(first(model, other), file), other), weights)
    check(loaded(patched), base, weights, added=lambda name: 0.5 * change(file, name))


def test_a_lora_of_the_whole_fused_layer_keeps_the_mlps_part(model: Any, weights: Any, nodes_api: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = model.model.diffusion_model.single_blocks[1].linear1.weight.shape[0]
    file = {
        "diffusion_model.single_blocks.1.linear1.lora_A.weight": torch.randn(4, HIDDEN, generator=generator) * 0.3,
        "diffusion_model.single_blocks.1.linear1.lora_B.weight": torch.randn(rows, 4, generator=generator) * 0.3,
    }
    key = "single_blocks.1.linear1.weight"
    merged = merge(ratio=0.6)(with_lora(model, file), another())
    expected, got = loaded(merged)[key], loaded(nodes_api.apply(merged, weights))[key]
    torch.testing.assert_close(got[3 * HIDDEN :], expected[3 * HIDDEN :], rtol=1e-5, atol=1e-6)
    product = 0.6 * 0.8 * file[f"diffusion_model.{key.removesuffix('.weight')}.lora_B.weight"]
    product = product @ file[f"diffusion_model.{key.removesuffix('.weight')}.lora_A.weight"]
    distilled = [weights.attention[f"single_transformer_blocks.1.attn.to_{name}.weight"] for name in "qkv"]
    assert error(got[: 3 * HIDDEN], torch.cat(distilled) + product[: 3 * HIDDEN]) < 1e-6


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_second_model_that_has_clear_itself(model: Any, weights: Any, nodes_api: Any, strength: float) -> None:
    other, file = another(), lora(5)
    merged = merge(ratio=0.6)(model, with_lora(nodes_api.apply(other, weights, strength=strength), file))
    check(
        loaded(nodes_api.apply(merged, weights)), loaded(merged), weights, added=lambda name: 0.4 * change(file, name)
    )


def test_a_merge_in_bands(model: Any, weights: Any, nodes_api: Any) -> None:
    patched = nodes_api.apply(merge(ratio=0.6)(with_lora(model, lora(1)), another()), weights)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu,cpu", bands=3, text_merge="exact")
    assert error(sample(banded, 20, 12), sample(patched, 20, 12)) < 1e-5


def test_a_weight_that_another_node_sets_before_is_replaced_too(model: Any, weights: Any, nodes_api: Any) -> None:
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    changed = with_lora(model, lora(1))
    changed.add_patches({key: ("set", (torch.ones(HIDDEN, HIDDEN),))})
    changed = with_lora(changed, lora(2))
    name = "transformer_blocks.0.attn.to_out.0.weight"
    got = loaded(nodes_api.apply(changed, weights, strength=0.5))[key.removeprefix("diffusion_model.")]
    assert error(got, 0.5 + 0.5 * weights.attention[name] + change(lora(2), name)) < 1e-6


def test_what_only_scales_a_weight_scales_clears_too(model: Any, weights: Any, nodes_api: Any) -> None:
    """As the core's nodes that multiply attention: they bring no weight of their own."""
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    scaled = model.clone()
    scaled.add_patches({key: (None,)}, 0.0, 1.5)
    got = loaded(nodes_api.apply(scaled, weights))[key.removeprefix("diffusion_model.")]
    assert error(got, 1.5 * weights.attention["transformer_blocks.0.attn.to_out.0.weight"]) < 1e-6


def test_a_part_merged_after_a_lora_of_the_whole_is_refused(model: Any, weights: Any, nodes_api: Any) -> None:
    changed = with_lora(model, lora(1))
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    changed.add_patches({(key, (0, 0, 8)): ("diff", (torch.ones(8, HIDDEN),))}, 0.4, 0.6)
    with pytest.raises(ValueError, match=r"img_attn.proj.weight has a patch that merges only a part.*Connect Apply"):
        nodes_api.apply(changed, weights)


def test_a_merge_after_clear_is_the_users_and_is_said(
    model: Any, weights: Any, nodes_api: Any, shown: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other, file = another(), lora(2)
    patched = with_lora(nodes_api.apply(model, weights), file)
    merged = merge(ratio=0.6)(patched, other)
    base, got = loaded(other), loaded(merged)
    for name, tensor in weights.attention.items():
        key, rows = host_name(name)
        assert error(got[key][rows], 0.6 * (tensor + change(file, name)) + 0.4 * base[key][rows]) < 1e-6
    sample(merged, 8, 8)
    words = "a merge of models after this node changed 8 tensors that hold CLEAR's weights"
    assert words not in shown["CLEARApply"][0] and words in shown["CLEARApply"][-1]
    assert words in caplog.text
    for harmless in (patched, merge(ratio=1.0)(patched, other)):
        sample(harmless, 8, 8)
        assert words not in shown["CLEARApply"][-1]
