"""A LoRA and CLEAR on one model, wired in either order, through the real loader nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from devtools import checkpoints, workflow


def test_order_of_lora_and_clear_does_not_matter(client: Any, demo_prompt: Any, picture: Any) -> None:
    # Sixteen pixels a token: 8 x 8 tokens, so radius 3 leaves much of the image out of sight.
    plain = demo_prompt({"CLEARApply": {"radius": 3}})
    name = Path(checkpoints.LORA).name
    prompts = {
        "none": plain,
        "lora, then CLEAR": workflow.with_lora(plain, before="CLEARApply", name=name),
        "CLEAR, then lora": workflow.with_lora(plain, before="ModelSamplingFlux", name=name),
    }
    images = {}
    for key, prompt in prompts.items():
        run = client.run(prompt)
        assert workflow.node_id(prompt, "SamplerCustomAdvanced") not in run.cached
        assert "CLEAR ran: 4 layer calls" in run.texts[-1][1]
        images[key] = picture(run).astype(int)

    assert np.abs(images["lora, then CLEAR"] - images["CLEAR, then lora"]).max() <= 1
    assert np.abs(images["lora, then CLEAR"] - images["none"]).mean() > 5
