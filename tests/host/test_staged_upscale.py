"""CLEAR High-Res Upscale at its own sizes, 64 -> 128 -> 256 tokens a side, through the host's own executor.

The transformer is the host's FLUX, tiny. The autoencoder stands in for FLUX's, which would take minutes at 4096 pixels
on a CPU: linear, 8 x 8 pixels to 16 channels. Everything else, from the queue's check of a prompt to the executor and
the core's nodes, is the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import clear_tensors, flux_model, inputs

from host.comparing import error
from host.executing import Graph, Machine, Prompt, Run, load_core_nodes

RADIUS, SEED = 4, 5
STEPS, DENOISE = 2, 0.5  # with so few steps the core rounds 0.7 up to 1, and the image would not matter
SIDE, FIRST, SECOND = 1024, 2048, 4096  # pixels
MEGAPIXELS, SMALL = SECOND**2 / 1e6, 512**2 / 1e6
TILE = {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}


class Patches(torch.nn.Module):
    """A linear autoencoder: 8 x 8 pixels to their 16 values in an orthonormal basis, and back.

    GAIN: so that latents as wide as FLUX's stay between black and white.
    """

    GAIN = 4.0

    def __init__(self) -> None:
        super().__init__()
        basis = torch.randn(3, 8, 8, 16, generator=torch.Generator().manual_seed(0))
        for colour in range(3):  # the mean colours come first, so that a picture stays one
            basis[..., colour] = torch.nn.functional.one_hot(torch.tensor(colour), 3).view(3, 1, 1)
        basis = torch.linalg.qr(basis.flatten(0, 2)).Q
        self.basis = torch.nn.Parameter(basis, requires_grad=False)

    def encode(self, pixels: Tensor) -> Tensor:
        cells = rearrange(pixels, "b c (h p) (w q) -> b h w (c p q)", p=8, q=8)
        return rearrange(cells @ self.basis * self.GAIN, "b h w c -> b c h w")

    def decode(self, latent: Tensor) -> Tensor:
        cells = rearrange(latent, "b c h w -> b h w c") @ self.basis.T / self.GAIN
        return rearrange(cells, "b h w (c p q) -> b c (h p) (w q)", p=8, q=8, c=3)


def patch_vae() -> Any:
    """A VAE of the host's class around it: its tiles, its clamping, its memory management."""
    import comfy.model_patcher
    import comfy.sd

    vae: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = Patches()
    vae.downscale_ratio = vae.upscale_ratio = 8
    vae.latent_channels = 16
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, vae.device, vae.device)
    return vae


def picture(side: int) -> Tensor:
    """Soft blobs of colour, [1, side, side, 3] in 0 to 1."""
    small = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


class UpscaleGraph(Graph):
    """With the one node."""

    def upscale(self, image: list[Any], megapixels: float, **values: Any) -> list[Any]:
        """The one node, with everything it needs."""
        given: dict[str, Any] = {
            "target_megapixels": megapixels,
            "stages": 0,
            "denoise": DENOISE,
            "steps": STEPS,
            "guidance": 7.5,
            "ntk_factor": 0.0,
            "proportional_attention": True,
            "seed": SEED,
            "sampler_name": "euler",
            "scheduler": "simple",
            "devices": "cpu",
            "bands": 2,
            **values,
        }
        return self.add(
            "CLEARHighRes",
            model=self.add("GiveMODEL"),
            vae=self.add("GiveVAE"),
            positive=self.add("GiveCONDITIONING"),
            weights=self.add("GiveWEIGHTS"),
            image=image,
            **given,
        )


def one_node(megapixels: float = MEGAPIXELS, **values: Any) -> Prompt:
    graph = UpscaleGraph()
    upscaled, _ = graph.upscale(graph.add("GiveIMAGE"), megapixels, **values)
    graph.add("Keep", images=[upscaled, 0], name="image")
    graph.add("Keep", images=[upscaled, 1], name="stages")
    return graph


