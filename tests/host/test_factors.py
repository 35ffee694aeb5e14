"""CLEAR Factors: what it measures is what the model's own queries, keys and values give, recorded without the node."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clear_core.factors import measure
from clear_core.layout import Grid, TokenLayout
from clear_core.strategies import Circle
from devtools.models import chroma_model, clear_tensors, flux2_model, flux_model, inputs, run_forward

from host.executing import Graph, Machine
from host.giving import conditioning

pytestmark = pytest.mark.usefixtures("previews_elsewhere")

BLOCKS = ("d0", "s0", "s1")
GRID = Grid(6, 8)
LAYOUT = TokenLayout(9, GRID)
PERCENTS = (0.2, 0.6)


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def study(nodes_api: Any) -> Callable[..., Any]:
    """What the node measures: `study(model, percents="0.5", ...)`."""
    module, options = nodes_api.module("nodes.host"), nodes_api.module("nodes.options.factors")

    def run(model: Any, samples: Tensor | None = None, *, positive: Any = None, seed: int = 7, **values: Any) -> Any:
        request = options.FactorsInputs(**{"percents": "0.2, 0.6", **values}).request()
        latent_image = {"samples": latent() if samples is None else samples}
        given = conditioning() if positive is None else positive
        return module.measure_factors(model, given, latent_image, request, seed=seed)

    return run


@pytest.fixture
def show(nodes_api: Any) -> Callable[..., tuple[Tensor, str, int]]:
    """The node itself: its picture, its table and its radius."""

    def run(model: Any, **values: Any) -> tuple[Tensor, str, int]:
        widgets = {i.id: i.default for i in nodes_api._classes["CLEARFactors"].define_schema().inputs[3:]}
        given = {"positive": conditioning(), "latent_image": {"samples": latent()}, **widgets, "percents": "0.5"}
        return nodes_api.execute("CLEARFactors", model=model, **(given | values))

    return run


def latent(height: int = 12, width: int = 16, channels: int = 16, seed: int = 2) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def recorded(model: Any, samples: Tensor, percent: float, seed: int = 7, **extra: Any) -> dict[str, SimpleNamespace]:
    """q, k and v of each block, of a dense forward: noise, level and conditioning put in by hand."""
    found: dict[str, SimpleNamespace] = {}
    watched = model.clone()

    def record(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Any:
        where = kwargs["transformer_options"]
        found[where["block_type"][0] + str(where["block_index"])] = SimpleNamespace(
            q=q.clone(), k=k.clone(), v=v.clone()
        )
        return func(q, k, v, heads, **kwargs)

    watched.model_options["transformer_options"]["optimized_attention_override"] = record
    sigma = model.get_model_object("model_sampling").percent_to_sigma(percent)
    noise = torch.randn(samples.shape, generator=torch.manual_seed(seed))
    noised = sigma * noise + (1 - sigma) * model.model.process_latent_in(samples)
    run_forward(watched, **({**inputs(2, 2), "latent": noised, "timestep": torch.full((1,), sigma)} | extra))
    return found


def same(found: Any, other: Any) -> bool:
    """Whether two studies measured the same, number by number."""
    return all(
        torch.allclose(one.curve.mass, two.curve.mass, atol=1e-6)
        and torch.allclose(one.curve.error, two.curve.error, atol=1e-6)
        for one, two in zip(found.layers, other.layers, strict=True)
    )


def test_every_layer_and_timestep_against_the_full_matrices(model: Any, study: Any) -> None:
    found = study(model, radius=3)
    assert [(layer.name, round(layer.sigma, 6)) for layer in found.layers] == [
        (block, round(float(model.get_model_object("model_sampling").percent_to_sigma(percent)), 6))
        for percent in PERCENTS
        for block in BLOCKS
    ]
    assert (str(found.layout), found.rows, found.heads, found.judged) == (str(LAYOUT), GRID.tokens, 2, 3)
    assert found.radii == tuple(range(1, 9))
    for number, percent in enumerate(PERCENTS):
        calls = recorded(model, latent(), percent)
        for layer, block in zip(found.layers[3 * number :], BLOCKS, strict=False):
            one = calls[block]
            for index, radius in enumerate(found.radii):
                full = measure(Circle(radius), one.q, one.k, one.v, LAYOUT, {})
                assert torch.allclose(layer.curve.mass[index], full.mass.double(), atol=2e-6)
                assert torch.allclose(layer.curve.error[index], full.error, atol=2e-6)
                if radius == 3:
                    assert torch.allclose(layer.factors.rank.entropy, full.rank.entropy, rtol=1e-4)
                    assert torch.allclose(layer.factors.dense_rank.entropy, full.dense_rank.entropy, rtol=1e-4)
                    assert torch.equal(layer.factors.integrity.key, full.integrity.key)
                    assert (layer.factors.formulation < 1e-6).all()


def test_the_recommendation_is_the_smallest_radius_that_passes(model: Any, study: Any) -> None:
    found = study(model, percents="0.2, 0.6")
    errors = torch.stack([layer.curve.error.mean(1) for layer in found.layers]).amax(0)
    masses = torch.stack([layer.curve.mass.mean(1) for layer in found.layers]).amin(0)
    for radius in (2, 5, 8):
        index = radius - 1
        bounds = {"least_mass": float(masses[index]) - 1e-4, "largest_error": float(errors[index]) + 1e-4}
        again = study(model, **bounds)
        passing = (masses >= bounds["least_mass"]) & (errors <= bounds["largest_error"])
        assert again.recommended == found.radii[int(passing.nonzero()[0])] <= radius
        assert again.judged == again.recommended
        for layer in again.layers:
            assert torch.allclose(layer.factors.mass, layer.curve.mass[again.judged - 1], atol=1e-6)
            assert torch.allclose(layer.factors.error, layer.curve.error[again.judged - 1], atol=1e-5)
    assert study(model, least_mass=1.0).recommended is None


def test_where_no_radius_passes_the_node_says_so(model: Any, show: Any, shown: Any) -> None:
    picture, table, radius = show(model, least_mass=1.0)
    assert radius == -1
    for text in (table, shown["CLEARFactors"][-1]):
        assert text.startswith("No radius passes: none of 1 to 8")
        assert "is the first of 3 that pass with none. The radius output is -1, which Apply CLEAR Attention" in text
    assert "Factors of the circle of radius 8, the largest that was measured" in table
    assert picture.shape[0] == 1 and picture.shape[-1] == 3


def test_the_table_has_a_row_for_each_layer_and_timestep(model: Any, show: Any, study: Any) -> None:
    _, table, radius = show(model, percents="0.6 0.2", least_mass=0.6, largest_error=0.6)
    found = study(model, seed=0, least_mass=0.6, largest_error=0.6)
    assert radius == found.recommended
    assert table.startswith(f"Recommended radius: {radius}, the smallest")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if re.match(r"\| [ds]\d", line)
    ]
    assert [row[0] for row in rows] == [*BLOCKS, *BLOCKS]
    for row, layer in zip(rows, found.layers, strict=True):
        assert float(row[3]) == pytest.approx(float(layer.factors.mass.mean()), abs=6e-5)
        assert float(row[4]) == pytest.approx(float(layer.factors.error.mean()), abs=6e-5)
        assert row[5] == "yes"
        assert row[9] == "1.000"
    assert max(int(row[2]) for row in rows) == radius


def test_a_radius_is_judged_as_asked(model: Any, show: Any) -> None:
    _, table, radius = show(model, radius=1, least_mass=0.6, largest_error=0.6)
    assert radius > 1
    assert "Radius 1, as asked: 0 of 3 layers and timesteps pass." in table
    assert "radius 1, as asked: means over heads" in table


def test_a_window_is_left_out_and_distilled_weights_count(
    model: Any, nodes_api: Any, study: Any, tmp_path: Path
) -> None:
    plain = study(model, radius=2)
    assert not plain.headline
    window = study(nodes_api.apply(model, radius=2), radius=2)
    assert same(plain, window) and "window only" in window.headline
    coarse = study(nodes_api.apply(model, radius=2, down_factor=2), radius=2)
    assert same(plain, coarse)
    path = tmp_path / "clear_local_4.safetensors"
    save_file(clear_tensors(model), path)
    distilled = study(nodes_api.apply(model, nodes_api.weights(path)), radius=2)
    assert not same(plain, distilled)
    assert "This model has CLEAR (radius 4, clear_local_4" in distilled.summary()


def test_proportional_attention_counts(model: Any, nodes_api: Any, study: Any) -> None:
    sharper = nodes_api.apply(model, radius=2, proportional_attention=True)
    assert not same(study(model, radius=2), study(sharper, radius=2))


def test_a_lora_counts(model: Any, study: Any) -> None:
    patched = model.clone()
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    shift = torch.randn(96, 32, generator=torch.Generator().manual_seed(9))
    patched.add_patches({name: (shift,)}, 1.0)
    plain = study(model, radius=2)
    assert not same(plain, study(patched, radius=2))
    assert same(plain, study(model, radius=2))


def test_bands_are_left_out_and_the_node_says_so(model: Any, nodes_api: Any, in_bands: Any, study: Any) -> None:
    window = nodes_api.apply(model, radius=2)
    banded = study(in_bands(window), radius=2)
    assert same(banded, study(window, radius=2))
    assert "CLEAR Multi-GPU was left out" in banded.summary()


def test_seed_draws_noise_and_queries(model: Any, study: Any) -> None:
    some = study(model, queries=16, radius=2)
    assert some.rows == 16
    assert "16 of 48 image tokens, drawn with seed 7" in some.summary()
    assert same(some, study(model, queries=16, radius=2))
    assert not same(some, study(model, queries=16, radius=2, seed=8))
    every = study(model, radius=2)
    assert "queries: all image tokens" in every.summary()
    for one, whole in zip(some.layers, every.layers, strict=True):
        assert torch.allclose(one.curve.mass, whole.curve.mass, atol=0.15)


def test_chosen_blocks_and_where_the_forward_ends(model: Any, study: Any) -> None:
    ran: list[str] = []
    flux = model.model.diffusion_model
    hooks = [
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, block in (("d0", flux.double_blocks[0]), ("s0", flux.single_blocks[0]), ("s1", flux.single_blocks[1]))
    ]
    found = study(model, blocks="s0", percents="0.5", radius=2)
    for hook in hooks:
        hook.remove()
    assert [layer.name for layer in found.layers] == ["s0"] and ran == ["d0"]


@pytest.mark.parametrize("family", ["FLUX.2", "Chroma"])
def test_other_families(host: Any, study: Any, family: str) -> None:
    model = flux2_model() if family == "FLUX.2" else chroma_model()
    samples = latent(6, 8, 128) if family == "FLUX.2" else latent()
    positive = conditioning(guidance=3.5 if family == "FLUX.2" else 0)
    found = study(model, samples, positive=positive, percents="0.4", radius=2)
    assert (found.family, str(found.layout.image)) == (family, str(GRID))
    given: dict[str, Any] = {"pooled_text": None}
    if family == "Chroma":
        given["guidance"] = torch.zeros(1)
    else:  # the host fills short prompts up to 512 tokens, in front
        given["context"] = torch.nn.functional.pad(inputs(2, 2)["context"], (0, 0, 503, 0))
    calls = recorded(model, samples, 0.4, **given)
    for layer in found.layers:
        one = calls[layer.name]
        full = measure(Circle(2), one.q, one.k, one.v, TokenLayout(found.layout.text, GRID), {})
        assert torch.allclose(layer.factors.mass, full.mass.double(), atol=2e-6)
        assert torch.allclose(layer.factors.error, full.error, atol=2e-6)


def test_reference_images_are_seen_through_the_window(model: Any, study: Any) -> None:
    found = study(model, positive=conditioning(reference_latents=[latent(8, 10, seed=8)]), radius=2)
    assert [str(grid) for grid in found.layout.references] == ["4 x 5"]
    assert all((layer.curve.mass.diff(dim=0) > 0).all() for layer in found.layers)


def test_through_the_executor_into_apply_clear(host: Any, model: Any) -> None:
    machine = Machine(
        host, {"M": ("MODEL", model), "P": ("CONDITIONING", conditioning()), "L": ("LATENT", {"samples": latent()})}
    )

    def run(least_mass: float) -> Any:
        graph = Graph()
        loaded = graph.add("M")
        factors = graph.add(
            "CLEARFactors",
            model=loaded,
            positive=graph.add("P"),
            latent_image=graph.add("L"),
            seed=3,
            percents="0.5",
            least_mass=least_mass,
            largest_error=0.6,
            radius=0,
            blocks="all",
            queries=64,
        )
        applied = graph.add(
            "CLEARApply",
            model=loaded,
            radius=[factors[0], 2],
            down_factor=0,
            strength=1.0,
            backend="auto",
            ntk_factor=0.0,
            proportional_attention=False,
            start_percent=0.0,
            end_percent=1.0,
            references="window",
            blocks="all",
        )
        report = graph.add("CLEARReport", model=applied, width=256, height=256)
        graph.add("Keep", images=factors, name="figure")
        graph.add("Keep", images=report, name="report")
        return machine.run(graph)

    passed = run(0.6)
    assert passed.ended == "execution_success"
    assert {"figure", "report"} <= passed.images.keys()
    refused = run(1.0)
    assert "figure" in refused.images
    assert "radius is -1; allowed is 0 to" in refused.ended


def test_progress_counts_layers_and_cancel_works_within_one(
    model: Any, show: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    import comfy.utils

    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: steps.append((value, total)))
    show(model, percents="0.2, 0.6")
    assert steps == [(i, 12) for i in range(1, 13)]  # 3 layers, 2 timesteps, 2 passes

    real, asked = comfy.model_management.throw_exception_if_processing_interrupted, 0

    def cancelled_at_the_third() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            comfy.model_management.interrupt_current_processing()
        real()

    steps.clear()
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancelled_at_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        show(model)
    assert asked == 3 and not steps, "the first layer was not finished"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"percents": "0.5, 2"}, "percents is '0.5, 2'; write 1 to 8 numbers from 0 to 1"),
        ({"percents": "late"}, "percents is 'late'; write 1 to 8 numbers"),
        ({"percents": ""}, "percents is ''; write 1 to 8 numbers"),
        ({"percents": "nan"}, "percents is 'nan'; write 1 to 8 numbers"),
        ({"percents": "0 .1 .2 .3 .4 .5 .6 .7 .8"}, "write 1 to 8 numbers"),
        ({"least_mass": 1.5}, "least_mass is 1.5; allowed is 0 to 1"),
        ({"largest_error": float("nan")}, "largest_error is nan; allowed is 0 to 1"),
        ({"radius": 129}, "radius is 129; allowed is 0 to 128"),
        ({"queries": 4}, "queries is 4; allowed is 16 to 1024"),
        ({"blocks": "x3"}, "blocks is 'x3'"),
        ({"blocks": "s2"}, "blocks is 's2', but this model has 1 double and 2 single blocks"),
        ({"positive": []}, "positive is empty: connect a prompt"),
        ({"latent_image": {"samples": latent(channels=4)}}, r"shape \(1, 4, 12, 16\); this model takes \[batch, 16"),
        (
            {"latent_image": {"samples": latent(6, 16)}},
            "latent_image has 3 x 8 image tokens; CLEAR Factors needs 4 x 4",
        ),
    ],
)
def test_what_cannot_be_is_named(model: Any, show: Any, values: dict[str, Any], words: str) -> None:
    before = (str(model.model_options), dict(model.patches))
    with pytest.raises(ValueError, match=words):
        show(model, **values)
    assert (str(model.model_options), model.patches) == before


def test_impossible_inputs_are_refused_when_the_prompt_is_queued(pack: dict[str, Any]) -> None:
    node = pack["CLEARFactors"]
    assert "percents is '2'" in node.validate_inputs(percents="2")
    assert "least_mass is nan" in node.validate_inputs(least_mass=float("nan"))
    assert "blocks is ''" in node.validate_inputs(blocks="")
    assert node.validate_inputs(percents=None, blocks="d3", queries=None) is True


def test_masks_areas_and_other_models_are_named(model: Any, show: Any) -> None:
    with pytest.raises(ValueError, match=r"limited to a part of the image \(3 x 4 of 6 x 8 tokens\)"):
        show(model, positive=conditioning(area=(6, 8, 0, 0)))
    with pytest.raises(ValueError, match="did not run its attention at 0.5 of the schedule.*no part of the prompt"):
        show(model, positive=conditioning(start_percent=0.8, end_percent=1.0))

    def masked(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **{**kwargs, "attention_mask": torch.zeros(1, 57, 57)})

    hidden = model.clone()
    hidden.add_wrapper_with_key("diffusion_model", "mask", masked)
    with pytest.raises(ValueError, match="brings an attention mask.*Connect conditioning without Redux strength"):
        show(hidden)
    model.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"this model is Flux \(Identity\)"):
        show(model)


@pytest.mark.parametrize("passes", [True, False])
def test_the_figure_marks_the_radius_and_shows_what_each_head_needs(
    nodes_api: Any, model: Any, study: Any, passes: bool
) -> None:
    found = study(model, least_mass=0.6 if passes else 1.0, largest_error=0.6)
    page = nodes_api.module("nodes.insight.factors_figure").factors_page(found)
    texts = [text.get_text() for text in page.figure.texts]
    assert texts[0] == (f"Recommended radius: {found.recommended}" if passes else "No radius passes")
    axes = {one.get_label(): one for one in page.figure.axes}
    for name, kind in (("Attention to text and window", "mass"), ("Error of the layer's output", "error")):
        lines = [line for line in axes[name].lines if len(line.get_xdata()) == len(found.radii)]
        assert len(lines) == len(found.blocks)
        for line, block in zip(lines, found.blocks, strict=True):
            values = torch.stack([getattr(layer.curve, kind).mean(1) for layer in found.of_block(block)])
            worst = values.amin(0) if kind == "mass" else values.amax(0)
            assert torch.allclose(torch.as_tensor(line.get_ydata()), worst)
        marked = [line.get_xdata()[0] for line in axes[name].lines if list(line.get_ydata()) == [0, 1]]
        assert marked == ([found.recommended] if passes else [])
    cells = axes["needed by head"].images[0].get_array()
    for column, block in enumerate(found.blocks):
        needed = found.needed_by_head(block)
        assert [None if cell is None else int(cell) for cell in cells[:, column].tolist()] == list(needed)
    assert page.pixels().shape[1] == 1600
