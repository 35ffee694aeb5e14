"""CLEAR Attention Map: what it shows is what the model's own queries and keys give, recorded without the node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clear_core.layout import Grid, TokenLayout
from clear_core.pooling import pool
from clear_core.scale import softmax_scale
from devtools.models import chroma_model, clear_tensors, flux2_model, flux_model, inputs, run_forward, sample

from core.naive import visible
from host.oracle import with_mask

PLACE = {"percent": 0.4, "head": -1, "x": 0.4, "y": 0.7}


@pytest.fixture(autouse=True)
def _previews_elsewhere(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def ask(nodes_api: Any) -> Callable[..., Any]:
    """The answer that the node draws: `ask(model, latent, block="s1", ...)`."""
    module = nodes_api.module("nodes.host")

    def run(model: Any, latent: Any, block: str = "s1", *, positive: Any = None, seed: int = 7, **place: Any) -> Any:
        kind = {"d": "double", "s": "single"}[block[0]]
        known = nodes_api.module("clear_core.weights").BlockId(kind, int(block[1:]))
        question = module.Question(known, **(PLACE | place))
        latent = latent if isinstance(latent, dict) else {"samples": latent}
        return module.ask_attention(
            model, conditioning() if positive is None else positive, latent, question, seed=seed
        )

    return run


@pytest.fixture
def show(nodes_api: Any) -> Callable[..., tuple[Tensor, str]]:
    """The node itself: its picture and its text."""

    def run(model: Any, **inputs: Any) -> tuple[Tensor, str]:
        given = {"positive": conditioning(), "latent_image": {"samples": latent()}, "seed": 7, "block": "s1"}
        return nodes_api.execute("CLEARAttentionMap", model=model, **(given | PLACE | inputs))

    return run


def latent(height: int = 20, width: int = 26, channels: int = 16, seed: int = 2) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def conditioning(text: int = 9, **options: Any) -> list[Any]:
    """What text encoders give for `flux_model`; 3.5 is the guidance."""
    given = inputs(2, 2, text)
    return [[given["context"], {"pooled_output": given["pooled_text"], "guidance": 3.5, **options}]]


def recorded(
    model: Any, samples: Tensor, block: str, *, percent: float = PLACE["percent"], seed: int = 7, **extra: Any
) -> SimpleNamespace:
    """q and k of a block and the mask, of a forward without the node: noise, level and conditioning put in by hand.

    What the model's own override did before is done here too.
    """
    found: list[SimpleNamespace] = []
    watched = model.clone()
    options = watched.model_options["transformer_options"]
    own = options.get("optimized_attention_override")

    def record(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Any:
        where = kwargs["transformer_options"]
        if where["block_type"][0] + str(where["block_index"]) == block:
            found.append(SimpleNamespace(q=q.clone(), k=k.clone(), mask=kwargs.get("mask")))
        return own(func, q, k, v, heads, **kwargs) if own else func(q, k, v, heads, **kwargs)

    options["optimized_attention_override"] = record
    sigma = model.get_model_object("model_sampling").percent_to_sigma(percent)
    noise = torch.randn(samples.shape, generator=torch.manual_seed(seed))
    noised = sigma * noise + (1 - sigma) * model.model.process_latent_in(samples)
    given = {**inputs(2, 2), "latent": noised, "timestep": torch.full((1,), sigma)}
    run_forward(watched, **(given | extra))
    return found[0]


def softmax(one: SimpleNamespace, index: int, scale: float, seen: Tensor | None = None) -> Tensor:
    """A query's attention from the definition, float64, the mean of the heads."""
    scores = torch.einsum("hd,hkd->hk", one.q[0, :, index].double(), one.k[0].double()) * scale
    if one.mask is not None:
        bias = one.mask[0, index]
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(-1).mean(0)


def equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < 2e-6 and abs(float(found.sum()) - 1) < 1e-5)


