"""The small FLUX's picture on one to four ComfyUIs, each with its own part of the rows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from devtools import checkpoints, gallery, workflow
from devtools.client import ClientError, Run
from devtools.machines import Machines, difference, node, said, sampled, with_machines
from devtools.page import change_widgets, open_page, open_workflow, put_multi_gpu
from devtools.server import free_port
from devtools.small_flux import files as small


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


def test_the_papers_average_is_that_of_as_many_devices(machines: Machines, small_prompt: Any) -> None:
    asked = small_prompt(seed=23)
    average = {"bands": 4, "text_merge": "average"}
    here = machines.client.run(with_machines(asked, "", devices="cpu,cpu", **average))
    run = machines.client.run(with_machines(asked, machines.address, **average))
    assert shared_by(run), run.texts
    assert difference(machines.pictures(run), machines.pictures(here)) <= 1
    exact = machines.client.run(with_machines(asked, machines.address, bands=4))
    assert difference(machines.pictures(run), machines.pictures(exact)) > 1


def fp8(prompt: workflow.Prompt) -> workflow.Prompt:
    return workflow.changed(prompt, {"UNETLoader": {"weight_dtype": "fp8_e4m3fn"}})


def half_mask(prompt: workflow.Prompt, name: str, x: int) -> None:
    """A node `name` that makes the mask of a half of the image, whose left edge is at x."""
    prompt["all"] = node("SolidMask", value=0.0, width=256, height=256)
    prompt["half"] = node("SolidMask", value=1.0, width=128, height=256)
    prompt[name] = node("MaskComposite", x=x, y=0, operation="add", destination=["all", 0], source=["half", 0])


def with_a_mask(prompt: workflow.Prompt) -> workflow.Prompt:
    """Only the right half is sampled."""
    half_mask(prompt, "mask", 128)
    sampler = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]["inputs"]
    prompt["masked"] = node("SetLatentNoiseMask", samples=sampler["latent_image"], mask=["mask", 0])
    sampler["latent_image"] = ["masked", 0]
    return prompt


def with_a_reference(prompt: workflow.Prompt) -> workflow.Prompt:
    """An image's latent behind the image's own tokens, as Kontext has it."""
    vae = prompt[workflow.node_id(prompt, "VAEDecode")]["inputs"]["vae"]
    prompt["image"] = node("EmptyImage", width=128, height=96, batch_size=1, color=0xC04020)
    prompt["latent"] = node("VAEEncode", pixels=["image", 0], vae=vae)
    guider = prompt[workflow.node_id(prompt, "BasicGuider")]["inputs"]
    prompt["reference"] = node("ReferenceLatent", conditioning=guider["conditioning"], latent=["latent", 0])
    guider["conditioning"] = ["reference", 0]
    return prompt


def in_regions(prompt: workflow.Prompt) -> workflow.Prompt:
    """Two prompts, each for half of the image."""
    guider = prompt[workflow.node_id(prompt, "BasicGuider")]["inputs"]
    encode = prompt[workflow.node_id(prompt, "CLIPTextEncode")]["inputs"]
    prompt["other"] = node("CLIPTextEncode", **{**encode, "text": "a desert, dark sky"})
    for name, x, conditioning in (("left", 0, guider["conditioning"]), ("right", 128, ["other", 0])):
        half_mask(prompt, f"{name} mask", x)
        region = {"strength": 1.0, "set_cond_area": "default", "mask": [f"{name} mask", 0]}
        prompt[name] = node("ConditioningSetMask", conditioning=conditioning, **region)
    prompt["both"] = node("ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["right", 0])
    guider["conditioning"] = ["both", 0]
    return prompt


@pytest.mark.parametrize("change", [fp8, with_a_mask, with_a_reference, in_regions])
def test_what_else_an_image_is_made_from_reaches_the_other_machine(
    machines: Machines, small_prompt: Any, change: Callable[[workflow.Prompt], workflow.Prompt]
) -> None:
    plain = machines.pictures(machines.client.run(small_prompt(seed=21)))
    asked = change(small_prompt(seed=21))
    alone = machines.pictures(machines.client.run(asked))
    assert difference(alone, plain) > 2
    run = machines.client.run(with_machines(asked, machines.address, bands=5))
    assert shared_by(run), run.texts
    assert difference(machines.pictures(run), alone) <= 1


def test_a_lora_scheduled_by_hooks_is_refused_before_sampling(
    machines: Machines, small_prompt: Any, models: Path
) -> None:
    asked = small_prompt(seed=22)
    name = "cluster_hooked.safetensors"
    (models / "loras").mkdir(exist_ok=True)
    save_file(checkpoints.random_lora(small.FOLDER / small.FLUX, "hooked"), models / "loras" / name)
    prompt = with_machines(asked, machines.address, bands=3)
    guider = prompt[workflow.node_id(prompt, "BasicGuider")]["inputs"]
    prompt["hook"] = node("CreateHookLoraModelOnly", lora_name=name, strength_model=1.0)
    hooked = {"cond_NEW": guider["conditioning"], "hooks": ["hook", 0], "strength": 1.0, "set_cond_area": "default"}
    prompt["hooked"] = node("ConditioningSetProperties", **hooked)
    guider["conditioning"] = ["hooked", 0]
    with pytest.raises(ClientError, match="scheduled by hooks cannot be sent to other machines"):
        machines.client.run(prompt)


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


def test_an_upscale_in_stages(machines: Machines) -> None:
    """Every stage has a MODEL of its own, made by nodes that are not in the prompt."""
    picture = Image.radial_gradient("L").resize((96, 128)).convert("RGB")
    changes: workflow.Changes = {
        **workflow.SMALL.changes(),
        "LoadImage": {"image": machines.client.upload_picture("to_enlarge.png", picture)},
        "CLEARHighRes": {"size_by": "scale", "scale": 3.0, "stages": 2, "steps": 3, "devices": "cpu", "bands": 3},
    }
    asked = workflow.changed(workflow.server_form("02_image_to_4k"), changes)
    shared = workflow.changed(asked, {"CLEARHighRes": {"machines": f"{machines.address} all"}})
    saved = workflow.node_id(asked, "SaveImage")
    runs = [machines.client.run(prompt) for prompt in (asked, shared)]
    assert len(shared_by(runs[1])) >= 2, runs[1].texts
    stages = [[machines.picture(image) for image in run.outputs[saved]["images"]] for run in runs]
    assert len(stages[0]) == 2 and stages[0][1].shape == (384, 288, 3)
    assert all(difference(*pair) <= 1 for pair in zip(*stages, strict=True))


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

    whole = sum(told[-1]["blocks"] for _, _, lane in told[-1]["bands"] if lane in others)
    assert [done(message) for message in told].count(whole) >= 12  # at the end of each step
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
    seed = random.randrange(2**32)  # what has run before, in another renderer or in a first try, is not run again
    change_widgets(page, workflow.sampling(width=256, height=256, steps=40, seed=seed))
    put_multi_gpu(page)
    page.evaluate(
        """() => {
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
