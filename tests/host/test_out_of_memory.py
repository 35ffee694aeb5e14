"""Out of memory: a layer is retried with a smaller workspace; otherwise ComfyUI's error stands, with advice."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from devtools.models import chroma_model, flux_model, inputs, run_forward, sample

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def shown(shown: Any) -> list[str]:
    """What Apply CLEAR Attention shows."""
    return shown["CLEARApply"]


@pytest.fixture
def full(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes memory full for calls of the backend sdpa that gather more than `room` bytes; their budgets."""
    backend = nodes_api.module("clear_core.backends.sdpa.backend").SdpaBackend
    own = backend.run

    def fill(room: int, error: Exception = FULL) -> list[int]:
        asked: list[int] = []

        def run(self: Any, call: Any) -> Any:
            asked.append(call.budget)
            if call.budget > room:
                raise error
            return own(self, call)

        monkeypatch.setattr(backend, "run", run)
        return asked

    return fill


def card_of(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """A card of so many GiB, where this machine has a processor."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device=None: int(size * 2**30))


def test_a_layer_is_retried_with_a_smaller_workspace(
    host: Any, nodes_api: Any, shown: list[str], full: Callable[..., list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    patched = nodes_api.apply(flux_model(), radius=3, backend="sdpa")
    expected = sample(patched, 16, 20)
    asked = full(64 * 2**20)
    with caplog.at_level(logging.WARNING):
        out = sample(patched, 16, 20)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert asked == [256 * 2**20, 64 * 2**20] * 6  # three layers, two steps
    said = "out of memory in a layer; retried with a workspace of 64 MB: slower"
    assert shown[-1].splitlines()[-1] == said
    assert [record.message for record in caplog.records] == [f"CLEAR: {said}"]
    assert "CLEAR ran: 6 layer calls" in shown[-1]


def test_a_band_is_retried_with_a_smaller_workspace(
    host: Any, nodes_api: Any, shown: list[str], full: Callable[..., list[int]]
) -> None:
    patched = nodes_api.apply(flux_model(), radius=3, backend="sdpa")
    patched = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=3, text_merge="exact")[0]
    expected = sample(patched, 16, 20)
    asked = full(16 * 2**20)
    torch.testing.assert_close(sample(patched, 16, 20), expected, rtol=0, atol=1e-5)
    assert set(asked) == {64 * 2**20, 16 * 2**20}
    assert "a workspace of 16 MB" in shown[-1]


def test_the_first_try_is_freed_before_the_retry(host: Any, nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    backend = nodes_api.module("clear_core.backends.sdpa.backend").SdpaBackend
    own = backend.run

    def run(self: Any, call: Any) -> Any:
        if not held:
            buffer = torch.empty(1000)
            held.append(weakref.ref(buffer))
            raise torch.OutOfMemoryError("full")
        gc.collect()
        assert held[0]() is None
        return own(self, call)

    monkeypatch.setattr(backend, "run", run)
    sample(nodes_api.apply(flux_model(), radius=3, backend="sdpa"), 16, 20)
    assert held


@pytest.mark.parametrize(
    ("size", "bands", "words"),
    [
        (24, 0, r"out of memory at 160 x 128 px: with 2 bands it would take 0.2 GiB besides the weights. Add CLEAR "),
        (24, 2, r"out of memory at 160 x 128 px: with 2 bands it would take 0.2 GiB besides the weights. Set bands to"),
        (0.2, 0, r"even with 2 bands it would take 0.2 GiB besides the weights, and the card has 0.1 GiB for that"),
    ],
)
def test_what_would_fit_is_said_and_the_error_stays_the_hosts(
    host: Any,
    nodes_api: Any,
    shown: list[str],
    full: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    size: float,
    bands: int,
    words: str,
) -> None:
    card_of(monkeypatch, size)
    patched = nodes_api.apply(flux_model(), radius=3, backend="sdpa")
    if bands:
        patched = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=bands, text_merge="exact")[0]
    asked = full(0)
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError) as error:
        sample(patched, 16, 20)
    assert error.value is FULL
    assert len(asked) == 2
    assert words in shown[-1].splitlines()[-1]
    assert words in caplog.records[-1].message
    # The next prompt finds everything as it was.
    full(2**40)
    sample(patched, 16, 20)
    assert "memory" not in shown[-1]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (16, "at 8192 x 8192 px: with 4 bands it would take 12.5 GiB besides the weights"),
        (4, "at 8192 x 8192 px: with 64 bands it would take 3.2 GiB besides the weights"),
        (
            2,
            "at 8192 x 8192 px: even with 128 bands it would take 4.0 GiB besides the weights, and the card has 1.5",
        ),
    ],
)
def test_the_tiling_that_is_named_is_the_memory_models(
    host: Any, nodes_api: Any, monkeypatch: pytest.MonkeyPatch, size: float, words: str
) -> None:
    card_of(monkeypatch, size)
    patched = nodes_api.apply(flux_model(dtype=torch.bfloat16), radius=16)
    flux = patched.model.diffusion_model
    monkeypatch.setattr(flux, "hidden_size", 3072)
    monkeypatch.setattr(flux, "num_heads", 24)
    said: list[str] = []
    report = nodes_api.module("nodes.host.run_log").RunLog("", said.append)
    advise = nodes_api.module("nodes.host.patching.out_of_memory").advise
    advise(report, patched, (1, 16, 1024, 1024), can_be_cut=True)
    assert words in said[-1]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_host_reserves_what_two_latents_need_in_bands(
    host: Any, nodes_api: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """The host doubles the batch for conditional and unconditional; the bands must be as many as that needs."""
    import comfy.sampler_helpers

    card_of(monkeypatch, 16)
    patched = nodes_api.apply(flux_model(dtype=torch.bfloat16), radius=16)
    flux = patched.model.diffusion_model
    monkeypatch.setattr(flux, "hidden_size", 3072)
    monkeypatch.setattr(flux, "num_heads", 24)
    patched.load_device = torch.device("cuda:0")  # on a CPU nothing is estimated
    memory, predicted = nodes_api.module("nodes.host.bands.memory"), nodes_api.module("clear_core.bands.memory")
    settings = nodes_api.module("nodes.options.bands").BandSettings((), 0, "exact")
    latent = (batch, 16, 1024, 1024)
    clear = patched.model_options["transformer_options"]["clear_attention_settings"]
    demand = memory.Demand.of(patched, latent, clear)

    def needed(count: int, latents: int) -> int:
        return predicted.banded_bytes(demand.plan_of(count), 512, demand.shape, latents)

    def reserved(shape: Any) -> float:
        return comfy.sampler_helpers.estimate_memory(patched, shape, {})[0]

    count = next(count for count in (1, 2, 4, 8, 16, 32, 64) if needed(count, 2 * batch) <= demand.room)
    assert count > 1
    shape = memory.shape_for_estimate(patched, latent, settings)
    assert (shape[0], shape[3]) == (batch, 1024)
    one_row = reserved(latent) / 1024  # the shape is in rows of the latent
    assert reserved(shape) == pytest.approx(2 * needed(count, batch), abs=one_row)
    assert needed(count, 2 * batch) <= reserved(shape) + one_row
    assert reserved(latent) > 1.5 * reserved(shape)


def test_out_of_memory_elsewhere_in_sampling_gets_advice_too(host: Any, nodes_api: Any, shown: list[str]) -> None:
    patched = nodes_api.apply(flux_model(), radius=3)

    def broken(*_: object) -> None:
        raise FULL

    flux = patched.model.diffusion_model
    handle = flux.double_blocks[0].img_mlp.register_forward_pre_hook(broken)
    with pytest.raises(torch.OutOfMemoryError) as error:
        sample(patched, 16, 20)
    handle.remove()
    assert error.value is FULL
    assert "out of memory at 160 x 128 px: with " in shown[-1]


@pytest.mark.parametrize("problem", [RuntimeError("shapes do not fit"), KeyError("x")])
def test_other_errors_are_not_retried(
    host: Any, nodes_api: Any, shown: list[str], full: Callable[..., list[int]], problem: Exception
) -> None:
    asked = full(0, problem)
    with pytest.raises(type(problem)) as error:
        sample(nodes_api.apply(flux_model(), radius=3, backend="sdpa"), 16, 20)
    assert error.value is problem
    assert len(asked) == 1
    assert "memory" not in shown[-1]


def test_a_model_that_cannot_be_cut_is_advised_otherwise(
    host: Any, nodes_api: Any, shown: list[str], full: Callable[..., list[int]]
) -> None:
    full(0)
    with pytest.raises(torch.OutOfMemoryError):
        sample(nodes_api.apply(chroma_model(), radius=3, backend="sdpa"), 16, 20)
    assert shown[-1].endswith("out of memory: choose a smaller image or fp8 weights")


def test_advice_that_fails_does_not_hide_the_error(
    host: Any, nodes_api: Any, full: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_total_memory", None)
    full(0)
    with pytest.raises(torch.OutOfMemoryError) as error:
        sample(nodes_api.apply(flux_model(), radius=3, backend="sdpa"), 16, 20)
    assert error.value is FULL


def test_an_empty_latent_says_so(host: Any, nodes_api: Any) -> None:
    given = {name: tensor[:0] for name, tensor in inputs(16, 20).items()}
    with pytest.raises(ValueError, match=r"latent to be sampled is empty: its shape is \(0, 16, 16, 20\)"):
        run_forward(nodes_api.apply(flux_model(), radius=3), **given)
