"""VAE Decode and VAE Encode in Strips, on the host's own autoencoders at their real sizes of layers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devtools.checkpoints import autoencoder

SPREAD = 1e-5  # of the picture's range, in float32


@pytest.fixture(scope="module")
def weights(host: Any) -> Any:
    """FLUX's autoencoder with random weights, its last layer scaled so that a picture is not clamped."""
    import comfy.sd

    found = autoencoder()
    with torch.inference_mode():
        vae: Any = comfy.sd.VAE(sd=found, dtype=torch.float32)
        raw = vae.first_stage_model.decode(torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)))
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        found[name] = found[name] / (3 * raw.std())
    return found


@pytest.fixture(scope="module")
def vae(host: Any, weights: Any) -> Any:
    import comfy.sd

    return comfy.sd.VAE(sd=dict(weights), dtype=torch.float32)


def latent(height: int, width: int, batch: int = 1, channels: int = 16) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def pixels(height: int, width: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(height * width))


@pytest.fixture
def run(nodes_api: Any, shown: Any) -> Callable[..., torch.Tensor]:
    """VAE Decode in Strips: the image of a latent."""

    def decode(vae: Any, samples: torch.Tensor, strips: int = 0, devices: str = "auto") -> torch.Tensor:
        asked = {"vae": vae, "strips": strips, "devices": devices}
        with torch.inference_mode():
            return nodes_api.execute("CLEARVAEDecode", samples={"samples": samples}, **asked)[0]

    return decode


@pytest.fixture
def encode(nodes_api: Any, shown: Any) -> Callable[..., torch.Tensor]:
    """VAE Encode in Strips: the latent of an image."""

    def encode(vae: Any, image: torch.Tensor, strips: int = 0, devices: str = "auto") -> torch.Tensor:
        with torch.inference_mode():
            made = nodes_api.execute("CLEARVAEEncode", pixels=image, vae=vae, strips=strips, devices=devices)[0]
        return made["samples"]

    return encode


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    spread = expected.max() - expected.min()
    assert (got - expected).abs().max() <= SPREAD * spread


@pytest.mark.parametrize(("height", "width", "strips"), [(5, 9, 1), (9, 7, 3), (4, 3, 50), (6, 11, 2), (7, 4, 0)])
def test_the_image_is_that_of_the_plain_decode(vae: Any, run: Any, height: int, width: int, strips: int) -> None:
    z = latent(height, width)
    with torch.inference_mode():
        expected = vae.decode(z)
    assert_equal(run(vae, z, strips), expected)


@pytest.mark.parametrize(("height", "width", "strips"), [(40, 72, 1), (72, 56, 3), (32, 24, 50), (61, 91, 2)])
def test_the_latent_is_that_of_the_plain_encode(vae: Any, encode: Any, height: int, width: int, strips: int) -> None:
    image = pixels(height, width)
    with torch.inference_mode():
        expected = vae.encode(image)
    assert_equal(encode(vae, image, strips), expected)


def test_a_latent_of_one_cell_and_a_batch(vae: Any, run: Any, encode: Any) -> None:
    for z in (latent(1, 1), latent(3, 2, batch=2)):
        with torch.inference_mode():
            expected = vae.decode(z)
        assert_equal(run(vae, z, 2), expected)
    image = pixels(8, 16, batch=2, channels=4)
    with torch.inference_mode():
        expected = vae.encode(image[..., :3])
    assert_equal(encode(vae, image, 2), expected)  # alpha is left out


def test_two_lanes_give_what_one_gives(vae: Any, run: Any, encode: Any) -> None:
    z, image = latent(5, 3), pixels(40, 24)
    assert torch.equal(run(vae, z, 3, "cpu,cpu"), run(vae, z, 3))
    assert torch.equal(encode(vae, image, 3, "cpu,cpu,cuda:7"), encode(vae, image, 3))


