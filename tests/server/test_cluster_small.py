"""The small FLUX's picture on one to four ComfyUIs, each with its own part of the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from devtools import gallery, workflow
from devtools.client import Run
from devtools.machines import Machines, difference, node, said, sampled, with_machines
from devtools.page import RENDERERS, change_widgets, open_page, open_workflow, put_after
from devtools.server import free_port


def shared_by(run: Run) -> list[str]:
    """What the node has said of machines that took part."""
    return [line for _, text in run.texts for line in text.splitlines() if line.startswith("with ")]


CLEAR: dict[str, workflow.Changes] = {
    "window": {},
    "global context": {"CLEARApply": {"down_factor": 4}},
    "longer positions": {"CLEARApply": {"ntk_factor": 4.0, "proportional_attention": True}},
    "full attention first": {"CLEARApply": {"start_percent": 0.5}},
    "some blocks": {"CLEARApply": {"blocks": "single"}},
}


@pytest.mark.parametrize("variant", CLEAR)
def test_two_machines_give_the_picture_of_one(machines: Machines, small_prompt: Any, variant: str) -> None:
    asked = small_prompt(CLEAR[variant])
    plain = machines.pictures(machines.client.run(asked))
    run = machines.client.run(with_machines(asked, machines.address, bands=3))
    assert len(shared_by(run)) >= 1, run.texts
    assert difference(machines.pictures(run), plain) <= 1
    other = machines.client.run(sampled(asked, bands=5, machines=f"{machines.address} all", devices="cpu=3,cpu"))
    assert len(shared_by(other)) >= 1, other.texts
    assert difference(machines.pictures(other), plain) <= 1


def test_rows_are_dealt_by_what_is_measured(machines: Machines, small_prompt: Any) -> None:
    asked = small_prompt(seed=17)
    plain = machines.pictures(machines.client.run(asked))
    dealt = machines.client.run(with_machines(asked, machines.address, bands=6, everyone=False))
    assert difference(machines.pictures(dealt), plain) <= 1
    assert re.search(r"CLEAR Multi-GPU: [\d.]+ Gbit/s to 127\.0\.0\.1\S* \(cpu\)", machines.driver.log)
    # Two processes on the same cores: which of both it is depends on what else these do.
    taken = (
        r"with 127\.0\.0\.1\S* \(cpu\): \d+ of 16 rows, [\d.]+ Gbit/s\npredicted: [\d.e-]+ s a step, [\d.e-]+ s alone"
    )
    left = r"this machine alone\nwithout 127\.0\.0\.1\S* \(cpu\): .* s a step with it, [\d.e-]+ s without"
    assert re.search(f"{taken}|{left}", said(dealt)), said(dealt)


def test_the_sampler_behind_multi_gpu_with_machines_of_its_own(machines: Machines, small_prompt: Any) -> None:
    """A worker must not look for machines itself."""
    asked = small_prompt(seed=17, steps=2)
    plain = machines.pictures(machines.client.run(asked))
    both = sampled(with_machines(asked, machines.address), bands=6, machines=f"{machines.address} all")
    sampler = workflow.node_id(both, "CLEARTiledSampler")
    shared = machines.client.run(both)
    assert any(node == sampler and "with 127.0.0.1" in text for node, text in shared.texts), shared.texts
    assert difference(machines.pictures(shared), plain) <= 1


def test_a_batch_and_guidance_by_two_prompts(machines: Machines, small_prompt: Any) -> None:
    asked = small_prompt({"CLEARApply": {"down_factor": 4}, "EmptySD3LatentImage": {"batch_size": 2}}, seed=18)
    guider = asked[workflow.node_id(asked, "BasicGuider")]
    encode = asked[workflow.node_id(asked, "CLIPTextEncode")]
    asked["other"] = node("CLIPTextEncode", **{**encode["inputs"], "text": "fog"})
    conditions = {"positive": guider["inputs"].pop("conditioning"), "negative": ["other", 0], "cfg": 3.0}
    guider["class_type"], guider["inputs"] = "CFGGuider", {**guider["inputs"], **conditions}
    plain = machines.pictures(machines.client.run(asked))
    assert len(plain) == 2 and difference(*plain) > 1
    shared = machines.client.run(sampled(asked, bands=4, machines=f"{machines.address} all"))
    assert shared_by(shared), shared.texts
    assert difference(machines.pictures(shared), plain) <= 1


def test_three_and_four_machines_with_unequal_rows(machines: Machines, small_prompt: Any) -> None:
    """On this machine two lanes, one of them with three times the rows; on the others one each."""
    asked = small_prompt()
    plain = machines.pictures(machines.client.run(asked))
    for count in (2, 3):
        machines.join()
        # Not the same bands twice: ComfyUI would give the result that it has.
        run = machines.client.run(with_machines(asked, machines.address, bands=6 + count, devices="cpu=3,cpu"))
        rows = [int(line.split(": ")[1].split()[0]) for line in shared_by(run)[-count:]]
        assert len(rows) == count and sum(rows) < 16 - max(rows), run.texts
        assert difference(machines.pictures(run), plain) <= 1
    machines.leave()
    machines.leave()


def test_the_page_is_told_how_far_each_machine_is(machines: Machines, small_prompt: Any) -> None:
    run = machines.client.run(with_machines(small_prompt(steps=12), machines.address, bands=8))
    told = run.sent["clear_attention.bands"]
    names = {name for message in told for name in message["machines"]} - {""}
    assert names and all(name.startswith("127.0.0.1:") for name in names)
    others = [lane for lane, name in enumerate(told[-1]["machines"]) if name]

    def done(message: dict[str, Any]) -> int:
        bands = zip(message["bands"], message["done"], strict=True)
        return sum(count for (_, _, lane), count in bands if lane in others)

    assert max(map(done, told)) > 0
    assert all(0 <= count <= message["blocks"] for message in told for count in message["done"])


@pytest.fixture(scope="module")
def page(browser: Browser, machines: Machines) -> Iterator[Page]:
    """The driver's."""
    page = open_page(browser, machines.driver.address)
    page.set_default_timeout(60_000)
    yield page
    page.close()


