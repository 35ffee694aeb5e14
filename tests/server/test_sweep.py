"""CLEAR Sweep on real servers with the small FLUX: cancelled in one, gone on with in another, as after a restart."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools import gallery, workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.own_base import OwnBase
from devtools.small_flux import files as small

STEPS, SIDE, SEED = 2, 128, 5
AXES = f"radius: 2, 3, 5\nstrength: 0, 0.5, 1\nweights: {Path(small.CLEAR).stem}"
MODELS: workflow.Changes = {
    kind: values for kind, values in workflow.SMALL.changes().items() if kind != "CLEARWeightsLoader"
}


@dataclass(frozen=True)
class Place:
    client: ComfyClient
    output: Path

    def rows(self, prefix: str) -> list[dict[str, str]]:
        """With the path of each image."""
        path = self.output / f"{prefix}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            return [{**row, "path": str(path.parent / row["file"])} for row in csv.DictReader(file)]

    def picture(self, row: dict[str, str]) -> np.ndarray:
        with Image.open(row["path"]) as image:
            return np.asarray(image).astype(int)


@contextmanager
def served(base: OwnBase, folder: Path) -> Iterator[Place]:
    with gallery.served(folder, base=base.path, options=base.options) as client:
        yield Place(client, folder / "output")


def prompt(prefix: str, *changes: workflow.Changes, **inputs: Any) -> workflow.Prompt:
    """The shipped workflow on the small FLUX."""
    asked: workflow.Changes = {
        "Prompt": {"text": gallery.CASES["03_prompt_to_2k"].changes["Prompt"]["text"]},
        "BasicScheduler": {"steps": STEPS},
        "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
        "CLEARSweep": {"axes": AXES, "seeds": str(SEED), "filename_prefix": prefix, **inputs},
    }
    return workflow.changed(workflow.server_form("24_sweep"), MODELS, asked, *changes)


def said(run: Run) -> str:
    """The last text on the node."""
    return run.texts[-1][1].replace("  \n", "\n")


def sampled(run: Run) -> int:
    """Sampling steps."""
    return len([step for step in run.steps if step.total == STEPS])


@pytest.fixture(scope="module")
def cancelled(base: OwnBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a server that was told to stop in the fifth of nine cells, and is gone."""
    folder = tmp_path_factory.mktemp("first")
    with served(base, folder) as place:

        def stop(run: Run) -> None:
            if run.texts and "cell 5 of 9: " in run.texts[-1][1]:
                place.client.interrupt()

        run = place.client.run(prompt("sweeps/all"), stop)
        assert run.status == "interrupted"
        cells = [text.split("\n")[0].rstrip() for _, text in run.texts if text.startswith("cell ")]
        assert list(dict.fromkeys(cells))[:2] == [
            f"cell 1 of 9: radius 2, strength 0, seed {SEED}",
            f"cell 2 of 9: radius 3, strength 0, seed {SEED}",
        ]
    return folder / "output"