def by_hand(sides: Sequence[int] = (FIRST, SECOND), tile: dict[str, int] | None = None) -> Prompt:
    """The stages, as a user wires them. tile: the values of the core's tiled VAE nodes; None for the plain ones."""
    kind, values = ("Tiled", tile) if tile else ("", {})
    graph = Graph()
    model, vae, image = graph.add("GiveMODEL"), graph.add("GiveVAE"), graph.add("GiveIMAGE")
    weights, positive = graph.add("GiveWEIGHTS"), graph.add("GiveCONDITIONING")
    for side in sides:
        size = {"width": side, "height": side}
        image = graph.add("ImageScale", image=image, upscale_method="lanczos", crop="center", **size)
        patched = graph.add(
            "CLEARApply",
            model=model,
            weights=weights,
            radius=0,
            down_factor=0,
            strength=1.0,
            backend="auto",
            ntk_factor=10.0 if side == SECOND else 1.0,
            proportional_attention=True,
            start_percent=0.0,
            end_percent=1.0,
        )
        shifted = graph.add("ModelSamplingFlux", model=patched, max_shift=1.1, base_shift=1.1, **size)
        guided = graph.add("FluxGuidance", conditioning=positive, guidance=7.5)
        sampled = graph.add(
            "CLEARTiledSampler",
            noise=graph.add("RandomNoise", noise_seed=SEED),
            guider=graph.add("BasicGuider", model=shifted, conditioning=guided),
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add("BasicScheduler", model=shifted, scheduler="simple", steps=STEPS, denoise=DENOISE),
            latent_image=graph.add(f"VAEEncode{kind}", pixels=image, vae=vae, **values),
            devices="cpu",
            bands=2,
            text_merge="exact",
        )
        image = graph.add(f"VAEDecode{kind}", samples=sampled, vae=vae, **values)
        graph.add("Keep", images=image, name=str(side))
    return graph


@pytest.fixture(scope="module")
def machine(host: Any, nodes_api: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Machine]:
    """Makes machines that have done nothing yet."""
    load_core_nodes(host, ("nodes_custom_sampler", "nodes_flux", "nodes_images", "nodes_model_advanced"))

    def make(**options: Any) -> Machine:
        model, prompt = flux_model(), inputs(2, 2)
        file = tmp_path_factory.mktemp("weights") / f"clear_local_{RADIUS}.safetensors"
        save_file(clear_tensors(model), file)
        given = {
            "GiveMODEL": ("MODEL", model),
            "GiveVAE": ("VAE", patch_vae()),
            "GiveCONDITIONING": ("CONDITIONING", [[prompt["context"], {"pooled_output": prompt["pooled_text"]}]]),
            "GiveWEIGHTS": ("CLEAR_WEIGHTS", nodes_api.weights(file)),
            "GiveIMAGE": ("IMAGE", picture(SIDE)),
        }
        return Machine(host, given, **options)

    return make


@pytest.fixture(scope="module")
def whole(machine: Callable[..., Machine]) -> Run:
    """The upscale, from start to end."""
    return machine().run(one_node())