@pytest.mark.parametrize("block", ["d0", "s0", "s1"])
@pytest.mark.parametrize(("height", "width"), [(20, 26), (23, 31)])
def test_a_model_without_clear(model: Any, ask: Any, block: str, height: int, width: int) -> None:
    """Dense is its own softmax; the window is that of radius 16, over the same scores."""
    samples = latent(height, width)
    answer = ask(model, samples, block)
    grid = Grid((height + 1) // 2, (width + 1) // 2)
    one = recorded(model, samples, block)
    look = answer.look
    assert (look.row, look.column) == (int(0.7 * grid.height), int(0.4 * grid.width))
    index = 9 + look.row * grid.width + look.column
    assert equal(look.dense, softmax(one, index, 0.25))
    seen = visible(TokenLayout(9, grid), 16)[index]
    assert equal(look.local, softmax(one, index, 0.25, seen))
    assert torch.equal(look.visible, seen)
    assert not answer.patched


@pytest.mark.parametrize("block", ["d0", "s1"])
def test_a_model_with_clear_runs_its_window_up_to_the_block(
    model: Any, nodes_api: Any, ask: Any, tmp_path: Path, block: str
) -> None:
    """Its weights and its scale, too: held against dense attention under the window's mask in every earlier layer."""
    path = tmp_path / "clear_local_4.safetensors"
    save_file(clear_tensors(model), path)
    patched = nodes_api.apply(model, nodes_api.weights(path), proportional_attention=True)
    samples, grid = latent(), Grid(10, 13)
    look = ask(patched, samples, block).look
    # The oracle has neither the node's hooks nor its weights: it is given the layers that the node blended in.
    run_forward(patched, **inputs(4, 4))
    blended = flux_model()
    blended.model.load_state_dict(patched.model.state_dict())
    gain = softmax_scale(16, 9 + grid.tokens, proportional=True) * 4
    masked = with_mask(blended, grid, 4)
    inner = masked.model_options["transformer_options"]["optimized_attention_override"]

    def sharpened(func: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return inner(func, q * gain, *args, **kwargs)

    masked.model_options["transformer_options"]["optimized_attention_override"] = sharpened
    one = recorded(masked, samples, block)
    index = 9 + look.row * 13 + look.column
    assert equal(look.dense, softmax(one, index, gain / 4))
    assert equal(look.local, softmax(one, index, gain / 4, visible(TokenLayout(9, grid), 4)[index]))
    assert not equal(look.dense, softmax(one, index, 0.25)), "proportional attention is a sharper one"


def test_one_head_is_its_own_and_the_mean_is_of_all(model: Any, ask: Any) -> None:
    samples = latent()
    one = recorded(model, samples, "s1")
    heads = [ask(model, samples, head=head).look for head in (0, 1)]
    index = 9 + heads[0].row * 13 + heads[0].column
    for head, look in enumerate(heads):
        alone = SimpleNamespace(q=one.q[:, head : head + 1], k=one.k[:, head : head + 1], mask=None)
        assert equal(look.dense, softmax(alone, index, 0.25))
    both = ask(model, samples).look
    assert torch.allclose(both.dense, (heads[0].dense + heads[1].dense) / 2, atol=1e-7)
    assert not torch.allclose(heads[0].dense, heads[1].dense, atol=1e-4)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_an_attention_mask_counts(model: Any, nodes_api: Any, ask: Any, kind: str) -> None:
    mask = torch.randn(1, 139, 139, generator=torch.Generator().manual_seed(4))
    mask = mask > -1 if kind == "bool" else mask
    samples = latent()
    positive = conditioning(attention_mask=mask)
    own = nodes_api.apply(model, radius=4)

    # Conditioning nodes bring masks that the host makes; here the model's own wrapper puts one in.
    def masked(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **{**kwargs, "attention_mask": mask})

    for target in (model, own):
        target.add_wrapper_with_key("diffusion_model", "mask", masked)
    look = ask(own, samples, "d0", positive=positive).look
    one = recorded(model, samples, "d0")
    assert one.mask is not None
    index = 9 + look.row * 13 + look.column
    assert equal(look.dense, softmax(one, index, 0.25))
    assert equal(look.local, softmax(one, index, 0.25, visible(TokenLayout(9, Grid(10, 13)), 4)[index]))
    coarse = nodes_api.apply(model, radius=4, down_factor=2)
    with pytest.raises(ValueError, match="no exact meaning for down-sampled tokens. Set down_factor"):
        ask(coarse, samples, "d0", positive=positive)


@pytest.mark.parametrize("view", ["window", "all tokens"])
def test_reference_images_count(model: Any, nodes_api: Any, ask: Any, view: str) -> None:
    reference = latent(12, 30, seed=8)
    patched = nodes_api.apply(model, radius=4, references=view)
    samples = latent()
    look = ask(patched, samples, "d0", positive=conditioning(reference_latents=[reference])).look
    one = recorded(model, samples, "d0", ref_latents=[model.model.process_latent_in(reference)])
    layout = TokenLayout(9, Grid(10, 13), (Grid(6, 15),))
    index = 9 + look.row * 13 + look.column
    assert equal(look.dense, softmax(one, index, 0.25))
    seen = visible(layout, 4, "all" if view == "all tokens" else "window")[index]
    assert equal(look.local, softmax(one, index, 0.25, seen))
    assert look.dense_shares.references > 0
    assert look.local_shares.references > 0


@pytest.mark.parametrize("learned", [True, False])
def test_the_coarse_view_counts(model: Any, nodes_api: Any, ask: Any, show: Any, tmp_path: Path, learned: bool) -> None:
    path = tmp_path / "clear_local_3_down_4.safetensors"
    tensors = clear_tensors(model, factor=4)
    save_file(tensors, path)
    weights = nodes_api.weights(path) if learned else None
    patched = nodes_api.apply(model, weights, radius=3, down_factor=4)
    samples, grid = latent(), Grid(10, 13)
    look = ask(patched, samples, "d0").look
    run_forward(patched, **inputs(4, 4))
    blended = flux_model()
    blended.model.load_state_dict(patched.model.state_dict())
    one = recorded(blended, samples, "d0")
    weight = torch.full((4, 4), 1 / 16)
    if learned:
        weight = tensors["transformer_blocks.0.attn.processor.spatial_weight"].squeeze()
    one.k = torch.cat((pool(one.k[:, :, 9:], grid, weight), one.k), dim=2)
    index = 9 + look.row * 13 + look.column
    seen = torch.cat((torch.ones(12, dtype=torch.bool), visible(TokenLayout(9, grid), 3)[index]))
    assert equal(look.local, softmax(one, index, 0.25, seen))
    assert look.local_shares.coarse == pytest.approx(float(look.local[:12].sum()))
    assert "coarse view" in show(patched)[1]


@pytest.mark.parametrize("family", ["FLUX.2", "Chroma"])
def test_other_families(host: Any, nodes_api: Any, ask: Any, family: str) -> None:
    model = flux2_model() if family == "FLUX.2" else chroma_model()
    samples = latent(10, 12, 128) if family == "FLUX.2" else latent()
    given: dict[str, Any] = {"pooled_text": None}
    if family == "Chroma":
        given["guidance"] = torch.zeros(1)
    else:  # the host fills short prompts up to 512 tokens, in front
        given["context"] = torch.nn.functional.pad(inputs(2, 2)["context"], (0, 0, 503, 0))
    positive = conditioning(guidance=3.5 if family == "FLUX.2" else 0)
    answer = ask(nodes_api.apply(model, radius=4), samples, "d0", positive=positive)
    grid, text = (Grid(10, 12), 512) if family == "FLUX.2" else (Grid(10, 13), 9)
    look = answer.look
    assert (answer.family, look.layout.text, look.layout.image.tokens) == (family, text, grid.tokens)
    one = recorded(model, samples, "d0", **given)
    index = text + look.row * grid.width + look.column
    assert equal(look.dense, softmax(one, index, 0.25))
    assert equal(look.local, softmax(one, index, 0.25, visible(TokenLayout(text, grid), 4)[index]))


def test_shares_add_up_and_the_node_says_them(model: Any, nodes_api: Any, ask: Any, show: Any) -> None:
    patched = nodes_api.apply(model, radius=4)
    look = ask(patched, latent()).look
    for shares in (look.dense_shares, look.local_shares):
        assert shares.text + shares.image + shares.references + shares.coarse == pytest.approx(1, abs=1e-5)
    seen = visible(TokenLayout(9, Grid(10, 13)), 4)[9 + look.row * 13 + look.column, 9:]
    inside = float(look.dense[9:][seen].sum() / look.dense[9:].sum())
    assert look.inside == pytest.approx(inside)
    picture, text = show(patched)
    percent = nodes_api.module("nodes.insight.canvas").percent
    assert f"Inside the window: {percent(inside)} of what the dense query looks at in the image" in text
    assert f"The window is {percent(int(seen.sum()) / 130)} of the image" in text
    assert f"dense: text {percent(look.dense_shares.text)}, image {percent(look.dense_shares.image)}" in text
    assert f"radius 4: text {percent(look.local_shares.text)}, window {percent(look.local_shares.image)}" in text
    assert picture.shape[0] == 1 and picture.shape[-1] == 3


def test_seed_percent_place_and_latent_matter(model: Any, ask: Any) -> None:
    samples = latent()
    first = ask(model, samples).look.dense
    assert torch.equal(ask(model, samples).look.dense, first)
    others: list[dict[str, Any]] = [{"seed": 8}, {"percent": 0.5}, {"x": 0.9}, {"y": 0.1}, {"block": "s0"}]
    for other in others:
        assert not torch.allclose(ask(model, samples, **other).look.dense, first, atol=1e-5), other
    assert not torch.allclose(ask(model, latent(seed=3)).look.dense, first, atol=1e-5)
    # At the start there is noise alone, at the end none.
    assert torch.equal(ask(model, samples, percent=0.0).look.dense, ask(model, latent(seed=3), percent=0.0).look.dense)
    assert torch.equal(ask(model, samples, percent=1.0).look.dense, ask(model, samples, percent=1.0, seed=8).look.dense)


def test_corners_and_the_first_of_a_batch(model: Any, ask: Any) -> None:
    samples = torch.cat((latent(), latent(seed=3)))
    for x, y, place in ((0.0, 0.0, (0, 0)), (1.0, 1.0, (9, 12)), (0.999, 0.0, (0, 12))):
        look = ask(model, samples, x=x, y=y).look
        assert (look.row, look.column) == place
        assert torch.equal(look.dense, ask(model, latent(), x=x, y=y).look.dense)


def test_the_forward_ends_at_the_block_and_the_model_stays_as_it_was(
    model: Any, nodes_api: Any, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    patched = nodes_api.apply(model, radius=4)
    expected = sample(patched, 20, 26)
    before = (str(patched.model_options), str(patched.wrappers), dict(patched.patches))
    ran: list[str] = []
    flux = patched.model.diffusion_model
    hooks = [
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, block in (("d0", flux.double_blocks[0]), ("s0", flux.single_blocks[0]), ("s1", flux.single_blocks[1]))
    ]
    with caplog.at_level(logging.WARNING):
        ask(patched, latent(), "d0")
        assert ran == []
        ask(patched, latent(), "s1")
        assert ran == ["d0", "s0"]
    for hook in hooks:
        hook.remove()
    assert "CLEAR was not used" not in caplog.text
    assert (str(patched.model_options), str(patched.wrappers), patched.patches) == before
    assert torch.equal(sample(patched, 20, 26), expected)


def test_bands_are_left_out_and_the_node_says_so(model: Any, nodes_api: Any, ask: Any, show: Any) -> None:
    patched = nodes_api.apply(model, radius=4)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=3, text_merge="exact")
    assert torch.equal(ask(banded, latent()).look.dense, ask(patched, latent()).look.dense)
    assert "CLEAR Multi-GPU was left out" in show(banded)[1]
    assert "CLEAR Multi-GPU" not in show(patched)[1]


def test_a_layer_that_runs_dense_is_said(model: Any, nodes_api: Any, show: Any) -> None:
    blocks = nodes_api.apply(model, radius=4, blocks="s0")
    assert "This layer runs dense, as asked: blocks other than s0" in show(blocks)[1]
    assert "runs dense" not in show(blocks, block="s0")[1]
    steps = nodes_api.apply(model, radius=4, end_percent=0.3)
    assert "This layer runs dense, as asked: steps outside 0 to 0.3" in show(steps)[1]
    assert "runs dense" not in show(steps, percent=0.2)[1]
    assert "This model has no CLEAR: radius 16" in show(model)[1]


def test_lora_scheduled_by_hooks_counts(model: Any, ask: Any) -> None:
    """A LoRA that the conditioning brings, as the host's hook nodes do."""
    import comfy.hooks

    generator = torch.Generator().manual_seed(9)
    lora = {
        f"transformer.transformer_blocks.0.attn.to_q.lora_{end}.weight": torch.randn(shape, generator=generator)
        for end, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    plain = ask(model, latent(), "d0").look.dense
    hooked = ask(model, latent(), "d0", positive=conditioning(hooks=hooks)).look.dense
    assert not torch.allclose(hooked, plain, atol=1e-4)
    assert torch.equal(ask(model, latent(), "d0").look.dense, plain)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"percent": 1.5}, "percent is 1.5; allowed is 0 to 1"),
        ({"x": float("nan")}, "x is nan; allowed is 0 to 1"),
        ({"y": -0.1}, "y is -0.1; allowed is 0 to 1"),
        ({"block": "all"}, "block is 'all'; write one block.*such as d3 or s12"),
        ({"block": "s0-1"}, "block is 's0-1'; write one block"),
        ({"block": "x3"}, "block is 'x3'; write one block"),
        ({"block": "s2"}, "block is s2; this model has 1 double and 2 single blocks: d0 to d0 and s0 to s1"),
        ({"block": "d1"}, "block is d1; this model has 1 double and 2 single blocks"),
        ({"head": 2}, "head is 2; this model has 2 heads: 0 to 1, or -1 for the mean of all"),
        ({"head": -2}, "head is -2; this model has 2 heads"),
        ({"positive": []}, "positive is empty: connect a prompt"),
        ({"latent_image": {"samples": latent(channels=4)}}, r"shape \(1, 4, 20, 26\); this model takes \[batch, 16"),
        ({"latent_image": {"samples": latent()[:0]}}, r"shape \(0, 16, 20, 26\)"),
    ],
)
def test_what_cannot_be_is_named(model: Any, show: Any, values: dict[str, Any], words: str) -> None:
    before = (str(model.model_options), dict(model.patches))
    with pytest.raises(ValueError, match=words):
        show(model, **values)
    assert (str(model.model_options), model.patches) == before


