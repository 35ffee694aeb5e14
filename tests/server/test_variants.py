"""The other kind of weights, and a run that is partly dense, as the node shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from devtools import checkpoints, workflow


def test_down_sampled_weights_bring_their_own_factor(client: Any, demo_prompt: Any, picture: Any) -> None:
    name = Path(checkpoints.CLEAR_DOWN).name
    run = client.run(demo_prompt({"CLEARWeightsLoader": {"weights_name": name}, "CLEARApply": {"radius": 3}}))
    said = run.texts[-1][1]
    assert "down-sampled 4 x 4 (learned pooling)" in said
    assert "CLEAR ran: 4 layer calls by masked" in said
    plain = client.run(demo_prompt({"CLEARApply": {"radius": 3}}))
    assert np.abs(picture(run).astype(int) - picture(plain).astype(int)).max() > 0


def test_the_node_says_which_steps_were_dense(client: Any, demo_prompt: Any) -> None:
    prompt = demo_prompt({"CLEARApply": {"end_percent": 0.5}}, steps=4)
    said = client.run(prompt).texts[-1][1].splitlines()
    window = next(line for line in said if line.startswith("CLEAR ran: "))
    dense = next(line for line in said if line.startswith("full attention: "))
    assert "as asked: steps outside 0 to 0.5" in dense
    calls = [int(line.split()[2]) for line in (window, dense)]
    assert sum(calls) == 4 * 2
    assert min(calls) > 0


def test_the_history_tells_what_was_applied(client: Any, demo_prompt: Any) -> None:
    prompt = demo_prompt({"CLEARApply": {"strength": 0.5}})
    run = client.run(prompt)
    outputs = client.history(run.prompt_id)["outputs"]
    (text,) = outputs[workflow.node_id(prompt, "CLEARApply")]["text"]
    assert text.endswith("at strength 0.5")