def same(mine: Run, theirs: Run) -> bool:
    (image,) = mine.images["image"]
    pairs = zip(mine.images["stages"], theirs.images["stages"], strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(image, mine.images["stages"][-1])


def test_every_stage_is_the_hand_wired_graphs(machine: Callable[..., Machine], whole: Run) -> None:
    hand = machine().run(by_hand())
    assert hand.ended == whole.ended == "execution_success"
    first, second = whole.images["stages"]
    assert (first.shape, second.shape) == ((1, FIRST, FIRST, 3), (1, SECOND, SECOND, 3))
    assert torch.equal(first, hand.images[str(FIRST)][0])
    assert torch.equal(second, hand.images[str(SECOND)][0])
    assert torch.equal(whole.images["image"][0], second)
    # Bits that are equal because everything was cut off at black or white would prove nothing.
    assert ((second > 0) & (second < 1)).float().mean() > 0.9


def test_tiles_on_demand_are_the_cores(machine: Callable[..., Machine]) -> None:
    (hand,) = machine().run(by_hand((FIRST,), TILE)).images[str(FIRST)]
    (tiled,) = machine().run(one_node(FIRST**2 / 1e6, vae_tiling="always")).images["image"]
    assert torch.equal(tiled, hand)


def test_each_stage_reports_its_steps_on_the_one_node(whole: Run) -> None:
    assert whole.steps == [1, 2] * 2
    shown = dict(zip(whole.ran, whole.shown_on, strict=True))
    assert shown["CLEARTiledSampler"] == shown["CLEARStageDecode"] == shown["CLEARHighRes"]


def test_the_nodes_bar_covers_the_whole_run(whole: Run) -> None:
    assert whole.bar == sorted(whole.bar)
    assert whole.bar[0] == 0 and 0.9 < whole.bar[-1] <= 1
    # The second stage is four fifths of the work, and more.
    assert len(set(whole.bar)) > 2 * STEPS
    assert any(0.05 < done < 0.25 for done in whole.bar)


def test_the_page_is_told_the_plan_and_then_each_part(machine: Callable[..., Machine], shown: Any) -> None:
    machine().run(one_node(SMALL, stages=2))
    plan, *states = [data for event, data in shown.events if event == "clear_attention.upscale"]
    sizes = [[720, 720], [512, 512]]
    assert plan["plan"]["source"] == [SIDE, SIDE]
    assert [stage["size"] for stage in plan["plan"]["stages"]] == sizes
    assert [(stage["bands"], stage["device"]) for stage in plan["plan"]["stages"]] == [(2, "cpu")] * 2
    assert all(stage["vae"]["way"] == "whole" for stage in plan["plan"]["stages"])
    said = list(dict.fromkeys((state["stage"], state["part"]) for state in states))
    assert said == [(stage, part) for stage in (1, 2) for part in ("encode", "sample", "decode")]
    assert {state["step"] for state in states if state["part"] == "sample"} >= {0, STEPS}
    assert states[0]["left"] is None and states[-1]["left"] > 0
    assert all(state["sizes"] == sizes and 0 < state["free"] < state["total"] for state in states)
    assert {data["node"] for data in (plan, *states)} == {plan["node"]}


def test_the_seed_alone_decides(machine: Callable[..., Machine]) -> None:
    once, again, other = (machine().run(one_node(SMALL, stages=2, seed=seed)) for seed in (SEED, SEED, SEED + 1))
    assert same(again, once)
    for mine, theirs in zip(other.images["stages"], once.images["stages"], strict=True):
        assert error(mine, theirs) > 0.01


def test_a_stage_does_not_know_what_follows(machine: Callable[..., Machine], whole: Run) -> None:
    assert torch.equal(machine().run(one_node(FIRST**2 / 1e6)).images["image"][0], whole.images["stages"][0])


def cancelled_and_resumed(host: Any, machine: Machine, prompt: Prompt, steps: int) -> Run:
    """The second run of a prompt whose first was cancelled after that many sampling steps."""

    def cancel(done: int) -> None:
        if done == steps:
            host.interrupt_processing()

    stopped = machine.run(prompt, cancel)
    assert (stopped.ended, len(stopped.steps), stopped.images) == ("execution_interrupted", steps, {})
    resumed = machine.run(prompt)
    assert resumed.ended == "execution_success"
    return resumed


def test_cancelled_in_the_second_stage_it_goes_on_from_the_first(host: Any, machine: Callable[..., Machine]) -> None:
    prompt = one_node(SMALL, stages=2)
    resumed = cancelled_and_resumed(host, machine(), prompt, STEPS + 1)
    assert resumed.steps == [1, 2]
    assert resumed.ran == ["CLEARHighRes", "CLEARTiledSampler", "CLEARStageDecode", "CLEARStages", "Keep", "Keep"]
    assert same(resumed, machine().run(prompt))


@pytest.mark.parametrize(("steps", "left"), [(1, 3), (2, 2), (5, 1)])
def test_cancelled_anywhere_only_finished_stages_are_kept(
    host: Any, machine: Callable[..., Machine], steps: int, left: int
) -> None:
    """After the last step of a stage its sampler ends before the cancel is seen: its latent is kept."""
    prompt = one_node(SMALL, stages=3)
    resumed = cancelled_and_resumed(host, machine(), prompt, steps)
    assert resumed.ran.count("CLEARTiledSampler") == left
    assert same(resumed, machine().run(prompt))


def test_what_is_found_again_is_of_the_same_image_and_settings(machine: Callable[..., Machine]) -> None:
    used = machine()
    inverted = UpscaleGraph()
    image = inverted.add("ImageInvert", image=inverted.add("GiveIMAGE"))
    inverted.add("Keep", images=inverted.upscale(image, SMALL), name="image")
    for prompt in (one_node(SMALL), one_node(SMALL, guidance=2.0), inverted, one_node(SMALL)):
        run = used.run(prompt)
        assert run.ran.count("CLEARTiledSampler") == 1
        assert torch.equal(run.images["image"][0], machine().run(prompt).images["image"][0])


def test_a_host_that_keeps_nothing_runs_what_is_before_the_node_once(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.cli_args

    expected = machine().run(one_node(SMALL))
    monkeypatch.setattr(comfy.cli_args.args, "cache_none", True)
    run = machine(cache="NONE").run(one_node(SMALL))
    assert run.ran.count("GiveMODEL") == run.ran.count("GiveIMAGE") == 1
    assert torch.equal(run.images["image"][0], expected.images["image"][0])
    refused = machine(cache="NONE").run(one_node(SMALL, machines="127.0.0.1:8189"))
    assert "start it without --cache-none" in refused.ended and "CLEARTiledSampler" not in refused.ran


def test_a_list_of_images_is_carried_up_one_by_one(machine: Callable[..., Machine]) -> None:
    graph = UpscaleGraph()
    first, _ = graph.upscale(graph.add("GiveIMAGE"), SMALL, stages=2)
    for slot, name in ((0, "the last"), (1, "both")):
        graph.add("Keep", images=graph.upscale([first, slot], SMALL), name=name)
    images = machine().run(graph).images
    assert [image.shape for image in images["both"]] == [(1, 512, 512, 3)] * 2
    assert torch.equal(images["both"][1], images["the last"][0])
    assert error(images["both"][0], images["both"][1]) > 0.01


def test_each_image_of_a_batch_comes_out_as_it_would_alone(machine: Callable[..., Machine]) -> None:
    graph = UpscaleGraph()
    image = graph.add("GiveIMAGE")
    first, second = (graph.upscale(one, SMALL, stages=2) for one in (image, graph.add("ImageInvert", image=image)))
    batch = graph.add("ImageBatch", image1=image, image2=graph.add("ImageInvert", image=image))
    both, _ = graph.upscale(batch, SMALL, stages=2)
    for name, link in (("first", [first[0], 1]), ("second", [second[0], 1]), ("both", [both, 1]), ("image", [both, 0])):
        graph.add("Keep", images=link, name=name)
    images = machine().run(graph).images
    for alone, other, joined in zip(images["first"], images["second"], images["both"], strict=True):
        assert torch.equal(joined, torch.cat((alone, other)))
    assert torch.equal(images["image"][0], images["both"][-1])
    assert len(images["both"]) == 2
    assert error(*images["both"][-1].split(1)) > 0.01


def test_more_stages_than_the_node_offers_come_in_order(machine: Callable[..., Machine]) -> None:
    graph = UpscaleGraph()
    dot = graph.add(
        "ImageScale", image=graph.add("GiveIMAGE"), upscale_method="area", width=1, height=1, crop="disabled"
    )
    upscaled, _ = graph.upscale(dot, 0.4)
    graph.add("Keep", images=[upscaled, 0], name="image")
    graph.add("Keep", images=[upscaled, 1], name="stages")
    images = machine().run(graph).images
    sides = [image.shape[1] for image in images["stages"]]
    assert sides == sorted(sides) and len(sides) == 10
    assert torch.equal(images["stages"][-1], images["image"][0])


def test_bands_and_lanes_do_not_show(machine: Callable[..., Machine]) -> None:
    def image(**values: Any) -> Tensor:
        return machine().run(one_node(SMALL, **values)).images["image"][0]

    expected = image(bands=1)
    for values in ({"bands": 2}, {"bands": 4}, {"bands": 4, "devices": "cpu,cpu"}):
        assert error(image(**values), expected) < 1e-5