def test_impossible_inputs_are_refused_when_the_prompt_is_queued(pack: dict[str, Any]) -> None:
    node = pack["CLEARAttentionMap"]
    assert "percent is nan" in node.validate_inputs(percent=float("nan"))
    assert "block is 'single'" in node.validate_inputs(block="single")
    assert node.validate_inputs(percent=0.0, block="d3", x=1.0, y=None) is True


def test_conditioning_without_a_part_for_this_place_or_time_is_named(model: Any, show: Any) -> None:
    with pytest.raises(ValueError, match=r"limited to a part of the image \(5 x 6 of 10 x 13 tokens\)"):
        show(model, positive=conditioning(area=(10, 12, 0, 0)))
    with pytest.raises(ValueError, match="block s1 did not attend at 0.4 of the schedule.*no part of the prompt"):
        show(model, positive=conditioning(start_percent=0.6, end_percent=1.0))


def test_other_models_are_named(model: Any, show: Any) -> None:
    model.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"this model is Flux \(Identity\)"):
        show(model)


def test_a_cancelled_run_ends_at_once(model: Any, show: Any) -> None:
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        show(model)
    show(model)


def test_the_heat_map_is_brightest_where_the_attention_is(nodes_api: Any) -> None:
    """A made-up query that gives most to one token far away, and, windowed, to one beside it."""
    grid = nodes_api.module("clear_core.layout").Grid(20, 30)
    window = nodes_api.module("clear_core.window").Window(5)
    layout = nodes_api.module("clear_core.layout").TokenLayout(4, grid)
    seen = visible(TokenLayout(4, Grid(20, 30)), 5)[4 + 10 * 30 + 8]
    dense, local = torch.full((604,), 1e-4), seen * 1e-3
    dense[4 + 3 * 30 + 25] = local[4 + 12 * 30 + 7] = 0.5
    look = nodes_api.module("nodes.insight.probe").Look(layout, 10, 8, dense / dense.sum(), local / local.sum(), seen)
    page = nodes_api.module("nodes.insight.map_figure").MapPage("t", "s", ("a", "b"), look, 1, window, None, "v")
    picture = nodes_api.module("nodes.insight.map_figure").map_picture(page)[0].numpy()
    for number, (row, column) in enumerate(((3, 25), (12, 7))):
        left = 48 + number * 766 + 20
        part = picture[192 : 192 + 465, left : left + 698]
        # White is the window's border; the brightest colour of the map is a warm one.
        brightest = np.abs(part - np.array([253, 246, 201]) / 255).sum(-1) < 0.1
        y, x = np.argwhere(brightest).mean(0)
        assert (int(y / 465 * 20), int(x / 698 * 30)) == (row, column)
