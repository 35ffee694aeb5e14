"""Apply CLEAR Attention on models of the host's own classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clear_core.layout import Grid
from devtools.models import clear_tensors, flux_model, inputs, run_forward, sample

from host.oracle import with_mask


def close(out: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((out - expected).norm() / expected.norm() < tolerance)


def state(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def weights(model: Any, nodes_api: Any, tmp_path: Path) -> Any:
    path = tmp_path / "clear_local_3.safetensors"
    save_file(clear_tensors(model), path)
    return nodes_api.weights(path)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "masked", "reference"])
@pytest.mark.parametrize(("height", "width"), [(24, 34), (23, 31)])
def test_the_window_is_dense_attention_under_its_mask(
    model: Any, nodes_api: Any, backend: str, height: int, width: int
) -> None:
    given = inputs(height, width, batch=2)
    out = run_forward(nodes_api.apply(model, radius=4, backend=backend), **given)
    expected = run_forward(with_mask(model, Grid((height + 1) // 2, (width + 1) // 2), 4), **given)
    assert close(out, expected)
    assert not close(out, run_forward(model, **given), 1e-3)


def test_strength_0_with_a_window_larger_than_the_image_is_the_unpatched_model(
    model: Any, weights: Any, nodes_api: Any
) -> None:
    given = inputs(20, 28)
    expected = run_forward(model, **given)
    assert close(run_forward(nodes_api.apply(model, weights, radius=128, strength=0.0), **given), expected, 1e-6)
    assert close(run_forward(nodes_api.apply(model, radius=128), **given), expected, 1e-6)


def test_strength_blends_the_weights(model: Any, weights: Any, nodes_api: Any) -> None:
    name = "double_blocks.0.img_attn.proj.weight"
    own = model.model.diffusion_model.state_dict()[name].clone()
    distilled = weights.attention["transformer_blocks.0.attn.to_out.0.weight"]
    for strength in (1.0, 0.25):
        run_forward(nodes_api.apply(model, weights, strength=strength), **inputs(8, 8))
        blended = model.model.diffusion_model.state_dict()[name]
        torch.testing.assert_close(blended, own * (1 - strength) + distilled * strength)


def test_the_text_stream_and_the_mlps_stay_the_models_own(model: Any, weights: Any, nodes_api: Any) -> None:
    before = state(model)
    run_forward(nodes_api.apply(model, weights), **inputs(8, 8))
    hidden = model.model.diffusion_model.hidden_size
    after = model.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {
        f"diffusion_model.{name}.{end}"
        for name in (
            "double_blocks.0.img_attn.qkv",
            "double_blocks.0.img_attn.proj",
            "single_blocks.0.linear1",
            "single_blocks.1.linear1",
        )
        for end in ("weight", "bias")
    }
    mlp = "diffusion_model.single_blocks.0.linear1.weight"
    assert torch.equal(before[mlp][3 * hidden :], after[mlp][3 * hidden :])


def test_unloading_restores_every_bit_and_the_input_model_never_changes(
    model: Any, weights: Any, nodes_api: Any
) -> None:
    before, given = state(model), inputs(16, 20)
    sibling = model.clone()
    expected = run_forward(model, **given)
    options, patches = str(model.model_options), dict(model.patches)
    patched = nodes_api.apply(model, weights, ntk_factor=4.0)
    assert (str(model.model_options), model.patches, model.wrappers) == (options, patches, {})
    out = run_forward(patched, **given)
    for other in (model, sibling):
        assert torch.equal(run_forward(other, **given), expected)
    assert torch.equal(run_forward(patched, **given), out)
    patched.detach()
    after = model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.model.diffusion_model.pe_embedder.theta == 10000


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_lora_and_clear_give_the_same_in_either_order(
    model: Any, weights: Any, nodes_api: Any, strength: float
) -> None:
    import comfy.sd

    generator = torch.Generator().manual_seed(9)
    lora = {}
    for name, rows in (
        ("transformer.transformer_blocks.0.attn.to_q", 32),
        ("transformer.transformer_blocks.0.attn.to_out.0", 32),
        ("transformer.single_transformer_blocks.1.attn.to_v", 32),
        ("transformer.single_transformer_blocks.1.proj_mlp", 128),
    ):
        lora[f"{name}.lora_A.weight"] = torch.randn(4, 32, generator=generator) * 0.3
        lora[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.3

    def with_lora(target: Any) -> Any:
        patched, _ = comfy.sd.load_lora_for_models(target, None, lora, 0.8, 0.0)
        assert patched.patches
        return patched

    given = inputs(18, 22)
    before = run_forward(nodes_api.apply(with_lora(model), weights, strength=strength), **given)
    after = run_forward(with_lora(nodes_api.apply(model, weights, strength=strength)), **given)
    without = run_forward(nodes_api.apply(model, weights, strength=strength), **given)
    assert close(before, after, 1e-6)
    assert not close(before, without, 1e-3)

    # And it is the LoRA's own change on top of the blended weights, nothing else.
    run_forward(with_lora(nodes_api.apply(model, weights, strength=strength)), **given)
    got = model.model.diffusion_model.state_dict()["double_blocks.0.img_attn.proj.weight"].clone()
    run_forward(model, **given)
    own = model.model.diffusion_model.state_dict()["double_blocks.0.img_attn.proj.weight"]
    key = "transformer_blocks.0.attn.to_out.0"
    change = lora[f"transformer.{key}.lora_B.weight"] @ lora[f"transformer.{key}.lora_A.weight"]
    blended = own * (1 - strength) + weights.attention[f"{key}.weight"] * strength
    torch.testing.assert_close(got, blended + 0.8 * change, rtol=1e-5, atol=1e-6)


def test_text_size_and_batch_may_change_from_call_to_call(model: Any, nodes_api: Any) -> None:
    patched = nodes_api.apply(model, radius=3)
    for height, width, text, batch in ((16, 20, 9, 1), (20, 16, 2, 1), (16, 20, 33, 3), (9, 40, 1, 2), (16, 20, 9, 1)):
        given = inputs(height, width, text, batch)
        expected = run_forward(with_mask(model, Grid((height + 1) // 2, width // 2), 3), **given)
        assert close(run_forward(patched, **given), expected)


def test_clones_with_other_settings_run_one_after_the_other(model: Any, weights: Any, nodes_api: Any) -> None:
    given = inputs(20, 20)
    first = nodes_api.apply(model, weights, radius=2)
    second = nodes_api.apply(model, radius=6, ntk_factor=10.0)
    fresh = [run_forward(first, **given), run_forward(second, **given)]
    assert not close(fresh[0], fresh[1], 1e-3)
    for _ in range(2):
        assert torch.equal(run_forward(first, **given), fresh[0])
        assert torch.equal(run_forward(second, **given), fresh[1])


def test_tokens_that_another_patch_adds_are_text(model: Any, nodes_api: Any) -> None:
    def longer(args: dict[str, Any]) -> dict[str, Any]:
        txt, ids = args["txt"], args["txt_ids"]
        return {**args, "txt": torch.cat((txt, txt[:, :3]), 1), "txt_ids": torch.cat((ids, ids[:, :3]), 1)}

    model = model.clone()
    model.set_model_patch(longer, "post_input")
    given = inputs(16, 18)
    expected = run_forward(with_mask(model, Grid(8, 9), 3), **given)
    assert close(run_forward(nodes_api.apply(model, radius=3), **given), expected)


@pytest.mark.parametrize("view", ["window", "all tokens"])
@pytest.mark.parametrize("sizes", [[(20, 16)], [(20, 16), (12, 30)]])
def test_reference_images_are_seen_as_defined(
    model: Any, nodes_api: Any, view: str, sizes: list[tuple[int, int]]
) -> None:
    given = inputs(20, 16)
    latents = [torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(7)) for size in sizes]
    grids = tuple(Grid(height // 2, width // 2) for height, width in sizes)
    out = run_forward(nodes_api.apply(model, radius=3, references=view), **given, ref_latents=latents)
    oracle = with_mask(model, Grid(10, 8), 3, grids, "all" if view == "all tokens" else "window")
    assert close(out, run_forward(oracle, **given, ref_latents=latents))


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_an_attention_mask_is_honoured(model: Any, nodes_api: Any, kind: str) -> None:
    given = inputs(16, 14)
    tokens = 9 + 8 * 7
    mask = torch.randn(1, tokens, tokens, generator=torch.Generator().manual_seed(4))
    mask = mask > -1 if kind == "bool" else mask
    out = run_forward(nodes_api.apply(model, radius=3), **given, attention_mask=mask)
    expected = run_forward(with_mask(model, Grid(8, 7), 3), **given, attention_mask=mask)
    assert close(out, expected)
    assert not close(out, run_forward(nodes_api.apply(model, radius=3), **given), 1e-3)


def test_what_no_backend_can_do_runs_dense_and_says_why(
    model: Any, nodes_api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = inputs(16, 14)
    mask = torch.randn(1, 65, 65)
    output = nodes_api.apply_output(model, radius=3, down_factor=2)
    with caplog.at_level(logging.WARNING):
        out = run_forward(output.args[0], **given, attention_mask=mask)
        run_forward(output.args[0], **given, attention_mask=mask)
    assert close(out, run_forward(model, **given, attention_mask=mask), 1e-6)
    said = [record.message for record in caplog.records if "CLEAR runs dense" in record.message]
    assert len(said) == 1
    assert "no exact meaning for down-sampled tokens" in said[0]
    with pytest.raises(Exception, match="The backend 'sdpa' cannot run this attention call"):
        run_forward(nodes_api.apply(model, radius=3, down_factor=2, backend="sdpa"), **given, attention_mask=mask)


def test_an_argument_of_a_newer_host_is_not_ignored(model: Any, nodes_api: Any) -> None:
    patched = nodes_api.apply(model, radius=2)
    override = patched.model_options["transformer_options"]["optimized_attention_override"]
    frame = nodes_api.module("nodes.host").Frame(nodes_api.module("clear_core.layout").Grid(4, 4), (), True)
    asked: list[dict[str, Any]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> str:
        asked.append(kwargs)
        return "dense"

    q = torch.randn(1, 2, 20, 16)
    options = {"clear_attention_frame": frame, "block_type": "double", "block_index": 0}
    common = {"skip_reshape": True, "transformer_options": options}
    assert isinstance(override(attention, q, q, q, 2, mask=None, low_precision_attention=True, **common), Tensor)
    assert override(attention, q, q, q, 2, mask=None, softcap=0.3, **common) == "dense"
    assert asked[0]["softcap"] == 0.3
    assert override(attention, q, q[:, :, :7], q[:, :, :7], 2, **common) == "dense"
    assert override(attention, q, q, q, 2, skip_reshape=True, transformer_options={}) == "dense"
    merged = override(attention, q, q, q, 2, **common)
    heads_apart = override(attention, q, q, q, 2, skip_output_reshape=True, **common)
    assert torch.equal(heads_apart.transpose(1, 2).flatten(2), merged)

    # A scale of the caller's own, and grouped queries with as many heads in the keys: the same attention.
    assert torch.equal(override(attention, q, q, q, 2, enable_gqa=True, **common), merged)
    scaled = override(attention, q, q, q, 2, scale=0.3, **common)
    assert close(scaled, override(attention, q * 0.3 * 4, q, q, 2, **common), 1e-6)
    assert not close(scaled, merged, 1e-3)
    assert override(attention, q, q[:, :1], q[:, :1], 2, enable_gqa=True, **common) == "dense"


def test_another_override_gets_what_clear_leaves_and_is_named(model: Any, nodes_api: Any) -> None:
    calls: list[int] = []

    def sage(func: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(q.shape[2])
        return func(q, *args, **kwargs)

    sage.__module__ = "ComfyUI/custom_nodes/SageAttention.nodes"
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = sage
    output = nodes_api.apply_output(model, radius=2)
    assert "go to SageAttention.nodes" in output.ui["text"][0]
    run_forward(output.args[0], **inputs(8, 8))
    assert calls == []
    run_forward(nodes_api.apply(model, radius=2, end_percent=0.1), **inputs(8, 8))
    assert calls == [25, 25, 25]


def test_an_override_that_takes_over_is_noticed(model: Any, nodes_api: Any, caplog: pytest.LogCaptureFixture) -> None:
    def rude(func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    rude.__module__ = "ComfyUI/custom_nodes/Rude.nodes"
    patched = nodes_api.apply(model, radius=2)
    patched.model_options["transformer_options"]["optimized_attention_override"] = rude
    with caplog.at_level(logging.WARNING):
        sample(patched, 8, 8)
    assert "CLEAR was not used: Rude.nodes took over" in caplog.text


def test_the_window_is_used_in_its_part_of_sampling_only(model: Any, nodes_api: Any) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    used: list[tuple[float, str]] = []

    def watch(patched: Any) -> Any:
        inner = patched.model_options["transformer_options"]["optimized_attention_override"]

        def watched(func: Any, *args: Any, **kwargs: Any) -> Any:
            ran: list[str] = []
            out = inner(lambda *a, **k: ran.append("dense") or func(*a, **k), *args, **kwargs)
            used.append((float(kwargs["transformer_options"]["sigmas"][0]), ran[0] if ran else "window"))
            return out

        patched.model_options["transformer_options"]["optimized_attention_override"] = watched
        return patched

    patched = watch(nodes_api.apply(model, radius=2, start_percent=0.25, end_percent=0.75))
    # The schedule is changed after CLEAR, as people wire it.
    patched = ModelSamplingFlux().patch(patched, 2.0, 0.5, 64, 64)[0]
    sample(patched, 16, 16, steps=8)
    sampling = patched.get_model_object("model_sampling")
    start, end = sampling.percent_to_sigma(0.25), sampling.percent_to_sigma(0.75)
    assert {how for _, how in used} == {"dense", "window"}
    assert all((how == "window") == (end <= sigma <= start) for sigma, how in used)


def test_dense_steps_keep_proportional_attention(model: Any, nodes_api: Any) -> None:
    from clear_core.scale import proportional_gain

    given = inputs(16, 16)
    out = run_forward(nodes_api.apply(model, radius=2, end_percent=0.01, proportional_attention=True), **given)
    scaled = model.clone()

    def gain(func: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return func(q * proportional_gain(9 + 64), *args, **kwargs)

    scaled.model_options["transformer_options"]["optimized_attention_override"] = gain
    assert close(out, run_forward(scaled, **given))
    assert not close(out, run_forward(model, **given), 1e-5)


def test_down_sampled_tokens_without_weights_are_means(model: Any, nodes_api: Any, tmp_path: Path) -> None:
    given = inputs(22, 18)
    plain = nodes_api.apply_output(model, radius=2, down_factor=2)
    assert "mean pooling" in plain.ui["text"][0]
    assert "untrained" in plain.ui["text"][0]
    path = tmp_path / "clear_local_2_down_2.safetensors"
    save_file(clear_tensors(model, factor=2), path)
    weights = nodes_api.weights(path)
    learned = nodes_api.apply_output(model, weights)
    assert "learned pooling" in learned.ui["text"][0]
    # At strength 0 the learned pooling has faded into the mean, too.
    faded = run_forward(nodes_api.apply(model, weights, strength=0.0), **given)
    assert close(faded, run_forward(plain.args[0], **given))
    assert not close(run_forward(learned.args[0], **given), faded, 1e-3)
    assert not close(run_forward(nodes_api.apply(model, weights, down_factor=1, strength=0.0), **given), faded, 1e-4)


@pytest.mark.parametrize("channels", [16, 32, 96])
@pytest.mark.parametrize("guided", [True, False])
def test_fill_depth_and_schnell_are_flux_too(host: Any, nodes_api: Any, channels: int, guided: bool) -> None:
    model = flux_model(in_channels=channels, guidance_embed=guided)
    given: dict[str, Any] = dict(inputs(16, 20))
    if channels > 16:
        given["c_concat"] = torch.randn(1, channels - 16, 16, 20, generator=torch.Generator().manual_seed(2))
    if not guided:
        given["guidance"] = None
    expected = run_forward(with_mask(model, Grid(8, 10), 3), **given)
    assert close(run_forward(nodes_api.apply(model, radius=3), **given), expected)


def test_a_whole_run_samples_previews_and_reports(model: Any, weights: Any, nodes_api: Any) -> None:
    patched = nodes_api.apply(model, weights)
    out = sample(patched, 20, 26)
    expected = sample(patched, 20, 26)
    assert torch.equal(out, expected)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(model, 20, 26))


def test_an_interruption_comes_through_at_once_and_the_model_still_works(
    model: Any, weights: Any, nodes_api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy.model_management

    patched = nodes_api.apply(model, weights)
    expected = sample(patched, 16, 16)
    layers: list[int] = []

    def interrupt(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        layers.append(1)
        comfy.model_management.interrupt_current_processing()
        return extra["original_block"](args)

    cancelled = patched.clone()
    cancelled.set_model_patch_replace(interrupt, "dit", "double_block", 0)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(cancelled, 16, 16)
    assert len(layers) == 1
    assert "CLEAR was not used" not in caplog.text
    assert torch.equal(sample(patched, 16, 16), expected)
