"""The estimate on the panels: measured by the button, red where it does not fit, with a button that sets what does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import save_file

from devtools import workflow
from devtools.client import ComfyClient, Run
from devtools.page import (
    RENDERERS,
    cards,
    change_widgets,
    open_workflow,
    panel,
    shipped,
)

NARROW = "narrow_flux.safetensors"
SECONDS = re.compile(r"one step\s*[\d.]+ (s|min)")


@pytest.fixture(scope="module")
def narrow(models: Path) -> None:
    """The header of a FLUX of little width, which is measured in seconds."""
    tensors = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(768, 256)}
    tensors |= {f"single_blocks.{i}.linear2.weight": torch.zeros(256, 1280) for i in range(2)}
    save_file(tensors, str(models / "diffusion_models" / NARROW))


def estimate(page: Page) -> Locator:
    return panel(page).locator(".clear-estimate")


def kinds(page: Page) -> list[str]:
    return page.evaluate("() => app.graph.nodes.map((node) => node.type)")


def measure(page: Page, address: str) -> Any:
    """What the route answers."""
    answer = page.request.post(f"{address}/clear_attention/measure?radius=8&model={NARROW}", timeout=300_000)
    return answer.json()


def test_measure_now_makes_the_row_appear(page: Page, renderer: str, server: Any, client: Any, narrow: None) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    # A backend for each renderer: what the first has measured is nothing to the second.
    backend = ("sdpa", "masked")[RENDERERS.index(renderer)]
    change_widgets(
        page,
        {
            "UNETLoader": {"unet_name": NARROW},
            "CLEARApply": {"radius": 8, "backend": backend},
            **workflow.sampling(width=512, height=512, steps=20, seed=1),
        },
    )
    expect(estimate(page)).to_contain_text("with weights")
    button = estimate(page).get_by_role("button", name="Measure now")
    expect(button).to_be_enabled()
    expect(estimate(page)).not_to_contain_text("one step")
    button.click()
    expect(estimate(page).get_by_role("status")).to_have_text(re.compile(r"Measuring: \d+ %"))
    expect(button).to_be_disabled()
    expect(estimate(page)).to_contain_text(SECONDS, timeout=300_000)
    expect(estimate(page)).to_contain_text("20 steps: ")
    expect(button).to_have_count(0)
    row = estimate(page).locator("div[title]").first
    expect(row).to_have_attribute("title", re.compile("^By this device's own measurement"))
    # The same for another size, without measuring again; a longer step for a larger image.
    before = client.get_json(path(page, 512, backend))["seconds"]
    after = client.get_json(path(page, 640, backend))["seconds"]
    assert after["step"] > before["step"] > 0
    assert before["all"] == pytest.approx(20 * before["step"])
    assert fits_in(page)


def test_a_backend_that_cannot_run_the_size_is_red(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    change_widgets(
        page, {"CLEARApply": {"backend": "masked"}, **workflow.sampling(width=512, height=512, steps=20, seed=1)}
    )
    button = estimate(page).get_by_role("button", name="Measure now")
    expect(button).to_be_enabled()
    # Memory is red too where other programs have taken it.
    wrong = estimate(page).locator(".clear-wrong").filter(has_text="cannot run this")
    expect(wrong).to_have_count(0)
    change_widgets(page, {"Width": {"value": 2048}})
    expect(wrong).to_contain_text("backendmaskedcannot run this: choose auto")
    expect(wrong).to_have_attribute("title", re.compile("its mask would take .* MB; it takes up to 32 MB"))
    expect(button).to_have_count(0)
    assert fits_in(page)


def path(page: Page, side: int, backend: str) -> str:
    values = f"width={side}&height={side}&radius=8&backend={backend}&model={NARROW}&steps=20"
    return f"/clear_attention/estimate?{values}"


def fits_in(page: Page) -> bool:
    """Whether the panel shows all of it."""
    return estimate(page).evaluate(
        """(inner) => {
            const [a, b] = [inner, inner.closest('.clear-panel')].map((e) => e.getBoundingClientRect())
            return a.bottom <= b.bottom + 1 && inner.scrollWidth <= inner.clientWidth + 1
        }"""
    )


@pytest.fixture
def card(page: Page, nodes_api: Any) -> Iterator[None]:
    """One simulated card of 24 GiB."""
    routes = nodes_api.module("nodes.host.page.routes")
    with cards(page, nodes_api, 1), mock.patch.object(routes, "used_by_models", dict):
        yield


@pytest.mark.usefixtures("card")
def test_what_does_not_fit_is_red_and_the_button_inserts_multi_gpu(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    change_widgets(page, {"UNETLoader": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "fp8_e4m3fn"}})
    wrong = estimate(page).locator(".clear-wrong")
    expect(estimate(page)).to_contain_text("memory of cuda:0")
    expect(wrong).to_have_count(0)
    panel(page).get_by_label("Image size").select_option("8192")
    expect(wrong).to_contain_text("does not fit: ")
    value, name = (wrong.locator(part).evaluate("(e) => getComputedStyle(e).color") for part in ("b", "span >> nth=0"))
    assert value != name
    assert fits_in(page)
    before = page.evaluate("() => app.graph.nodes.find((n) => n.type === 'CLEARApply').outputs[0].links.length")
    estimate(page).get_by_role("button", name="Insert CLEAR Multi-GPU").click()
    expect(wrong).to_have_count(0)
    after = page.evaluate(
        """() => {
            const of = (type) => app.graph.nodes.find((n) => n.type === type)
            const [apply, multi] = [of('CLEARApply'), of('CLEARMultiGPU')]
            const link = app.graph.getLink(apply.outputs[0].links[0])
            return [apply.outputs[0].links.length, link.target_id === multi.id, multi.outputs[0].links.length,
                multi.widgets.find((w) => w.name === 'bands').value]
        }"""
    )
    assert after == [1, True, before, 0]
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !app.graph.nodes.some((n) => n.type === 'CLEARMultiGPU')")
    links = page.evaluate("() => app.graph.nodes.find((n) => n.type === 'CLEARApply').outputs[0].links.length")
    assert links == before
    expect(wrong).to_have_count(1)
    # Undone at once, before the new node's panel has its text: the size chosen before stays.
    estimate(page).get_by_role("button", name="Insert CLEAR Multi-GPU").click()
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !app.graph.nodes.some((n) => n.type === 'CLEARMultiGPU')")
    expect(panel(page).get_by_label("Image size")).to_have_value("8192")
    expect(wrong).to_have_count(1)


@pytest.mark.usefixtures("card")
def test_the_button_on_the_bands_sets_auto(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("06_8k_on_16gb", "CLEARTiledSampler"))
    change_widgets(page, {"CLEARTiledSampler": {"bands": 1}, "UNETLoader": {"weight_dtype": "fp8_e4m3fn"}})
    wrong = estimate(page).locator(".clear-wrong")
    expect(wrong).to_contain_text("does not fit: ")
    estimate(page).get_by_role("button", name="Set bands to 0 (auto)").click()
    expect(wrong).to_have_count(0)
    bands = "() => app.graph.nodes.find((n) => n.type === 'CLEARTiledSampler').widgets.find((w) => w.name === 'bands')"
    assert page.evaluate(f"{bands.replace('() => ', '() => (')}).value") == 0
    assert fits_in(page)


@pytest.mark.usefixtures("card")
def test_where_bands_are_not_enough_it_says_what_is(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    change_widgets(page, {"UNETLoader": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}})
    wrong = estimate(page).locator(".clear-wrong").filter(has_text="memory of cuda:0")
    expect(wrong).to_contain_text("of the weights cross in each step, which is slow")
    expect(estimate(page)).to_contain_text("It fits with fp8 weights: set weight_dtype to fp8_e4m3fn")
    expect(estimate(page).get_by_role("button", name="Insert")).to_have_count(0)
    assert "CLEARMultiGPU" not in kinds(page)


def test_it_is_not_measured_while_a_prompt_runs(
    page: Page, server: Any, client: ComfyClient, narrow: None, demo_prompt: Any
) -> None:
    answers: list[Any] = []

    def during(run: Run) -> None:
        if not answers:
            answers.append(measure(page, server.address))
            client.interrupt()

    client.run(demo_prompt(width=256, height=256, steps=50, seed=901), during)
    assert answers[0]["refused"].startswith("A prompt is running or queued.")


def test_what_cannot_be_measured_is_refused(page: Page, server: Any) -> None:
    def post(query: str) -> tuple[int, Any]:
        answer = page.request.post(f"{server.address}/clear_attention/measure?{query}")
        return answer.status, answer.json()

    assert post("radius=0")[1]["refused"].startswith("radius is 0")
    assert post("radius=8&colour=red") == (
        400,
        {
            "error": "unknown argument 'colour'; known are: weights, preset, radius, down_factor, backend, ntk_factor, "
            "proportional_attention, start_percent, end_percent, blocks, folder, model, dtype"
        },
    )
    other = page.request.post(
        f"{server.address}/clear_attention/measure?radius=8", headers={"Origin": "http://elsewhere.example"}
    )
    assert other.status == 403
