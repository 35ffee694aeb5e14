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
    return workflow.changed(workflow.server_form("clear_high_res"), workflow.DEMO.changes(), changes)


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
    return workflow.changed(workflow.server_form("clear_upscale_by_hand"), workflow.DEMO.changes(), changes)


def pictures(client: Any, run: Run) -> list[np.ndarray]:
    found = []
    for reference in run.images():
        with Image.open(io.BytesIO(client.image(reference))) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


@pytest.fixture(scope="module")
def whole(client: Any, uploaded: str) -> list[np.ndarray]:
    """The stages' images. 96 x 64 to 0.1 megapixels is growth of 16: two stages."""
    return pictures(client, client.run(one_node(uploaded)))


def test_each_stage_is_the_hand_wired_graphs(client: Any, uploaded: str, whole: list[np.ndarray]) -> None:
    """The second by hand starts from the first's image."""
    first, second = whole
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


def test_cancelled_in_the_second_stage_it_goes_on_from_the_first(
    client: Any, uploaded: str, whole: list[np.ndarray]
) -> None:
    def steps(run: Run) -> int:
        return len([step for step in run.steps if step.total == STEPS])

    def cancel(run: Run) -> None:
        if steps(run) > STEPS:
            client.interrupt()

    client.run(by_hand(uploaded, 16, 16))  # the server forgets what came before
    assert client.run(one_node(uploaded), cancel).status == "interrupted"
    resumed = client.run(one_node(uploaded))
    assert steps(resumed) <= STEPS
    assert [(mine == theirs).all() for mine, theirs in zip(pictures(client, resumed), whole, strict=True)] == [True] * 2


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
