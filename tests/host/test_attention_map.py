"""CLEAR Attention Map: what it shows is what the model's own queries and keys give, recorded without the node."""

from __future__ import annotations

import logging
import re
import sys
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
from host import packs
from host.giving import conditioning
from host.oracle import with_mask

pytestmark = pytest.mark.usefixtures("previews_elsewhere")

POSITION = {"percent": 0.4, "head": -1, "x": 0.4, "y": 0.7}


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def probe(nodes_api: Any) -> Callable[..., Any]:
    """The result that the node draws: `probe(model, latent, block="s1", ...)`."""
    module = nodes_api.module("nodes.host")

    def run(model: Any, latent: Any, block: str = "s1", *, positive: Any = None, seed: int = 7, **position: Any) -> Any:
        kind = {"d": "double", "s": "single"}[block[0]]
        known = nodes_api.module("clear_core.weights").BlockId(kind, int(block[1:]))
        question = module.ProbeRequest(known, **(POSITION | position))
        latent = latent if isinstance(latent, dict) else {"samples": latent}
        return module.probe_attention(
            model, conditioning() if positive is None else positive, latent, question, seed=seed
        )

    return run


@pytest.fixture
def show(nodes_api: Any) -> Callable[..., tuple[Tensor, str]]:
    """The node itself: its picture and its text."""

    def run(model: Any, **inputs: Any) -> tuple[Tensor, str]:
        given = {"positive": conditioning(), "latent_image": {"samples": latent()}, "seed": 7, "block": "s1"}
        return nodes_api.execute("CLEARAttentionMap", model=model, **(given | POSITION | inputs))

    return run


