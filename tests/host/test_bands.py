"""Bands of rows against one device, through the nodes, on models of the host's own classes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from pairwise import all_pairs
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import Golden, clear_tensors, flux_model, inputs, run_forward, sample

from host.comparing import error
from host.packs.positions import Spanning, moved
from host.rounding import golden_timestep_embedding

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((Path(__file__).parents[1] / "data" / "golden").glob("*.safetensors"))


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("clear-")]


WINDOWS = [(3, 1), (9, 1), (30, 1), (3, 4), (9, 2)]
"""Radius and down-sampling factor."""
LANES = ["cpu", "cpu,cpu", "cpu,cpu,cpu,cpu,cpu,cpu,cpu"]
BANDS = [0, 2, 3, 4, 7, 20]


@pytest.fixture(scope="module")
def windowed(host: Any, nodes_api: Any) -> Callable[[int, int], tuple[Any, Tensor]]:
    """A model with CLEAR, by radius and factor, and its output for `inputs(40, 26, batch=2)` on one device."""

    @cache
    def make(radius: int, factor: int) -> tuple[Any, Tensor]:
        patched = nodes_api.apply(flux_model(), radius=radius, down_factor=factor)
        return patched, run_forward(patched, **inputs(40, 26, batch=2))

    return make


@pytest.mark.parametrize(("window", "devices", "bands"), all_pairs(WINDOWS, LANES, BANDS), ids=str)
def test_bands_are_one_device(
    windowed: Any, in_bands: Callable[..., Any], window: tuple[int, int], devices: str, bands: int
) -> None:
    patched, expected = windowed(*window)
    assert error(run_forward(in_bands(patched, bands, devices), **inputs(40, 26, batch=2)), expected) < 1e-6


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_the_authors_output_is_reproduced_in_three_bands(
    path: Path,
    devices: str,
    tmp_path: Path,
    nodes_api: Any,
    in_bands: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comfy.ldm.flux.model.timestep_embedding", golden_timestep_embedding)
    golden = Golden.read(path)
    suffix = f"_down_{golden.down_factor}" if golden.down_factor > 1 else ""
    file = tmp_path / f"clear_local_{golden.radius}{suffix}.safetensors"
    save_file(golden.part("clear."), file)
    patched = nodes_api.apply(
        golden.model(),
        nodes_api.weights(file),
        ntk_factor=golden.ntk_factor,
        proportional_attention=golden.proportional,
    )
    tensors = golden.tensors
    latent = rearrange(tensors["x"], "b (h w) (c p q) -> b c (h p) (w q)", h=golden.height, w=golden.width, p=2, q=2)
    banded = in_bands(patched, 3, devices)
    out = run_forward(banded, latent, tensors["t"], tensors["context"], tensors["y"], tensors["guidance"])
    assert error(rearrange(out, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2), tensors["out"]) < 1e-5


@pytest.mark.parametrize(
    ("blocks", "active", "windowed"),
    [("all", True, True), ("double, single", True, True), ("s0-1", True, False), ("all", False, False)],
)
def test_one_dense_layer_leaves_bands_no_window(nodes_api: Any, blocks: str, active: bool, windowed: bool) -> None:
    options, window = nodes_api.module("nodes.options.clear"), nodes_api.module("clear_core.window").Window(3)
    choice = nodes_api.module("nodes.options.blocks").parse_blocks(blocks)
    found = options.ClearSettings(window=window, blocks=choice).band_window(active=active)
    assert found == (window if windowed else None)


@pytest.mark.parametrize(("height", "width"), [(23, 31), (2, 2), (4, 60)])
def test_odd_and_small_sizes(model: Any, nodes_api: Any, in_bands: Callable[..., Any], height: int, width: int) -> None:
    given = inputs(height, width)
    patched = nodes_api.apply(model, radius=3)
    assert error(run_forward(in_bands(patched, 5), **given), run_forward(patched, **given)) < 1e-6


@pytest.mark.parametrize("view", ["window", "all tokens"])
@pytest.mark.parametrize("factor", [1, 2])
def test_reference_images(model: Any, nodes_api: Any, in_bands: Callable[..., Any], view: str, factor: int) -> None:
    given: dict[str, Any] = inputs(20, 16)
    generator = torch.Generator().manual_seed(7)
    given["ref_latents"] = [torch.randn(1, 16, *size, generator=generator) for size in ((20, 16), (12, 30))]
    patched = nodes_api.apply(model, radius=3, references=view, down_factor=factor)
    expected = run_forward(patched, **given)
    for devices in ("cpu", "cpu,cpu"):
        assert error(run_forward(in_bands(patched, 4, devices), **given), expected) < 1e-6


@pytest.mark.parametrize("kind", ["bool", "additive", "keys only"])
def test_attention_masks(model: Any, nodes_api: Any, in_bands: Callable[..., Any], kind: str) -> None:
    given: dict[str, Any] = inputs(16, 14)
    tokens = 9 + 8 * 7
    mask = torch.randn(1, 1 if kind == "keys only" else tokens, tokens, generator=torch.Generator().manual_seed(4))
    given["attention_mask"] = mask > -1 if kind == "bool" else mask
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **given)
    assert error(run_forward(in_bands(patched), **given), expected) < 1e-6
    without = {name: value for name, value in given.items() if name != "attention_mask"}
    assert error(run_forward(patched, **without), expected) > 1e-3


def test_controlnet_residuals(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    given: dict[str, Any] = inputs(24, 18)
    generator = torch.Generator().manual_seed(3)
    residuals = [torch.randn(1, 12 * 9, 32, generator=generator) for _ in range(3)]
    given["control"] = {"input": [residuals[0]], "output": [None, residuals[1][:, :70]]}
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **given)
    for devices in ("cpu", "cpu,cpu"):
        assert error(run_forward(in_bands(patched, 4, devices), **given), expected) < 1e-6
    assert error(run_forward(patched, **{**given, "control": None}), expected) > 1e-3


def test_dense_steps_and_proportional_attention(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    given = inputs(24, 18)
    for factor in (1, 4):
        patched = nodes_api.apply(
            model, radius=3, end_percent=0.01, start_percent=0.0, proportional_attention=True, down_factor=factor
        )
        expected = run_forward(patched, **given)
        assert error(run_forward(in_bands(patched, 3, "cpu,cpu"), **given), expected) < 1e-6


def test_positions_that_another_node_moves_or_scales_by_the_image(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any]
) -> None:
    given = inputs(24, 18)
    other = model.clone()
    other.add_object_patch("diffusion_model.pe_embedder", Spanning(model.model.diffusion_model.pe_embedder))
    other.set_model_post_input_patch(moved) if hasattr(other, "set_model_post_input_patch") else other.set_model_patch(
        moved, "post_input"
    )
    patched = nodes_api.apply(other, radius=3)
    expected = run_forward(patched, **given)
    assert error(run_forward(nodes_api.apply(model, radius=3), **given), expected) > 1e-3
    for devices in ("cpu", "cpu,cpu"):
        assert error(run_forward(in_bands(patched, 4, devices), **given), expected) < 1e-6
    assert type(model.model.diffusion_model.pe_embedder).__name__ in ("Spanning", "EmbedND")


def test_text_that_another_patch_adds(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    def longer(args: dict[str, Any]) -> dict[str, Any]:
        extra = torch.ones_like(args["txt"][:, :1]).expand(-1, 4, -1) * 0.3
        ids = args["txt_ids"][:, :1].expand(-1, 4, -1)
        return {**args, "txt": torch.cat((args["txt"], extra), 1), "txt_ids": torch.cat((args["txt_ids"], ids), 1)}

    given = inputs(20, 16)
    other = model.clone()
    other.set_model_patch(longer, "post_input")
    patched = nodes_api.apply(other, radius=3)
    assert error(run_forward(in_bands(patched), **given), run_forward(patched, **given)) < 1e-6


def test_the_order_of_the_nodes_does_not_matter(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "clear_local_3.safetensors"
    save_file(clear_tensors(model), path)
    given = inputs(20, 16)
    weights = nodes_api.weights(path)
    expected = run_forward(nodes_api.apply(model, weights), **given)
    assert error(run_forward(in_bands(nodes_api.apply(model, weights)), **given), expected) < 1e-6
    assert error(run_forward(nodes_api.apply(in_bands(model), weights), **given), expected) < 1e-6


def test_other_wrappers_see_the_whole_image(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    from comfy.patcher_extension import WrappersMP

    seen: list[tuple[int, ...]] = []

    def watch(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    banded = in_bands(nodes_api.apply(model, radius=3)).clone()
    banded.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    run_forward(banded, **inputs(20, 16))
    assert seen == [(1, 16, 20, 16)]


def test_one_band_is_the_plain_sampler_bit_for_bit(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    patched = nodes_api.apply(model, radius=3)
    assert torch.equal(sample(in_bands(patched, 1), 20, 26), sample(patched, 20, 26))
    assert torch.equal(sample(in_bands(patched, 0), 20, 26), sample(patched, 20, 26))


def test_the_average_is_near_but_not_the_same(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    given = inputs(40, 26)
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **given)
    assert 1e-5 < error(run_forward(in_bands(patched, 4, text_merge="average"), **given), expected) < 1e-2


def test_a_whole_run_with_the_sampler_node(model: Any, nodes_api: Any) -> None:
    import comfy.samplers

    patched = nodes_api.apply(model, radius=3)
    given = inputs(20, 26)

    class Noise:
        seed = 5

        def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
            return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(self.seed))

    guider = comfy.samplers.CFGGuider(patched)
    positive = [[given["context"], {"pooled_output": given["pooled_text"], "guidance": 3.5}]]
    negative = [[given["context"][:, :4], {"pooled_output": given["pooled_text"], "guidance": 3.5}]]
    guider.set_conds(positive, negative)
    guider.set_cfg(2.0)
    common = {
        "noise": Noise(),
        "guider": guider,
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 3),
        "latent_image": {
            "samples": torch.zeros(2, 16, 20, 26),
            "noise_mask": torch.rand(1, 1, 20, 26, generator=torch.Generator().manual_seed(0)),
        },
    }
    before = guider.model_patcher
    bands = nodes_api.execute("CLEARTiledSampler", **common, devices="cpu,cpu", bands=3, text_merge="exact")
    plain = nodes_api.execute("CLEARTiledSampler", **common, devices="cpu", bands=1, text_merge="exact")
    assert guider.model_patcher is before
    for mine, theirs in zip(bands, plain, strict=True):
        assert error(mine["samples"], theirs["samples"]) < 1e-5


def test_a_replica_has_its_own_weights_and_the_same_patches(model: Any, nodes_api: Any, tmp_path: Path) -> None:
    path = tmp_path / "clear_local_3.safetensors"
    save_file(clear_tensors(model), path)
    patched = nodes_api.apply(model, nodes_api.weights(path), ntk_factor=4.0)
    given = inputs(20, 16)
    plain, expected = run_forward(model, **given), run_forward(patched, **given)
    replicate = nodes_api.module("nodes.host.bands.replicas").replicate
    for loaded in (patched, model):
        # Whatever is loaded at the moment, patched or not, the replica starts from the model's own weights.
        run_forward(loaded, **given)
        replica = replicate(patched, torch.device("cpu"))
        assert replica.model is not patched.model
        mine, theirs = (dict(x.model.named_parameters()) for x in (replica, patched))
        assert not any(mine[name].data_ptr() == theirs[name].data_ptr() for name in theirs)
        assert torch.equal(run_forward(replica, **given), expected)
    assert torch.equal(run_forward(model, **given), plain)


class Fault(Exception):
    """What a node of the tests raises."""


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu,cpu"])
def test_an_error_in_any_band_at_any_layer_comes_out_as_it_is(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], devices: str
) -> None:
    given = inputs(24, 18)
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(in_bands(patched, 5, devices), **given)
    for problem in (Fault("as it is"), KeyboardInterrupt("as it is"), torch.OutOfMemoryError("as it is")):
        for kind, layer in (("double_block", 0), ("single_block", 0), ("single_block", 1)):
            for worker in (0, 3, 5):
                faulty = patched.clone()
                faulty.set_model_patch_replace(_raising(problem, worker), "dit", kind, layer)
                with pytest.raises(type(problem)) as caught:
                    run_forward(in_bands(faulty, 5, devices), **given)
                assert caught.value is problem
                assert not [t for t in threading.enumerate() if t.name.startswith("clear-")]
    assert torch.equal(run_forward(in_bands(patched, 5, devices), **given), expected)


def _raising(problem: BaseException, worker: int) -> Callable[..., Any]:
    """A block replacement that raises when the `worker`-th worker comes to it."""
    count = 0

    def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > worker:
            raise problem
        return extra["original_block"](args)

    return block


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_an_interruption_at_any_step_leaves_everything_as_it_was(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], devices: str
) -> None:
    import comfy.model_management

    patched = nodes_api.apply(model, radius=3)
    banded = in_bands(patched, 4, devices)
    expected = sample(banded, 20, 16)
    chance = random.Random(0)
    for _ in range(12):
        left = chance.randrange(1, 30)

        def interrupt(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left == 0:
                comfy.model_management.interrupt_current_processing()
            return extra["original_block"](args)

        cancelled = patched.clone()
        cancelled.set_model_patch_replace(interrupt, "dit", "single_block", 1)
        cancelled.set_model_patch_replace(interrupt, "dit", "double_block", 0)
        with contextlib.suppress(comfy.model_management.InterruptProcessingException):
            sample(in_bands(cancelled, 4, devices), 20, 16)
        comfy.model_management.interrupt_current_processing(False)
        assert not [t for t in threading.enumerate() if t.name.startswith("clear-")]
        assert torch.equal(sample(banded, 20, 16), expected)


def test_blocks_that_are_skipped_are_noticed(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    patched = nodes_api.apply(model, radius=3)
    for devices in ("cpu", "cpu,cpu"):
        for every in (True, False):
            skipping = patched.clone()
            calls: list[int] = []

            def skip(args: dict[str, Any], extra: dict[str, Any], calls: list[int] = calls, every: bool = every) -> Any:
                calls.append(1)
                if every or len(calls) == 2:
                    return {"img": args["img"]}
                return extra["original_block"](args)

            skipping.set_model_patch_replace(skip, "dit", "single_block", 0)
            with pytest.raises(RuntimeError, match="did not do the same layers.*or use one band"):
                run_forward(in_bands(skipping, 3, devices), **inputs(20, 16))


def test_what_cannot_be_cut_is_named(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    given = inputs(20, 16)
    with pytest.raises(ValueError, match="CLEAR Multi-GPU works .* connect Apply CLEAR Attention before it"):
        run_forward(in_bands(model), **given)
    patched = nodes_api.apply(model, radius=3)
    other = patched.clone()
    other.set_model_patch(lambda *args: args, "attn1_patch")
    with pytest.raises(ValueError, match="under a patch of kind 'attn1_patch' .*Remove the node"):
        run_forward(in_bands(other), **given)

    def wider(args: dict[str, Any]) -> dict[str, Any]:
        return {
            **args,
            "img": torch.cat((args["img"], args["img"]), 1),
            "img_ids": torch.cat((args["img_ids"],) * 2, 1),
        }

    other = patched.clone()
    other.set_model_patch(wider, "post_input")
    with pytest.raises(ValueError, match="changes the number of image tokens"):
        run_forward(in_bands(other), **given)


def test_devices_that_are_not_here_are_left_out_and_named(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], shown: Any
) -> None:
    given = inputs(20, 16)
    patched = nodes_api.apply(model, radius=3)
    out = run_forward(in_bands(patched, 4, "cpu,cuda:7,cpu"), **given)
    assert error(out, run_forward(patched, **given)) < 1e-6
    (said,) = shown["CLEARMultiGPU"]
    lines = said.splitlines()
    assert lines[0] == "4 bands of 2 to 3 rows of tokens on cpu, cpu"
    assert lines[1] == "not in this machine: cuda:7"
    assert lines[2].endswith("MB exchanged between devices in each step; text_merge: exact")
    out = run_forward(in_bands(patched, 0, "cuda:5,cuda:7"), **given)
    assert torch.equal(out, run_forward(patched, **given))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"devices": "cuda:0; rm -rf"}, "devices has 'cuda:0; rm -rf'; write auto, or names such as cuda:0,cuda:1"),
        ({"devices": "cuda:0=0"}, "devices has 'cuda:0=0'"),
        ({"devices": ",".join(["cpu"] * 300)}, "devices has 300 names; at most 256"),
        ({"bands": -1}, r"bands is -1; choose 0 \(as many as needed\) to 256"),
        ({"bands": 10**9}, "bands is 1000000000"),
        ({"text_merge": "maybe"}, "text_merge is 'maybe'; choose one of: exact, average"),
    ],
)
def test_inputs_that_mean_nothing_are_refused_when_the_prompt_is_queued(
    pack: dict[str, Any], nodes_api: Any, model: Any, values: dict[str, Any], words: str
) -> None:
    import re

    for name in ("CLEARMultiGPU", "CLEARTiledSampler"):
        assert re.search(words, str(pack[name].validate_inputs(**values)))
    with pytest.raises(ValueError, match=words):
        nodes_api.execute(
            "CLEARMultiGPU", model=model, **{"devices": "auto", "bands": 0, "text_merge": "exact", **values}
        )


@pytest.mark.parametrize("devices", [2, 4])
def test_what_crosses_between_devices_is_the_halo_and_the_text(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    module = nodes_api.module("nodes.host.bands.forward")
    forwards: list[Any] = []

    class Watched(module.BandedForward):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            forwards.append(self)

    monkeypatch.setattr(module, "BandedForward", Watched)
    radius, width, channels, text, layers, size = 5, 13, 32, 9, 3, 4
    run_forward(in_bands(nodes_api.apply(model, radius=radius), 0, ",".join(["cpu"] * devices)), **inputs(48, 26))
    (banded,) = forwards
    lanes = [range(24 * lane // devices, 24 * (lane + 1) // devices) for lane in range(devices)]
    copied = [y for mine in lanes for y in range(24) if y not in mine and any(abs(y - z) < radius for z in mine)]
    # Each a row of keys and one of values.
    assert banded.traffic.halo == layers * len(copied) * 2 * width * channels * size
    # An all-reduce: out in float32 and its log-sum-exp, one for each of two heads, then the merged shares.
    partial, merged = text * (channels + 2) * 4, text * channels * size
    assert banded.traffic.text == layers * (devices - 1) * (partial + merged)
    assert banded.traffic.pooled == 0


def test_memory_falls_to_a_fifth_and_as_predicted() -> None:
    """The host's FLUX at full width, two blocks, under FakeTensorMode, in a process of its own."""
    code = (
        "import json; from benchmarks.memory import Bench; b = Bench((1, 1)); "
        "print(json.dumps([b.stock(4096).as_dict(), b.tiled(4096, 32).as_dict()]))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), paths]))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    stock, tiled = json.loads(run.stdout.splitlines()[-1])
    assert 5.7 <= stock["peak_activation_gib"] <= 6.2  # newer hosts keep a little less alive
    assert tiled["peak_activation_gib"] <= 1.2
    for row in (stock, tiled):
        assert 0.97 <= row["predicted_gib"] / row["peak_activation_gib"] <= 1.12
