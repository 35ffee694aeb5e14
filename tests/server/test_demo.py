"""`dev.py run`: on the small model headless and with a page, and which files it takes.

The weights are the model's own with some noise, as if distilled: what is tested is that the report says what is in the
pictures, not how good they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import dev
from devtools import checkpoints, demo, demo_page, demo_sheet, demo_small, workflow
from devtools.client import ComfyClient
from devtools.demo_files import choose_files, extra_models
from devtools.own_base import OwnBase
from devtools.server import HOST, ComfyServer
from devtools.small_flux import files, scenes
from devtools.small_flux.scorer import score

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def user(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder of a user, with weights for the small model; the text encoder is in the server's own."""
    folder = tmp_path_factory.mktemp("user")
    file = folder / files.CLEAR
    file.parent.mkdir()
    save_file(checkpoints.nudged_attention(files.FOLDER / files.FLUX), file, checkpoints.variant(files.RADIUS))
    return folder


def test_headless_says_what_is_in_its_pictures(user: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, (HOST, ROOT)))
    command = ("--headless", f"--output={tmp_path}", f"--models={user}", "--steps=3")
    done = subprocess.run(
        [sys.executable, "-m", "devtools.demo", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    columns = list(demo_small.COLUMNS.values())
    pictures = {name: [_pixels(tmp_path / f"{row + 1}_{name}.png") for row in range(3)] for name in columns}
    assert all(one.shape == (256, 256, 3) for shown in pictures.values() for one in shown)
    for one, other in combinations([one for shown in pictures.values() for one in shown], 2):
        assert np.abs(one - other).max() > 0.1

    whole = _pixels(tmp_path / demo_small.SIDE_BY_SIDE)
    for row in range(3):
        for column, name in enumerate(columns):
            x, y = demo_sheet.place(row, column, (256, 256), 3)
            assert np.array_equal(whole[y : y + 256, x : x + 256], pictures[name][row])
    assert whole.shape[1] == x + 256 + 8 and y + 256 < whole.shape[0] < y + 400

    lines = re.findall(r"^\d\. (.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == 5
    for name, line in zip(columns, lines[:3], strict=True):
        found = [score(one, prompt) for one, prompt in zip(pictures[name], demo_small.SHOWN, strict=True)]
        assert f"{sum(one.right for one in found)} of 3 " in line
        assert f"coherence {np.mean([one.coherence for one in found]):.2f}" in line
        if name != "dense":
            pairs = zip(pictures[name], pictures["dense"], strict=True)
            psnr = np.mean([-10 * np.log10(np.square(one - dense).mean()) for one, dense in pairs])
            assert f"{psnr:.1f} dB" in line
    assert f"attention needs {_share():.0%} of the dense multiply-adds" in lines[3]
    (said,) = re.findall(r"^seconds per step +([\d.]+) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    assert re.findall(r"([\d.]+) s ", lines[3]) == list(said)
    assert "77 of 333 tokens text" in lines[4] and "--full-width" in lines[4]


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def _share() -> float:
    """Of all pairs of 77 text and 16 x 16 image tokens, those that a window of radius 3 leaves."""
    y, x = np.mgrid[:16, :16].reshape(2, -1)
    near = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < 3**2
    return float(77 * 333 + 256 * 77 + near.sum()) / 333**2


def test_the_pages_workflow_runs_on_the_small_model(user: Path, base: OwnBase, tmp_path: Path) -> None:
    older = tmp_path / "user" / "default" / "workflows" / "CLEAR demo.json"
    older.parent.mkdir(parents=True)
    older.write_text("{}", encoding="utf-8")
    options = extra_models(user, workflow.SMALL, tmp_path / "paths.yaml")
    options += [*base.options, "--use-pytorch-cross-attention", "--disable-all-custom-nodes"]
    options += ["--whitelist-custom-nodes", demo.PACK_FOLDER, files.LOADER]
    for name in ("output", "input", "temp", "user"):
        (tmp_path / name).mkdir(exist_ok=True)
        options += [f"--{name}-directory", str(tmp_path / name)]
    with ComfyServer(tmp_path / "server.log", options=options, base=base.path, cpu=True) as server:
        client = ComfyClient(server.address)
        file = demo_page.put_workflow(client, workflow.SMALL, tmp_path / "user")
        ui = json.loads(file.read_text(encoding="utf-8"))
        prompt = workflow.to_api(ui, client.object_info())
        run = client.run(prompt)
        image = tmp_path / "shown.png"
        image.write_bytes(client.image(run.images()[0]))
        file.write_text("mine", encoding="utf-8")
        assert demo_page.put_workflow(client, workflow.SMALL, tmp_path / "user") == file
    assert file.read_text(encoding="utf-8") == "mine"
    assert older.read_text(encoding="utf-8") == "{}"
    said = run.texts[-1][1]
    assert "CLEAR ran: 120 layer calls" in said  # 20 steps of 2 double and 4 single blocks
    assert "\nfull attention: " not in said
    pixels = _pixels(image)
    assert pixels.shape == (256, 256, 3)
    # What even these weights get right.
    assert score(pixels, demo_small.SHOWN[0]).sky

    (note,) = [node["widgets_values"][0] for node in ui["nodes"] if node["type"] == "MarkdownNote"]
    for words in (scenes.COUNTS, scenes.COLOURS, scenes.THINGS, scenes.GROUNDS, scenes.SKIES, scenes.LIGHTS):
        assert ", ".join(words) in note
    assert prompt[workflow.node_id(prompt, "Prompt")]["inputs"]["text"] in note


def test_the_prompts_are_not_among_those_of_the_training() -> None:
    assert set(demo_small.SHOWN) <= set(scenes.split()[1])


def test_without_full_width_it_is_the_small_model(user: Path) -> None:
    assert choose_files(user, full_width=False) is workflow.SMALL


def test_full_width_takes_the_full_files(models: Path, tmp_path: Path) -> None:
    options, _ = dev.parse(["run", "--headless", "--full-width"])
    assert options.full_width
    assert demo.parse(["--headless", "--full-width"]).full_width
    assert not demo.parse(["--headless"]).full_width
    assert choose_files(None, full_width=True) is workflow.DEMO
    assert extra_models(None, workflow.DEMO, tmp_path / "paths.yaml") == []


def test_the_real_flux_comes_first(tmp_path: Path) -> None:
    for path in workflow.SHIPPED.paths():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for full_width in (False, True):
        assert choose_files(tmp_path, full_width=full_width) is workflow.SHIPPED


def test_a_missing_file_of_the_small_model_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (files.FLUX, files.VAE):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    with pytest.raises(OSError, match=r"small_flux_local_3\.safetensors is missing: .* python dev\.py prove makes"):
        choose_files(None, full_width=False)


def test_what_the_server_writes_stays_out_of_the_repository(user: Path, tmp_path: Path) -> None:
    """It writes into the first of its folders for weights."""

    def config(given: Path | None) -> dict[str, str]:
        _, file = extra_models(given, workflow.SMALL, tmp_path / "paths.yaml")
        return json.loads(Path(file).read_text(encoding="utf-8"))["extra"]

    assert config(user)["clear"].split("\n")[0] == str(user / "clear")
    assert not Path(config(None)["clear"].split("\n")[0]).is_relative_to(files.FOLDER)
    assert config(None)["custom_nodes"] == str(files.CUSTOM_NODES)
