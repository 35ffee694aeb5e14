"""CLEAR High-Res Upscale on the real server: the hand-wired graph's image, stage by stage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import workflow
from harness.client import Run

STEPS = 2


@pytest.fixture(scope="module")
def uploaded(client: Any) -> str:
    data = io.BytesIO()
    Image.effect_noise((96, 64), 60).convert("RGB").save(data, "PNG")
    return client.upload("to_carry_up.png", data.getvalue())


def one_node(uploaded: str, **values: Any) -> Any:
    changes: workflow.Changes = {
        "LoadImage": {"image": uploaded},
        "UNETLoader": {"weight_dtype": "default"},
        "CLEARHighRes": {"target_megapixels": 0.1, "steps": STEPS, "bands": 2, "devices": "cpu", "seed": 5} | values,
    }
    return workflow.changed(workflow.server_form("clear_high_res"), workflow.DEMO.changes(), changes)


def by_hand(uploaded: str, width: int, height: int) -> Any:
    changes: workflow.Changes = {
        "LoadImage": {"image": uploaded},
        "UNETLoader": {"weight_dtype": "default"},
        "Size": {"width": width, "height": height},
        "ModelSamplingFlux": {"width": width, "height": height},
        "BasicScheduler": {"steps": STEPS},
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


def test_each_stage_is_the_hand_wired_graphs(client: Any, uploaded: str) -> None:
    """96 x 64 to 0.1 megapixels is growth of 16: two stages. The second by hand starts from the first's image."""
    run = client.run(one_node(uploaded))
    first, second = pictures(client, run)
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


def test_cancelled_in_the_second_stage_it_goes_on_from_the_first(client: Any, uploaded: str) -> None:
    prompt = one_node(uploaded, seed=77)

    def cancel(run: Run) -> None:
        if len([step for step in run.steps if step.total == STEPS]) > STEPS:
            client.interrupt()

    stopped = client.run(prompt, cancel)
    assert stopped.status in ("interrupted", "success")
    whole = pictures(client, client.run(prompt))
    again = one_node(uploaded, seed=77)
    again[workflow.node_id(again, "SaveImage")]["inputs"]["filename_prefix"] = "again"
    repeated = pictures(client, client.run(again))
    assert len(whole) == len(repeated) == 2
    assert all((a == b).all() for a, b in zip(whole, repeated, strict=True))


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
