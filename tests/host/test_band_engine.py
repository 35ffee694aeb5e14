"""How a forward in bands runs inside the host's own: order of work, threads, placeholders, foreign forwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core.bands.plan import BandPlan
from clear_core.bands.simulate import Costs, simulate
from clear_core.layout import Grid
from clear_core.window import Window
from devtools.models import flux_model, inputs, run_forward, sample

from host import packs
from host.comparing import error


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


@pytest.mark.parametrize(("devices", "bands", "factor"), [(1, 5, 1), (2, 6, 1), (3, 9, 1), (2, 6, 2)])
def test_the_hosts_forward_does_what_the_simulator_replays(
    model: Any,
    nodes_api: Any,
    in_bands: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    devices: int,
    bands: int,
    factor: int,
) -> None:
    module = nodes_api.module("nodes.host.bands.forward")
    trace: list[Any] = []

    class Traced(module.BandedForward):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings, trace=trace)

    monkeypatch.setattr(module, "BandedForward", Traced)
    patched = nodes_api.apply(model, radius=3, down_factor=factor)
    run_forward(in_bands(patched, bands, ",".join(["cpu"] * devices)), **inputs(48, 16))
    plan = BandPlan.cut(Grid(24, 8), bands, Window(3), down_factor=factor, shares=[1.0] * devices)
    layers = len(model.model.diffusion_model.double_blocks) + len(model.model.diffusion_model.single_blocks)
    simulated = simulate(plan, Costs(3, 5, 1, 1, lambda copy: 2), layers, pooled=factor > 1)

    def told(events: list[Any], lane: int) -> list[str]:
        # The pack that the host has loaded has classes of its own.
        return [f"{event.layer} {event.what}" for event in events if event.lane == lane]

    for lane in range(devices):
        assert told(trace, lane) == told(simulated.of(lane), lane)
    assert len(trace) == len(simulated.events)


def test_the_number_of_threads_is_that_of_the_devices(model: Any, nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    patched = nodes_api.apply(model, radius=3)
    for devices in (1, 3):
        for bands in (3, 20):
            banded = in_bands(patched, bands, ",".join(["cpu"] * devices))
            threads: set[int] = set()
            handle = model.model.diffusion_model.single_blocks[0].linear1.register_forward_pre_hook(
                lambda *_, threads=threads: threads.add(threading.get_ident())
            )
            run_forward(banded, **inputs(48, 16))
            handle.remove()
            assert len(threads) == devices


def test_layers_that_scale_their_input_by_its_largest_value(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any]
) -> None:
    """As dynamically quantised ones do: a placeholder of zeros would be 0 / 0."""
    flux = model.model.diffusion_model
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **inputs(24, 18))

    def scaled(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        scale = args[0].abs().amax()
        return ((args[0] / scale) * scale,)

    linears = [module for module in flux.modules() if isinstance(module, torch.nn.Linear)]
    handles = [linear.register_forward_pre_hook(scaled) for linear in linears]
    try:
        for devices in ("cpu", "cpu,cpu"):
            assert error(run_forward(in_bands(patched, 4, devices), **inputs(24, 18)), expected) < 1e-5
    finally:
        for handle in handles:
            handle.remove()


def test_layers_that_quantise_their_input_by_band_are_said(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], shown: Any
) -> None:
    patched = nodes_api.apply(model, radius=3)
    layer = model.model.diffusion_model.single_blocks[0].linear1
    run_forward(in_bands(patched, 3), **inputs(20, 16))
    assert "quantise their input" not in shown["CLEARMultiGPU"][-1]
    layer.layout_type, layer._full_precision_mm, layer.input_scale = "TensorCoreNVFP4Layout", False, None
    run_forward(in_bands(patched, 3), **inputs(20, 16))
    assert "layers that quantise their input take its scale from each band" in shown["CLEARMultiGPU"][-1]


def test_a_forward_of_another_pack_that_knows_no_patches_is_named(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any]
) -> None:
    pack = packs.load("teacache", "ComfyUI-TeaCache.nodes")
    patched = pack.apply(nodes_api.apply(model, radius=3))
    with pytest.raises(ValueError, match="comes from ComfyUI-TeaCache.nodes.*or use one band"):
        sample(in_bands(patched, 3), 20, 16)


def test_several_cards_take_bands_enough_to_hide_what_travels(host: Any, nodes_api: Any) -> None:
    memory = nodes_api.module("nodes.host.bands.memory")
    pack = nodes_api.module("clear_core.bands.plan")
    core = nodes_api.module("clear_core.layout")
    window = nodes_api.module("clear_core.window")
    shape = nodes_api.module("clear_core.bands.memory").ModelShape()

    def count(lanes: int, rows: int, free: int | None = 10**12) -> int:
        def plan_of(count: int) -> Any:
            return pack.BandPlan.cut(core.Grid(rows, 64), count, window.Window(4), shares=[1.0] * lanes)

        return memory.fitting_count(plan_of, lanes, free, 512, shape, 1)

    assert (count(1, 512), count(2, 512), count(4, 512)) == (1, 8, 16)
    assert count(4, 512, None) == 4, "nothing travels on a CPU"
    assert count(4, 32) == 8, "bands of four rows at least"
    assert count(4, 3) == 4


def test_a_card_of_another_machine_with_less_memory_asks_for_more_bands(
    model: Any, nodes_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = nodes_api.module("nodes.host.bands.memory")
    layout, plan = nodes_api.module("clear_core.layout"), nodes_api.module("clear_core.bands.plan")
    window = nodes_api.module("clear_core.window").Window(4)
    flux = model.model.diffusion_model
    lane = nodes_api.module("nodes.host.bands.replicas").Lane(torch.device("cpu"), flux, 1.0)

    def bands(others: list[int | None]) -> int:
        def plan_of(count: int) -> Any:
            return plan.BandPlan.cut(layout.Grid(512, 64), count, window, shares=[1.0] * (1 + len(others)))

        return len(memory.plan_that_fits(plan_of, [lane], others, flux, 2, 512, 1).bands)

    assert bands([None]) == 2, "nothing is to be saved on either"
    whole = nodes_api.module("clear_core.bands.memory").banded_bytes
    eight = plan.BandPlan.cut(layout.Grid(512, 64), 8, window, shares=[1.0] * 2)
    need = whole(eight, 512, memory.shape_of(flux, 2, lane.device))
    assert bands([need]) == 8
    assert bands([need, need // 2]) > bands([need, need])
    monkeypatch.setattr(memory, "free_bytes", lambda lanes: need // 2)
    assert bands([need]) > 8, "the least of all decides"


def test_references_count_as_memory(
    model: Any, nodes_api: Any, in_bands: Callable[..., Any], shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = nodes_api.module("nodes.host.bands.memory")
    free = 0

    def free_bytes(lanes: Any) -> int:
        return free

    def fitted(**more: Any) -> int:
        run_forward(in_bands(patched, 0), **inputs(64, 16), **more)
        return int(shown["CLEARMultiGPU"][-1].split()[0])

    monkeypatch.setattr(memory, "free_bytes", free_bytes)
    patched = nodes_api.apply(model, radius=1)
    banded_bytes = nodes_api.module("clear_core.bands.memory").banded_bytes
    shape = memory.shape_of(model.model.diffusion_model, 4)
    grid = nodes_api.module("clear_core.layout").Grid(32, 8)
    settings = patched.model_options["transformer_options"][nodes_api.module("nodes.host.attention_call").SETTINGS]
    text = inputs(64, 16)["context"].shape[1]
    free = banded_bytes(memory.plans(grid, settings)(2), text, shape)
    assert fitted() == 2
    assert fitted(ref_latents=[torch.zeros(1, 16, 16, 32)]) > 2