def latent(height: int = 20, width: int = 26, channels: int = 16, seed: int = 2) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def recorded(
    model: Any, samples: Tensor, block: str, *, percent: float = POSITION["percent"], seed: int = 7, **extra: Any
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
def test_a_model_without_clear(model: Any, probe: Any, block: str, height: int, width: int) -> None:
    """Dense is its own softmax; the window is that of radius 16, over the same scores."""
    samples = latent(height, width)
    result = probe(model, samples, block)
    grid = Grid((height + 1) // 2, (width + 1) // 2)
    one = recorded(model, samples, block)
    row = result.row
    assert (row.row, row.column) == (int(0.7 * grid.height), int(0.4 * grid.width))
    index = 9 + row.row * grid.width + row.column
    assert equal(row.dense, softmax(one, index, 0.25))
    seen = visible(TokenLayout(9, grid), 16)[index]
    assert equal(row.local, softmax(one, index, 0.25, seen))
    assert torch.equal(row.visible, seen)
    assert not result.patched


@pytest.mark.parametrize("block", ["d0", "s1"])
def test_a_model_with_clear_runs_its_window_up_to_the_block(
    model: Any, nodes_api: Any, probe: Any, tmp_path: Path, block: str
) -> None:
    """Its weights and its scale, too: held against dense attention under the window's mask in every earlier layer."""
    path = tmp_path / "clear_local_4.safetensors"
    save_file(clear_tensors(model), path)
    patched = nodes_api.apply(model, nodes_api.weights(path), proportional_attention=True)
    samples, grid = latent(), Grid(10, 13)
    row = probe(patched, samples, block).row
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
    index = 9 + row.row * 13 + row.column
    assert equal(row.dense, softmax(one, index, gain / 4))
    assert equal(row.local, softmax(one, index, gain / 4, visible(TokenLayout(9, grid), 4)[index]))
    assert not equal(row.dense, softmax(one, index, 0.25)), "proportional attention is a sharper one"


def test_one_head_is_its_own_and_the_mean_is_of_all(model: Any, probe: Any) -> None:
    samples = latent()
    one = recorded(model, samples, "s1")
    heads = [probe(model, samples, head=head).row for head in (0, 1)]
    index = 9 + heads[0].row * 13 + heads[0].column
    for head, row in enumerate(heads):
        alone = SimpleNamespace(q=one.q[:, head : head + 1], k=one.k[:, head : head + 1], mask=None)
        assert equal(row.dense, softmax(alone, index, 0.25))
    both = probe(model, samples).row
    assert torch.allclose(both.dense, (heads[0].dense + heads[1].dense) / 2, atol=1e-7)
    assert not torch.allclose(heads[0].dense, heads[1].dense, atol=1e-4)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_an_attention_mask_counts(model: Any, nodes_api: Any, probe: Any, kind: str) -> None:
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
    row = probe(own, samples, "d0", positive=positive).row
    one = recorded(model, samples, "d0")
    assert one.mask is not None
    index = 9 + row.row * 13 + row.column
    assert equal(row.dense, softmax(one, index, 0.25))
    assert equal(row.local, softmax(one, index, 0.25, visible(TokenLayout(9, Grid(10, 13)), 4)[index]))
    coarse = nodes_api.apply(model, radius=4, down_factor=2)
    with pytest.raises(ValueError, match="no exact meaning for down-sampled tokens. Set down_factor"):
        probe(coarse, samples, "d0", positive=positive)


@pytest.mark.parametrize("view", ["window", "all tokens"])
def test_reference_images_count(model: Any, nodes_api: Any, probe: Any, view: str) -> None:
    reference = latent(12, 30, seed=8)
    patched = nodes_api.apply(model, radius=4, references=view)
    samples = latent()
    row = probe(patched, samples, "d0", positive=conditioning(reference_latents=[reference])).row
    one = recorded(model, samples, "d0", ref_latents=[model.model.process_latent_in(reference)])
    layout = TokenLayout(9, Grid(10, 13), (Grid(6, 15),))
    index = 9 + row.row * 13 + row.column
    assert equal(row.dense, softmax(one, index, 0.25))
    seen = visible(layout, 4, "all" if view == "all tokens" else "window")[index]
    assert equal(row.local, softmax(one, index, 0.25, seen))
    assert row.dense_mass.references > 0
    assert row.local_mass.references > 0


@pytest.mark.parametrize("learned", [True, False])
def test_down_sampled_tokens_count(
    model: Any, nodes_api: Any, probe: Any, show: Any, tmp_path: Path, learned: bool
) -> None:
    path = tmp_path / "clear_local_3_down_4.safetensors"
    tensors = clear_tensors(model, factor=4)
    save_file(tensors, path)
    weights = nodes_api.weights(path) if learned else None
    patched = nodes_api.apply(model, weights, radius=3, down_factor=4)
    samples, grid = latent(), Grid(10, 13)
    row = probe(patched, samples, "d0").row
    run_forward(patched, **inputs(4, 4))
    blended = flux_model()
    blended.model.load_state_dict(patched.model.state_dict())
    one = recorded(blended, samples, "d0")
    weight = torch.full((4, 4), 1 / 16)
    if learned:
        weight = tensors["transformer_blocks.0.attn.processor.spatial_weight"].squeeze()
    one.k = torch.cat((pool(one.k[:, :, 9:], grid, weight), one.k), dim=2)
    index = 9 + row.row * 13 + row.column
    seen = torch.cat((torch.ones(12, dtype=torch.bool), visible(TokenLayout(9, grid), 3)[index]))
    assert equal(row.local, softmax(one, index, 0.25, seen))
    assert row.local_mass.pooled == pytest.approx(float(row.local[:12].sum()))
    assert "down-sampled tokens" in show(patched)[1]


@pytest.mark.parametrize("family", ["FLUX.2", "Chroma"])
def test_other_families(host: Any, nodes_api: Any, probe: Any, family: str) -> None:
    model = flux2_model() if family == "FLUX.2" else chroma_model()
    samples = latent(10, 12, 128) if family == "FLUX.2" else latent()
    given: dict[str, Any] = {"pooled_text": None}
    if family == "Chroma":
        given["guidance"] = torch.zeros(1)
    else:  # the host fills short prompts up to 512 tokens, in front
        given["context"] = torch.nn.functional.pad(inputs(2, 2)["context"], (0, 0, 503, 0))
    positive = conditioning(guidance=3.5 if family == "FLUX.2" else 0)
    result = probe(nodes_api.apply(model, radius=4), samples, "d0", positive=positive)
    grid, text = (Grid(10, 12), 512) if family == "FLUX.2" else (Grid(10, 13), 9)
    row = result.row
    assert (result.family, row.layout.text, row.layout.image.tokens) == (family, text, grid.tokens)
    one = recorded(model, samples, "d0", **given)
    index = text + row.row * grid.width + row.column
    assert equal(row.dense, softmax(one, index, 0.25))
    assert equal(row.local, softmax(one, index, 0.25, visible(TokenLayout(text, grid), 4)[index]))


def test_attention_mass_adds_up_and_is_in_the_text(model: Any, nodes_api: Any, probe: Any, show: Any) -> None:
    patched = nodes_api.apply(model, radius=4)
    row = probe(patched, latent()).row
    for mass in (row.dense_mass, row.local_mass):
        assert mass.text + mass.image + mass.references + mass.pooled == pytest.approx(1, abs=1e-5)
    seen = visible(TokenLayout(9, Grid(10, 13)), 4)[9 + row.row * 13 + row.column, 9:]
    inside = float(row.dense[9:][seen].sum() / row.dense[9:].sum())
    assert row.inside == pytest.approx(inside)
    picture, text = show(patched)
    percent = nodes_api.module("clear_core.show.numbers").percent
    covered = percent(int(seen.sum()) / 130)
    assert f"{percent(inside)} of the dense attention to the image lies in the window, which covers {covered}" in text
    assert f"dense: text {percent(row.dense_mass.text)}, image {percent(row.dense_mass.image)}" in text
    assert f"radius 4: text {percent(row.local_mass.text)}, window {percent(row.local_mass.image)}" in text
    assert picture.shape[0] == 1 and picture.shape[-1] == 3


def test_seed_percent_position_and_latent_matter(model: Any, probe: Any) -> None:
    samples = latent()
    first = probe(model, samples).row.dense
    assert torch.equal(probe(model, samples).row.dense, first)
    others: list[dict[str, Any]] = [{"seed": 8}, {"percent": 0.5}, {"x": 0.9}, {"y": 0.1}, {"block": "s0"}]
    for other in others:
        assert not torch.allclose(probe(model, samples, **other).row.dense, first, atol=1e-5), other
    assert not torch.allclose(probe(model, latent(seed=3)).row.dense, first, atol=1e-5)
    # At the start there is noise alone, at the end none.
    assert torch.equal(
        probe(model, samples, percent=0.0).row.dense, probe(model, latent(seed=3), percent=0.0).row.dense
    )
    assert torch.equal(
        probe(model, samples, percent=1.0).row.dense, probe(model, samples, percent=1.0, seed=8).row.dense
    )


def test_corners_and_the_first_of_a_batch(model: Any, probe: Any) -> None:
    samples = torch.cat((latent(), latent(seed=3)))
    for x, y, expected in ((0.0, 0.0, (0, 0)), (1.0, 1.0, (9, 12)), (0.999, 0.0, (0, 12))):
        row = probe(model, samples, x=x, y=y).row
        assert (row.row, row.column) == expected
        assert torch.equal(row.dense, probe(model, latent(), x=x, y=y).row.dense)


def test_the_forward_ends_at_the_block_and_the_model_stays_as_it_was(
    model: Any, nodes_api: Any, probe: Any, caplog: pytest.LogCaptureFixture
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
        probe(patched, latent(), "d0")
        assert ran == []
        probe(patched, latent(), "s1")
        assert ran == ["d0", "s0"]
    for hook in hooks:
        hook.remove()
    assert "CLEAR was not used" not in caplog.text
    assert (str(patched.model_options), str(patched.wrappers), patched.patches) == before
    assert torch.equal(sample(patched, 20, 26), expected)


def test_a_pack_whose_forward_never_reaches_the_block_is_named(model: Any, probe: Any) -> None:
    without_hooks = packs.load("teacache", "teacache.nodes").apply(model)
    with pytest.raises(ValueError, match="or the forward of teacache.nodes skips or replaces the block"):
        probe(without_hooks, latent())


def test_bands_are_left_out_and_the_node_says_so(model: Any, nodes_api: Any, probe: Any, show: Any) -> None:
    patched = nodes_api.apply(model, radius=4)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=3, text_merge="exact")
    assert torch.equal(probe(banded, latent()).row.dense, probe(patched, latent()).row.dense)
    assert "CLEAR Multi-GPU was left out" in show(banded)[1]
    assert "CLEAR Multi-GPU" not in show(patched)[1]


def test_a_layer_that_runs_dense_is_said(model: Any, nodes_api: Any, show: Any) -> None:
    blocks = nodes_api.apply(model, radius=4, blocks="s0")
    assert "This layer runs dense, as asked: blocks other than s0" in show(blocks)[1]
    assert "runs dense" not in show(blocks, block="s0")[1]
    steps = nodes_api.apply(model, radius=4, end_percent=0.3)
    assert "This layer runs dense, as asked: steps outside 0 to 0.3" in show(steps)[1]
    assert "runs dense" not in show(steps, percent=0.2)[1]
    assert "This model has no CLEAR; the node uses radius 16 as an example" in show(model)[1]


def test_lora_scheduled_by_hooks_counts(model: Any, probe: Any) -> None:
    """A LoRA that the conditioning brings, as the host's hook nodes do."""
    import comfy.hooks

    generator = torch.Generator().manual_seed(9)
    lora = {
        f"transformer.transformer_blocks.0.attn.to_q.lora_{end}.weight": torch.randn(shape, generator=generator)
        for end, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    plain = probe(model, latent(), "d0").row.dense
    hooked = probe(model, latent(), "d0", positive=conditioning(hooks=hooks)).row.dense
    assert not torch.allclose(hooked, plain, atol=1e-4)
    assert torch.equal(probe(model, latent(), "d0").row.dense, plain)


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


def test_conditioning_without_a_part_for_this_area_or_time_is_named(model: Any, show: Any) -> None:
    with pytest.raises(ValueError, match=r"limited to a part of the image \(5 x 6 of 10 x 13 tokens\)"):
        show(model, positive=conditioning(area=(10, 12, 0, 0)))
    with pytest.raises(
        ValueError, match="block s1 did not run its attention at 0.4 of the schedule.*no part of the prompt"
    ):
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


class Drawn:
    """A figure's maps and texts, found again in its pixels and among its artists."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.pixels = page.pixels()
        self.axes = {axes.get_label(): axes for axes in page.figure.axes}
        legends = [text.get_text() for legend in page.figure.legends for text in legend.get_texts()]
        self.texts = [text.get_text() for text in page.figure.texts] + legends

    def tokens(self, name: str, grid: Grid) -> np.ndarray:
        """The colour in the middle of each token of a map: [height, width, 3]."""
        rows, columns = np.mgrid[: grid.height, : grid.width] + 0.5
        x, y = self.axes[name].transData.transform(np.stack((columns.ravel(), rows.ravel()), -1)).T
        return self.pixels[len(self.pixels) - 1 - y.astype(int), x.astype(int)].reshape(grid.height, grid.width, 3)


@pytest.fixture
def draw(nodes_api: Any) -> Callable[..., Drawn]:
    """The figure of a made-up query at row 10, column 8 of 20 x 30 tokens, after 4 text tokens; the radius is 5."""

    def run(dense: Tensor, local: Tensor, picture: Tensor | None = None, factor: int = 1) -> Drawn:
        rows, maps = nodes_api.module("nodes.insight.attention_row"), nodes_api.module("nodes.insight.map_figure")
        layout = nodes_api.module("clear_core.layout").TokenLayout(
            4, nodes_api.module("clear_core.layout").Grid(20, 30)
        )
        window = nodes_api.module("clear_core.window").Window(5)
        row = rows.AttentionRow(layout, 10, 8, dense / dense.sum(), local / local.sum(), seen())
        return Drawn(maps.map_page(maps.MapFigure("title", "sub", ("a", "b"), row, factor, window, picture, "verdict")))

    return run


def seen() -> Tensor:
    return visible(TokenLayout(4, Grid(20, 30)), 5)[4 + 10 * 30 + 8]


def test_the_heat_map_is_brightest_where_the_attention_is(draw: Callable[..., Drawn]) -> None:
    """Most goes to tokens far away, and, windowed, to some beside the query; what gets less is darker."""
    grid, places = Grid(20, 30), {"a": [(3, 25), (15, 2), (19, 29)], "b": [(12, 7), (9, 9), (7, 10)]}
    dense, local = torch.full((604,), 1e-3), seen() * 1e-2
    for weights, places_of in ((dense, places["a"]), (local, places["b"])):
        for (row, column), weight in zip(places_of, (0.5, 0.2, 0.1), strict=True):
            weights[4 + row * 30 + column] = weight
    for picture in (None, torch.full((20, 30), 0.2)):
        drawn = draw(dense, local, picture)
        for name, places_of in places.items():
            bright = drawn.tokens(name, grid).sum(-1).astype(float)
            assert [divmod(int(i), 30) for i in np.argsort(-bright.ravel())[:3]] == places_of
        # Outside the window nothing is drawn but the ground.
        colours = drawn.tokens("b", grid).astype(float)
        inside = seen()[4:].view(20, 30).numpy()
        assert np.ptp(colours[~inside], axis=0).max() <= 3
        assert np.abs(colours[inside] - colours[0, 0]).sum(-1).min() > 20


def test_the_picture_shows_through_where_there_is_little_attention(draw: Callable[..., Drawn]) -> None:
    picture = torch.zeros(20, 30)
    picture[:, 20:] = 1
    colours = draw(torch.ones(604), seen().float(), picture).tokens("b", Grid(20, 30)).sum(-1).astype(int)
    assert colours[5, 28] > colours[5, 1] + 100


def test_what_a_down_sampled_token_gets_is_spread_over_its_cell(draw: Callable[..., Drawn]) -> None:
    """20 x 30 tokens in cells of 4: the last column of cells has two columns of tokens."""
    local = torch.cat((torch.full((40,), 1e-5), seen() * 1e-3))
    local[3 * 8 + 7] = 1.0
    colours = draw(torch.ones(604), local, factor=4).tokens("b", Grid(20, 30)).sum(-1).astype(int)
    assert (colours[12:16, 28:] > 500).all()
    assert (colours[12:16, 28:].size, int((colours > 500).sum())) == (8, 8)


def test_the_parts_of_the_attention_are_drawn_and_named(draw: Callable[..., Drawn]) -> None:
    """Dense: a tenth to the text, a fifth of the rest to the window. CLEAR: half to the text."""
    inside = seen()[4:]
    dense = torch.cat((torch.full((4,), 0.025), torch.where(inside, 0.18 / inside.sum(), 0.72 / (~inside).sum())))
    local = torch.cat((torch.full((4,), 0.125), inside * 0.5 / inside.sum()))
    drawn = draw(dense, local)
    for text in ("title", "sub", "verdict", "a", "b"):
        assert text in drawn.texts
    named = [text for text in drawn.texts if re.match(r"[\d.]+ % ", text)]
    assert named == [
        "10 % text",
        "18 % in the window",
        "72 % elsewhere in the image",
        "50 % text",
        "50 % in the window",
    ]


def test_the_maps_lie_where_the_page_is_told(draw: Callable[..., Drawn]) -> None:
    """The brightest token is found in the picture by the place alone."""
    dense = torch.full((604,), 1e-3)
    dense[4 + 3 * 30 + 25] = 0.5
    drawn = draw(dense, seen() * 1e-2)
    left, top, right, bottom = drawn.page.place_of("a")
    assert (right - left) / (bottom - top) == pytest.approx(1.5)
    part = drawn.pixels[round(top) : round(bottom), round(left) : round(right)].sum(-1, dtype=int)
    rows, columns = np.nonzero(part == part[int(3.5 / 20 * len(part)), int(25.5 / 30 * part.shape[1])])
    assert rows.mean() / len(part) * 20 == pytest.approx(3.5, abs=0.1)
    assert columns.mean() / part.shape[1] * 30 == pytest.approx(25.5, abs=0.1)


def test_more_tokens_than_pixels_keep_the_brightest(nodes_api: Any) -> None:
    """One token of 1024 x 1024 is less than a pixel, and still seen."""
    rows, maps = nodes_api.module("nodes.insight.attention_row"), nodes_api.module("nodes.insight.map_figure")
    layout = nodes_api.module("clear_core.layout").TokenLayout(
        0, nodes_api.module("clear_core.layout").Grid(1024, 1024)
    )
    window = nodes_api.module("clear_core.window").Window(3)
    for row, column in ((700, 301), (701, 302), (702, 303)):
        weights = torch.full((1024, 1024), 1e-9)
        weights[row, column] = 1.0
        weights, mask = weights.flatten(), torch.ones(2**20, dtype=torch.bool)
        probed = rows.AttentionRow(layout, 5, 5, weights, weights, mask)
        drawn = Drawn(maps.map_page(maps.MapFigure("t", "s", ("a", "b"), probed, 1, window, None, "v")))
        ((left, bottom), (right, top)) = drawn.axes["a"].get_window_extent().get_points().astype(int)
        part = drawn.pixels[len(drawn.pixels) - top : len(drawn.pixels) - bottom, left:right].astype(int)
        y, x = np.argwhere((part[..., 0] > 230) & (part[..., 1] > 230) & (part[..., 2] < 230))[0]
        assert abs(y / len(part) * 1024 - row) < 3 and abs(x / part.shape[1] * 1024 - column) < 3


def test_a_missing_matplotlib_is_named(model: Any, show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeError, match="needs the package matplotlib.*Run pip install -r requirements.txt"):
        show(model)
