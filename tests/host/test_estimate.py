"""The estimate before a run: models as they are loaded, what fits, the measurement, and the report's seconds."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from devtools.models import flux_model

GIB = 2**30


@pytest.fixture(scope="module")
def page(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.page.estimate")


@pytest.fixture(scope="module")
def usual(nodes_api: Any) -> Any:
    return nodes_api.module("clear_core.show.cost").Model()


@pytest.fixture
def user(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's user folder and its folder of previews."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(nodes_api: Any, page: Any, usual: Any) -> Any:
    """A run of FLUX.1-dev; bands: what CLEAR Multi-GPU has, None without it."""
    clear = nodes_api.module("nodes.options.clear").USUAL
    cut = nodes_api.module("nodes.options.bands").resolve_bands
    subject = nodes_api.module("clear_core.show.estimate").Subject

    def make(side: int, bands: tuple[str, int] | None = None, weights: Any = torch.bfloat16, **more: Any) -> Any:
        own = subject(usual, 19, 38, weights, 11_901_408_320 * weights.itemsize)
        return page.Asked(clear, cut(*bands, "exact") if bands else None, side, side, 20, own, **more)

    return make


@pytest.fixture
def here(page: Any) -> Any:
    def make(*gib: float, ram: float = 64) -> Any:
        names = [*(f"cuda:{i}" for i in range(len(gib))), "cpu"]
        sizes = {name: int(size * GIB) for name, size in zip(names, (*gib, ram), strict=True)}
        return page.Here(names, sizes, sizes, sizes, 10 * GIB)

    return make


def facts(page: Any, asked: Any, here: Any) -> tuple[int, Any]:
    found = page.estimate_payload(asked, here, None)
    return found["memory"]["missing"], found["fix"]


def test_a_card_that_holds_all_needs_no_repair(page: Any, asked: Any, here: Any) -> None:
    found = page.estimate_payload(asked(2048), here(80), None)
    memory = found["memory"]
    assert (memory["device"], memory["missing"], found["fix"]) == ("cuda:0", 0, None)
    assert memory["weights"] == 2 * 11_901_408_320
    assert memory["need"] == memory["weights"] + memory["step"]
    assert found["ram"]["need"] == memory["weights"]
    assert found["disk"] is None


def test_a_large_image_asks_for_bands(page: Any, asked: Any, here: Any) -> None:
    missing, fix = facts(page, asked(8192), here(40))
    assert missing > 0
    assert fix == {"kind": "bands", "bands": 0}
    missing, fix = facts(page, asked(8192, ("auto", 1)), here(40))
    assert missing > 0
    assert fix == {"kind": "bands", "bands": 0}
    found = page.estimate_payload(asked(8192, ("auto", 0)), here(40), None)
    assert (found["memory"]["missing"], found["fix"]) == (0, None)
    assert found["bands"] > 1


def test_a_small_card_asks_for_fp8(page: Any, asked: Any, here: Any) -> None:
    missing, fix = facts(page, asked(1024), here(16))
    assert missing > 0
    assert fix == {"kind": "fp8"}
    assert facts(page, asked(8192), here(20))[1] == {"kind": "fp8 and bands"}
    assert facts(page, asked(1024, weights=torch.float8_e4m3fn), here(16)) == (0, None)
    assert facts(page, asked(1024, weights=torch.float8_e4m3fn), here(8))[1] == {"kind": "none"}
    found = page.estimate_payload(asked(1024), here(16), None)
    assert found["memory"]["offloaded"]


def test_a_model_that_cannot_be_cut_is_offered_no_bands(page: Any, asked: Any, here: Any) -> None:
    run = asked(8192)
    model = dataclasses.replace(run.subject.model, can_be_cut=False)
    run = dataclasses.replace(run, subject=dataclasses.replace(run.subject, model=model))
    assert facts(page, run, here(40))[1] == {"kind": "fp8"}
    assert facts(page, run, here(20))[1] == {"kind": "none"}


def test_on_a_cpu_the_number_of_bands_is_given(page: Any, asked: Any, here: Any) -> None:
    missing, fix = facts(page, asked(8192, ("auto", 0)), here(ram=36))
    assert missing > 0
    assert fix["kind"] == "bands"
    assert fix["bands"] > 1
    assert facts(page, asked(8192, ("auto", fix["bands"])), here(ram=36)) == (0, None)


def test_a_download_is_held_against_the_disk(page: Any, asked: Any, here: Any) -> None:
    found = page.estimate_payload(asked(1024, download=3 * GIB, patches=3 * GIB), here(80), None)
    assert found["disk"] == {"need": 3 * GIB, "free": 10 * GIB}
    assert found["ram"]["need"] == found["memory"]["weights"] + 3 * GIB


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_is_what_its_header_says(
    nodes_api: Any, usual: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    import folder_paths

    tensors = {
        f"{prefix}double_blocks.{i}.img_attn.qkv.weight": torch.zeros(768, 256, dtype=torch.bfloat16) for i in range(2)
    }
    tensors |= {
        f"{prefix}single_blocks.{i}.linear2.weight": torch.zeros(256, 1280, dtype=torch.bfloat16) for i in range(3)
    }
    others = {"vae.decoder.weight": torch.zeros(999), "text_encoders.t5xxl.weight": torch.zeros(999)} if prefix else {}
    save_file({**tensors, **others}, str(tmp_path / "own.safetensors"))
    (tmp_path / "own.gguf").write_bytes(b"GGUF" * 100)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    subject_of = nodes_api.module("nodes.host.model_file").subject_of
    found = subject_of(usual, "diffusion_models", "own.safetensors", "default")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    assert (found.double, found.single, found.model.channels, found.model.heads) == (2, 3, 256, 2)
    assert found.size == numbers * found.weights.itemsize
    fp8 = subject_of(usual, "diffusion_models", "own.safetensors", "fp8_e4m3fn")
    assert (fp8.weights, fp8.size) == (torch.float8_e4m3fn, numbers)
    assert subject_of(usual, "diffusion_models", "own.gguf", "").size == 400
    for name in ("absent.safetensors", "../../secret", ""):
        absent = subject_of(usual, "diffusion_models", name, "")
        assert (absent.double, absent.single, absent.model) == (19, 38, usual)


def test_a_measurement_is_kept_and_the_report_says_what_the_panel_says(
    nodes_api: Any, page: Any, here: Any, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a narrow model, really measured."""
    measure, own_times = (nodes_api.module(f"nodes.host.{name}") for name in ("measure", "own_times"))
    monkeypatch.setattr(measure, "CPU_SECONDS", 0.1)  # one round
    model = nodes_api.apply(flux_model(hidden_size=64, num_heads=2, axes_dim=[8, 12, 12]), radius=6)
    info = nodes_api.module("nodes.host.flux_model").model_info(model)
    absent = nodes_api.execute("CLEARReport", model=model, width=512, height=512)[1]
    assert "Time per step" not in absent
    shares: list[float] = []
    timings = measure.measure(info.size, "auto", info.clear.window, shares.append, lambda: None)
    assert shares == sorted(shares)
    assert {"sdpa", "masked"} <= timings.local.keys()
    assert own_times.own_times(info.subject, "auto") is None
    own_times.keep_times(info.subject, "auto", timings)
    assert own_times.own_times(info.subject, "auto") == timings
    assert own_times.own_times(info.subject, "sdpa") is None
    text = nodes_api.execute("CLEARReport", model=model, width=512, height=512)[1]
    assert text.index("Time per step, from this device's own measurement") < text.index("Attention in one step")
    asked = page.Asked(info.clear, None, 512, 512, 4, info.subject)
    seconds = page.estimate_payload(asked, here(), timings)["seconds"]
    shown = nodes_api.module("clear_core.show.numbers").shown
    (said,) = re.findall(r"^  512 x 512: ([\d.,e-]+) s", text, re.MULTILINE)
    assert said == shown(seconds["step"])
    assert seconds["all"] == pytest.approx(4 * seconds["step"])


