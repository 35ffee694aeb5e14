"""CLEAR High-Res Upscale on the real server: the hand-wired graph's image, stage by stage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools import workflow
from devtools.client import Run

STEPS, DENOISE = 2, 0.5  # with so few steps the core rounds 0.7 up to 1, and the image would not matter


@pytest.fixture(scope="module")
def uploaded(client: Any) -> str:
    data = io.BytesIO()
    Image.effect_noise((96, 64), 60).convert("RGB").save(data, "PNG")
    return client.upload("to_carry_up.png", data.getvalue())


def one_node(uploaded: str, **values: Any) -> Any:
    changes: workflow.Changes = {
        "LoadImage": {"image": uploaded},
        "UNETLoader": {"weight_dtype": "default"},
        "CLEARHighRes": {
            "target_megapixels": 0.1,
            "denoise": DENOISE,
            "steps": STEPS,
            "bands": 2,
            "devices": "cpu",
            "seed": 5,
            **values,
        },
    }
    return workflow.changed(workflow.server_form("02_image_to_4k"), workflow.DEMO.changes(), changes)


def by_hand(uploaded: str, width: int, height: int) -> Any:
    changes: workflow.Changes = {
        "LoadImage": {"image": uploaded},
        "UNETLoader": {"weight_dtype": "default"},
        "Size": {"width": width, "height": height},
        "ModelSamplingFlux": {"width": width, "height": height},
        "BasicScheduler": {"steps": STEPS, "denoise": DENOISE},
        "RandomNoise": {"noise_seed": 5},
        "CLEARTiledSampler": {"devices": "cpu", "bands": 2},
    }
    prompt = workflow.changed(workflow.server_form("05_upscale_by_hand"), workflow.DEMO.changes(), changes)
    for kind, given in (("VAEEncode", "pixels"), ("VAEDecode", "samples")):
        node = prompt[workflow.node_id(prompt, f"{kind}Tiled")]
        node["class_type"] = kind  # as the one node does where there is memory for it, in a third of the time
        node["inputs"] = {name: node["inputs"][name] for name in (given, "vae")}
    return prompt


def pictures(client: Any, run: Run, prefix: str = "CLEAR_0") -> list[np.ndarray]:
    """What was saved under names that begin so."""
    found = []
    for reference in run.images():
        if reference["type"] != "output" or not reference["filename"].startswith(prefix):
            continue
        with Image.open(io.BytesIO(client.image(reference))) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def sampled(run: Run) -> int:
    """Sampling steps of a run, over all stages."""
    return len([step for step in run.steps if step.total == STEPS])


@pytest.fixture(scope="module")
def runs(client: Any, uploaded: str) -> tuple[Run, Run]:
    """A run that was cancelled in the second stage, and the next one.

    96 x 64 to 0.1 megapixels is growth of 16: two stages. Every test looks at this run, because a stage takes half a
    minute on a CPU.
    """

    def cancel(run: Run) -> None:
        if sampled(run) > STEPS:
            client.interrupt()

    prompt = one_node(uploaded, save_stages=True)
    cancelled = client.run(prompt, cancel)
    assert cancelled.status == "interrupted"
    return cancelled, client.run(prompt)


@pytest.fixture(scope="module")
def resumed(runs: tuple[Run, Run]) -> Run:
    return runs[1]


def test_cancelled_in_the_second_stage_it_goes_on_from_the_first(resumed: Run) -> None:
    assert 0 < sampled(resumed) <= STEPS


def test_a_stage_is_saved_as_soon_as_it_is_finished(client: Any, runs: tuple[Run, Run]) -> None:
    cancelled, resumed = runs
    (first,) = pictures(client, cancelled, "CLEAR_stage_1_192x128_0")
    (second,) = pictures(client, resumed, "CLEAR_stage_2_384x256_0")
    for saved, shown in zip((first, second), pictures(client, resumed), strict=True):
        assert (saved == shown).all()
    assert not pictures(client, cancelled, "CLEAR_stage_2")
    assert not pictures(client, resumed, "CLEAR_stage_1")


def test_a_saved_stage_holds_its_workflow(client: Any, runs: tuple[Run, Run]) -> None:
    (reference,) = (one for one in runs[0].images() if one["filename"].startswith("CLEAR_stage_1"))
    with Image.open(io.BytesIO(client.image(reference))) as image:
        assert '"class_type": "CLEARHighRes"' in image.info["prompt"]


def test_the_node_says_for_each_stage_how_it_passed_the_vae(runs: tuple[Run, Run]) -> None:
    said = [text for run in runs for _, text in run.texts if text.startswith("Stage ")]
    assert [text.partition(":")[0] for text in said] == [
        *("Stage 1, VAE encode", "Stage 1, VAE decode"),
        *("Stage 2, VAE encode", "Stage 2, VAE decode"),
    ]
    assert all(": the whole image at once (0." in text for text in said)


def test_each_stage_is_the_hand_wired_graphs(client: Any, uploaded: str, resumed: Run) -> None:
    """The second by hand starts from the first's image."""
    first, second = pictures(client, resumed)
    assert first.shape == (128, 192, 3)
    assert second.shape == (256, 384, 3)
    (hand,) = pictures(client, client.run(by_hand(uploaded, 192, 128)))
    assert (hand == first).all()
    data = io.BytesIO()
    Image.fromarray(first).save(data, "PNG")
    between = client.upload("between.png", data.getvalue())
    (hand,) = pictures(client, client.run(by_hand(between, 384, 256)))
    # A saved image has 8 bits, what passes from stage to stage has more.
    assert np.abs(hand.astype(int) - second).mean() < 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_megapixels": -1}, "target_megapixels"),
        ({"devices": "nvidia"}, "devices has 'nvidia'"),
        ({"stages": 99}, "stages"),
    ],
)
def test_nonsense_is_refused_when_queued(client: Any, uploaded: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        client.run(one_node(uploaded, **values))


def test_weights_are_wanted_once(client: Any, uploaded: str) -> None:
    prompt = one_node(uploaded)
    prompt[workflow.node_id(prompt, "CLEARHighRes")]["inputs"].pop("weights")
    prompt.pop(workflow.node_id(prompt, "CLEARWeightsLoader"))
    with pytest.raises(Exception, match="no CLEAR and no weights are connected: connect Load CLEAR Weights"):
        client.run(prompt)