def test_in_bfloat16_it_is_no_further_from_float32_than_the_plain_decode(
    host: Any, weights: Any, vae: Any, run: Any
) -> None:
    import comfy.sd

    half: Any = comfy.sd.VAE(sd=dict(weights), dtype=torch.bfloat16)
    z = latent(2, 3)
    with torch.inference_mode():
        exact, plain = vae.decode(z), half.decode(z)
    got = run(half, z, 2)
    assert (got - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize(("strips", "devices"), [(1, "auto"), (3, "auto"), (50, "auto"), (0, "auto"), (4, "cpu,cpu")])
def test_maps_that_memory_has_no_room_for_are_computed_again(
    nodes_api: Any, vae: Any, run: Any, encode: Any, monkeypatch: pytest.MonkeyPatch, strips: int, devices: str
) -> None:
    host, plan = (nodes_api.module(name) for name in ("nodes.host.vae_strips", "clear_core.strips.plan"))
    z, image = latent(3, 2), pixels(24, 16)
    with torch.inference_mode():
        plain, plain_latent = vae.decode(z), vae.encode(image)
    model = vae.first_stage_model
    for network, shape, decoding in ((model.decoder, (16, 3, 2), True), (model.encoder, (3, 24, 16), False)):
        kept, computed = (
            plan.strip_plan(network, shape, torch.float32, decoding=decoding, recompute=recompute)
            for recompute in (False, True)
        )
        assert computed.maps <= (0.5 if decoding else 0.63) * kept.maps
        assert kept.work < computed.work < 1.5 * kept.work
    monkeypatch.setattr(host, "_main_memory", lambda: kept.maps - 1)  # of the encoder, the lesser
    assert_equal(run(vae, z, strips, devices), plain)
    assert_equal(encode(vae, image, strips, devices), plain_latent)


@pytest.mark.parametrize("room", [0, 2**19])
def test_what_does_not_fit_into_memory_waits_in_files(
    nodes_api: Any, vae: Any, run: Any, monkeypatch: pytest.MonkeyPatch, temp: Path, room: int
) -> None:
    strips = nodes_api.module("nodes.host.vae_strips")
    z = latent(4, 3)
    expected = run(vae, z, 3)
    monkeypatch.setattr(strips, "_main_memory", lambda: room)
    with torch.inference_mode():
        got, used = strips.vae_decode_strips(vae, z, (), 3)
    assert_equal(got, expected)
    assert used.memory <= room and used.files > 0
    assert "in files" in used.text
    assert list(temp.iterdir()) == []


@pytest.fixture
def temp(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder for temporary files."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def test_keys_that_do_not_fit_onto_the_device_pass_in_blocks(nodes_api: Any, vae: Any) -> None:
    core, sweep, maps = (
        nodes_api.module(f"clear_core.strips.{name}") for name in ("autoencoder", "sweep", "feature_map")
    )
    z = latent(7, 5)
    found: dict[int, torch.Tensor] = {}
    with torch.inference_mode(), maps.Storage(2**34, Path()) as storage:
        lane = sweep.Lane(torch.device("cpu"), vae.first_stage_model.decoder, 2**21, 0)
        core.decode(sweep.Sweeps([lane], storage), z, found.__setitem__)
        expected = vae.first_stage_model.decoder(z)
    assert len(found) > 1  # the budget of a strip cuts it
    assert_equal(torch.cat([found[start] for start in sorted(found)], 2), expected)


# ---- other autoencoders ---------------------------------------------------------------------------------


def test_one_with_quant_convolutions(host: Any, run: Any, encode: Any) -> None:
    """As SD 1.5 and SDXL have: 4 channels."""
    import comfy.sd

    other: Any = comfy.sd.VAE(sd=autoencoder(channels=4, quantised=True), dtype=torch.float32)
    z, image = latent(5, 6, channels=4), pixels(40, 24)
    with torch.inference_mode():
        expected, encoded = other.decode(z), other.encode(image)
    assert_equal(run(other, z, 2), expected)
    assert_equal(encode(other, image, 2), encoded)


def test_another_kind_is_refused_by_its_name(host: Any, run: Any) -> None:
    import comfy.sd

    other: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"The VAE is or has a PixelspaceConversionVAE\. .* VAE Decode"):
        run(other, latent(4, 4, channels=3))


def test_an_image_of_less_than_a_cell_is_refused(vae: Any, encode: Any) -> None:
    with pytest.raises(ValueError, match="pixels is 7 x 40 pixels; the VAE needs 8 a side"):
        encode(vae, pixels(40, 7))


def test_a_share_that_would_not_count_is_refused(vae: Any, run: Any, pack: dict[str, Any]) -> None:
    words = "devices gives cpu a share, 2; strips go to the devices in turn. Write the names alone"
    assert pack["CLEARVAEDecode"].validate_inputs(strips=0, devices="cpu=2").startswith(words)
    with pytest.raises(ValueError, match=words):
        run(vae, latent(2, 2), 1, "cpu=2")


def test_a_video_and_values_that_are_no_numbers_are_refused(vae: Any, run: Any) -> None:
    with pytest.raises(ValueError, match="samples has 5 dimensions"):
        run(vae, torch.zeros(1, 16, 1, 4, 4))
    z = latent(4, 4)
    z[0, 3, 2, 1] = float("nan")
    with pytest.raises(ValueError, match="samples has NaN or infinite values"):
        run(vae, z)


# ---- faults ---------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_left(vae: Any, temp: Path) -> Any:
    yield
    assert "forward" not in vars(vae.first_stage_model.decoder)
    assert list(temp.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
def test_a_full_disk_is_told_before_and_while_it_is_written(
    nodes_api: Any, vae: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strips, maps = (nodes_api.module(name) for name in ("nodes.host.vae_strips", "clear_core.strips.feature_map"))
    monkeypatch.setattr(strips, "_main_memory", lambda: 0)
    with monkeypatch.context() as full:
        full.setattr(maps.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(maps.StorageError, match=r"need .* GiB more than main memory has; .* Free space there"):
            run(vae, latent(4, 4), 2)

    def write(self: Any, start: int, rows: torch.Tensor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(maps.FileMap, "write", write)
    with pytest.raises(maps.StorageError, match="Free space there"):
        run(vae, latent(4, 4), 2)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("devices", "after"), [("auto", 1), ("auto", 20), ("cpu,cpu", 9)])
def test_cancel_stops_it_in_any_layer(
    host: Any, vae: Any, run: Any, monkeypatch: pytest.MonkeyPatch, devices: str, after: int
) -> None:
    import comfy.model_management as management

    calls: list[None] = []

    def interrupted() -> None:
        calls.append(None)
        if len(calls) == after:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        run(vae, latent(6, 4), 3, devices)
    # The host asks in each layer too: a lane that is in a strip while the other is stopped asks in the rest of its
    # layers, of which the attention has most, four.
    others = devices.count(",")
    assert after <= len(calls) <= after + 4 * others


@pytest.mark.usefixtures("nothing_left")
def test_a_device_that_runs_out_gets_smaller_strips(
    nodes_api: Any, vae: Any, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    strips = nodes_api.module("nodes.host.vae_strips")
    budgets: list[int] = []
    real = strips._Run._once

    def once(self: Any, given: Any, result: Any, budget: int) -> Any:
        budgets.append(budget)
        if len(budgets) == 1:
            raise management.OOM_EXCEPTION
        return real(self, given, result, budget)

    monkeypatch.setattr(strips._Run, "_once", once)
    z = latent(5, 4)
    with torch.inference_mode():
        got, used = strips.vae_decode_strips(vae, z, (), 0)
        expected = vae.decode(z)
    assert_equal(got, expected)
    assert budgets[1] < budgets[0]
    assert "Out of memory: started again with smaller strips (1 x)" in used.text


def test_what_overflows_in_half_precision_is_told(nodes_api: Any, host: Any, weights: Any, run: Any) -> None:
    import comfy.sd

    large = {**weights, "decoder.mid.block_1.conv1.weight": weights["decoder.mid.block_1.conv1.weight"] * 1e6}
    half: Any = comfy.sd.VAE(sd=large, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"mid.block_1.conv1 gives NaN or infinite values in float16.*--fp32-vae"):
        run(half, latent(4, 4))


# ---- the page and the plan --------------------------------------------------------------------------------


def test_it_shows_how_it_passed(vae: Any, run: Any, shown: Any) -> None:
    run(vae, latent(4, 4), 2)
    (texts,) = shown.values()
    assert texts[-1].startswith("Exact, in strips on cpu; feature maps: 0.0 GiB in main memory")


def test_the_rows_that_are_done_are_shown(nodes_api: Any, vae: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils

    sent: list[Any] = []
    monkeypatch.setattr(nodes_api.module("nodes.insight.row_preview"), "_EVERY", 0.0)
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: sent.append(preview)
    )
    image = run(vae, latent(4, 6), 4)[0]
    pictures = [np.asarray(preview[1]) for preview in sent if preview]
    assert len(pictures) == 4  # one for each strip of the last layer
    assert pictures[0].shape == (32, 48, 3)
    assert (pictures[0][8:] == 64).all()
    assert np.abs(pictures[-1] - 255 * image.numpy()).max() <= 1


@pytest.mark.parametrize("tiling", ["auto", "strips"])
def test_an_upscale_passes_in_strips_where_the_whole_does_not_fit(
    nodes_api: Any, vae: Any, monkeypatch: pytest.MonkeyPatch, tiling: str
) -> None:
    passing = nodes_api.module("nodes.host.vae")
    monkeypatch.setattr(passing, "room_on", lambda *args: 0 if tiling == "auto" else 2**50)
    z, image = latent(3, 2), pixels(24, 16)
    with torch.inference_mode():
        plain, plain_latent = vae.decode(z), vae.encode(image)
        decoded, how = passing.vae_decode(vae, z, tiling)
        encoded, _ = passing.vae_encode(vae, image, tiling)
    assert_equal(decoded, plain)
    assert_equal(encoded, plain_latent)
    assert how.text.startswith("in strips (0.0 GiB for the whole, ")
    assert " GiB free) on cpu; feature maps: 0.0 GiB in main memory" in how.text


def test_before_a_run_an_upscale_plans_the_same(nodes_api: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passing = nodes_api.module("nodes.host.vae")
    monkeypatch.setattr(passing, "room_on", lambda *args: 100 * 2**30)
    plans = [passing.vae_plan_here(side, side, "auto") for side in (512, 2048, 4096)]
    assert plans == [passing.vae_plan(vae, side, side, "auto") for side in (512, 2048, 4096)]
    assert [plan.way for plan in plans] == ["whole", "whole", "strips"]


def test_memory_of_maps_is_known_before(nodes_api: Any, vae: Any) -> None:
    plan = nodes_api.module("clear_core.strips.plan").strip_plan
    strips = nodes_api.module("nodes.host.vae_strips")
    expected = plan(vae.first_stage_model.decoder, (16, 3, 4), torch.float32, decoding=True)
    with torch.inference_mode():
        _, used = strips.vae_decode_strips(vae, latent(3, 4), (), 2)
    assert used.memory == expected.maps
    large = plan(vae.first_stage_model.decoder, (16, 1024, 1024), torch.bfloat16, decoding=True)
    assert large.maps == (256 + 128) * 8192**2 * 2