def test_the_panel_lists_the_other_machines(page: Page, renderer: str, machines: Machines) -> None:
    open_workflow(page, workflow.page_form("03_prompt_to_2k"))
    change_widgets(page, {**workflow.SMALL.changes(), "Prompt": gallery.CASES["03_prompt_to_2k"].changes["Prompt"]})
    change_widgets(page, workflow.sampling(width=256, height=256, steps=12, seed=40 + RENDERERS.index(renderer)))
    x, y = page.evaluate("() => [...app.graph.nodes.find((node) => node.type === 'CLEARApply').pos]")
    put_after(page, "CLEARApply", "CLEARMultiGPU", "model", (x, y + 1000))
    page.evaluate(
        """() => {
            const cut = app.graph.nodes.find((node) => node.type === 'CLEARMultiGPU')
            app.canvas.ds.offset = [300 - cut.pos[0], 200 - cut.pos[1]]
            app.canvas.setDirty(true, true) // the classic renderer places panels when it draws
            window.seen = []
            window.watch = setInterval(() => {
                const bars = [...document.querySelectorAll('.clear-workers progress')]
                seen.push(...bars.map((bar) => bar.value))
            }, 20)
        }"""
    )
    listed = page.get_by_role("region", name="Other machines")
    expect(listed).to_be_hidden()
    free = f"127.0.0.1:{free_port()}"
    change_widgets(page, {"CLEARMultiGPU": {"devices": "cpu", "bands": 8, "machines": free}})
    expect(listed).to_have_text(f"Run the prompt once; then other machines can join at {free}.")
    change_widgets(page, {"CLEARMultiGPU": {"machines": "nowhere"}})
    expect(listed).to_contain_text("machines is 'nowhere'; write the address and port")
    change_widgets(page, {"CLEARMultiGPU": {"machines": f"{machines.address} all"}})
    worker = listed.get_by_role("listitem").first
    expect(worker).to_contain_text("127.0.0.1")
    page.evaluate("() => app.queuePrompt(0)")
    expect(worker).to_contain_text(re.compile(r"[\d.]+ Gbit/s, \d+ of 16 rows"), timeout=120_000)
    page.wait_for_function("() => window.seen.some((value) => value > 0)", timeout=120_000)
    page.wait_for_function("() => !document.querySelector('.clear-workers progress')", timeout=120_000)
    page.evaluate("() => clearInterval(window.watch)")
    assert all(0 <= value <= 100 for value in page.evaluate("() => window.seen"))


def test_the_panel_sees_workers_leave_and_join(page: Page, machines: Machines) -> None:
    """Nobody touches the page; in the renderer that the test before has left."""
    listed = page.get_by_role("region", name="Other machines")
    items = listed.get_by_role("listitem")
    expect(items).to_have_count(len(machines.workers))
    while machines.workers:
        machines.leave()
    command = f"python dev.py worker --join {machines.address} --token-file clear_attention_token.txt"
    expect(listed).to_have_text(f"No other machine has joined. Run there: {command}")
    machines.join()
    expect(items).to_have_count(1)
    expect(items).to_contain_text("no rows yet")