def test_a_measurement_can_be_stopped(nodes_api: Any, usual: Any) -> None:
    measure = nodes_api.module("nodes.host.measure")
    tiny = type(usual)(layers=3, channels=32, heads=2, dtype=torch.float32)
    window = nodes_api.module("clear_core.window").Window(8)
    with pytest.raises(measure.Stopped, match="enough"):
        measure.measure(tiny, "auto", window, lambda share: None, lambda: "enough")


def test_weights_that_do_not_fit_take_their_transfer(nodes_api: Any, page: Any, asked: Any, here: Any) -> None:
    estimate = nodes_api.module("clear_core.show.estimate")
    rate = estimate.Rate(0.0, 1e-6)
    backends = dict.fromkeys(("sdpa", "masked", "triton"), rate)
    untimed = estimate.Timings(rate, rate, rate, backends)
    timed = estimate.Timings(rate, rate, rate, backends, transfer=1e9)
    large, small = (page.estimate_payload(asked(1024), here(size), timed) for size in (80, 16))
    added = small["seconds"]["step"] - large["seconds"]["step"]
    assert added == pytest.approx(small["memory"]["missing"] / 1e9)
    assert not small["seconds"]["untimed"]
    assert page.estimate_payload(asked(1024), here(16), untimed)["seconds"]["untimed"]
