"""Stopping from the page in the middle of sampling."""

from __future__ import annotations

from typing import Any

from devtools import workflow
from devtools.client import Run


def test_interrupt_stops_at_once_and_leaves_the_model_usable(client: Any, demo_prompt: Any, picture: Any) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=7)
    sampler, apply = workflow.node_id(prompt, "SamplerCustomAdvanced"), workflow.node_id(prompt, "CLEARApply")
    before = picture(client.run(prompt))

    asked = False

    def interrupt_after_the_first_step(run: Run) -> None:
        nonlocal asked
        if run.steps_of(sampler) and not asked:
            asked = True
            client.interrupt()

    long = workflow.changed(prompt, {"BasicScheduler": {"steps": 500}})
    stopped = client.run(long, interrupt_after_the_first_step)
    assert stopped.status == "interrupted"
    assert 1 <= len(stopped.steps_of(sampler)) <= 3
    messages = [kind for kind, _ in client.history(stopped.prompt_id)["status"]["messages"]]
    assert "execution_interrupted" in messages
    assert "execution_error" not in messages

    again = client.run(prompt)
    # The patched model is the same object as before the interruption; only sampling is new.
    assert apply in again.cached
    assert sampler not in again.cached
    assert (picture(again) == before).all()