@pytest.fixture(scope="module")
def place(base: OwnBase, cancelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that has what the first one left."""
    with served(base, tmp_path_factory.mktemp("second")) as place:
        shutil.copytree(cancelled, place.output, dirs_exist_ok=True)
        yield place


@pytest.fixture(scope="module")
def resumed(place: Place) -> Run:
    return place.client.run(prompt("sweeps/all"))


def test_finished_cells_are_not_sampled_again(place: Place, cancelled: Path, resumed: Run) -> None:
    before = Place(place.client, cancelled).rows("sweeps/all")
    assert 4 <= len(before) < 10 and before[0]["attention"] == "dense"
    left = 10 - len(before)
    assert sampled(resumed) == left * STEPS
    assert said(resumed).startswith(f"sweeps/all.csv: {left} sampled, {len(before)} taken over\ndense: ")
    assert [row["finished"] for row in place.rows("sweeps/all")[: len(before)]] == [row["finished"] for row in before]
    assert not list(place.output.rglob("*.part"))


def test_a_row_for_every_cell(place: Place, resumed: Run) -> None:
    dense, *cells = place.rows("sweeps/all")
    assert [(row["radius"], row["strength"]) for row in cells] == [
        (radius, strength) for strength in ("0.0", "0.5", "1.0") for radius in ("2", "3", "5")
    ]
    reference = place.picture(dense) / 255
    for row in cells:
        assert (row["attention"], row["seed"], row["steps"]) == ("CLEAR", str(SEED), str(STEPS))
        assert (row["width"], row["height"], row["ntk_factor"]) == (str(SIDE), str(SIDE), "1.0")
        assert row["weights"] == Path(small.CLEAR).name
        assert float(row["seconds"]) > 0
        error = np.square(place.picture(row) / 255 - reference).mean()
        assert float(row["psnr"]) == pytest.approx(-10 * np.log10(error), abs=1e-3)
        assert 0 < float(row["ssim"]) < 1
    assert len({row["psnr"] for row in cells}) == 9


def test_the_values_are_those_of_single_nodes(place: Place, resumed: Run) -> None:
    """The images of Save Image, and what Compare Images says of them when they are loaded again."""
    dense, *cells = place.rows("sweeps/all")
    row = next(row for row in cells if (row["radius"], row["strength"]) == ("3", "0.5"))
    text = gallery.CASES["03_prompt_to_2k"].changes["Prompt"]["text"]
    asked = workflow.sampling(width=SIDE, height=SIDE, steps=STEPS, seed=SEED)
    sizes: workflow.Changes = {"Width": {"value": SIDE}, "Height": {"value": SIDE}}
    whole = workflow.changed(
        workflow.server_form("03_prompt_to_2k"),
        workflow.SMALL.changes(),
        asked,
        sizes,
        {"Prompt": {"text": text}, "CLEARApply": {"radius": 3, "strength": 0.5}},
    )
    # Like the sweep's workflow, which leaves the time shift as the model has it.
    for one, made in ((whole, row), (workflow.without_clear(whole), dense)):
        run = place.client.run(one)
        with Image.open(io.BytesIO(place.client.image(run.images()[0]))) as image:
            assert (np.asarray(image) == place.picture(made)).all()


def test_the_sheet_shows_all_pictures(place: Place, resumed: Run) -> None:
    saved = [one for one in resumed.images() if one["type"] == "output"]
    with Image.open(io.BytesIO(place.client.image(saved[0]))) as image:
        pixels = np.asarray(image).astype(int)
    for row in place.rows("sweeps/all"):
        picture = place.picture(row)
        first = np.argwhere((pixels[: -SIDE + 1, : -SIDE + 1] == picture[0, 0]).all(-1))
        assert any((pixels[y : y + SIDE, x : x + SIDE] == picture).all() for y, x in first)


def test_pressed_again_nothing_is_sampled(place: Place, resumed: Run) -> None:
    """With other axes, so that ComfyUI's own cache has no answer."""
    run = place.client.run(prompt("sweeps/all", axes=AXES.replace("2, 3, 5", "5, 3")))
    assert sampled(run) == 0
    assert "0 sampled, 7 taken over" in said(run)


@pytest.mark.parametrize(
    "change",
    [
        {"Prompt": {"text": "another"}},
        {"BasicScheduler": {"scheduler": "beta"}},
        {"KSamplerSelect": {"sampler_name": "heun"}},
        {"FluxGuidance": {"guidance": 2.0}},
        {"CLEARSweep": {"reuse": False}},
    ],
    ids=["prompt", "sigmas", "sampler", "guidance", "reuse off"],
)
def test_rows_of_another_sweep_are_not_taken_over(place: Place, resumed: Run, change: workflow.Changes) -> None:
    axes = AXES.replace("2, 3, 5", "3").replace("0, 0.5, 1", "1")
    one = prompt("sweeps/other", axes=axes, dense=False)
    place.client.run(one)
    run = place.client.run(workflow.changed(one, change))
    assert "sweeps/other.csv: 1 sampled, 0 taken over" in said(run)
    assert "not measured" in said(run)


def test_scores_come_later_without_sampling_again(place: Place) -> None:
    axes = AXES.replace("2, 3, 5", "3").replace("0, 0.5, 1", "1")
    place.client.run(prompt("later", axes=axes, dense=False))
    (row,) = place.rows("later")
    assert row["psnr"] == row["ssim"] == ""
    run = place.client.run(prompt("later", axes=axes))
    assert "1 sampled, 1 taken over" in said(run)
    again = next(one for one in place.rows("later") if one["key"] == row["key"])
    assert float(again["psnr"]) > 0 and again["finished"] == row["finished"]


def test_batches_and_lists_are_sampled_image_by_image(place: Place) -> None:
    """A batch of two, and the same two as a list: the noise of the batch in both."""
    asked: workflow.Changes = {"EmptySD3LatentImage": {"batch_size": 2}}
    inputs = {"axes": "radius: 3", "dense": False}
    run = place.client.run(prompt("batch", asked, **inputs))
    assert "2 sampled, 0 taken over" in said(run)
    listed = prompt("list", asked, **inputs)
    sweep = listed[workflow.node_id(listed, "CLEARSweep")]["inputs"]
    listed["split"] = {
        "class_type": "RebatchLatents",
        "inputs": {"latents": sweep["latent_image"], "batch_size": 1},
        "_meta": {"title": "split"},
    }
    sweep["latent_image"] = ["split", 0]
    place.client.run(listed)
    pictures = [[place.picture(row) for row in place.rows(name)] for name in ("batch", "list")]
    assert [row["image"] for row in place.rows("list")] == ["1", "2"]
    for one, other in zip(*pictures, strict=True):
        assert (one == other).all()
    assert (pictures[0][0] != pictures[0][1]).any()


def test_what_cannot_be_sampled_is_refused_first(place: Place) -> None:
    def refused(words: str, change: Callable[[Any], None] = lambda prompt: None, **inputs: Any) -> None:
        one = prompt("refused", **inputs)
        change(one)
        with pytest.raises(ClientError, match=words):
            place.client.run(one)
        assert not (place.output / "refused.csv").exists()

    refused("radius is 500; allowed is 0 to 128", axes="radius: 500")
    refused("there is no such file", axes="weights: ../secret")
    refused("filename_prefix is", filename_prefix="../refused")
    # Known when it runs, before anything is sampled: the first cell would be fine.
    refused("4 single blocks: d0-1 and s0-3 are allowed", axes="blocks: all, s0-9\nradius: 3")
    refused("sigmas has no steps", lambda one: one[workflow.node_id(one, "BasicScheduler")]["inputs"].update(denoise=0))


def test_a_model_with_clear_is_refused(place: Place) -> None:
    one = prompt("refused")
    guider = one[workflow.node_id(one, "BasicGuider")]["inputs"]
    defaults = workflow.server_form("03_prompt_to_2k")
    apply = dict(defaults[workflow.node_id(defaults, "CLEARApply")]["inputs"])
    apply |= {"model": guider["model"], "radius": 3}
    del apply["weights"]
    one["apply"] = {"class_type": "CLEARApply", "inputs": apply, "_meta": {"title": "apply"}}
    guider["model"] = ["apply", 0]
    with pytest.raises(ClientError, match="CLEAR is already applied to the guider's model"):
        place.client.run(one)


def test_the_node_has_a_line_for_each_cell(place: Place, resumed: Run) -> None:
    lines = said(resumed).split("\n")
    assert re.fullmatch(r"radius 2, strength 0: [\d.]+ dB, SSIM 0\.\d{4}, [\d.]+ s, [\d.]+ x", lines[2])
    assert len(lines) == 11
