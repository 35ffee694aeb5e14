"""CLEAR 4K / 8K on the page: what its panel shows, and the nodes that it expands into."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from devtools import workflow
from devtools.page import change_widgets, open_workflow, panel, shipped

# The model's way through the graph, from its loader to the sampler: of each node its class and values.
CHAIN = """() => {
    const graph = app.canvas.graph
    const last = graph.nodes.find((node) => node.type === 'BasicGuider')
    const found = []
    for (let node = last; node; ) {
        const input = node.inputs.findIndex(({ name }) => name === 'model')
        const link = graph.getLink(node.inputs[input]?.link ?? -1)
        node = link && graph.getNodeById(link.origin_id)
        if (node) found.unshift(node)
    }
    const values = (node) => Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))
    const apply = found.find((node) => node.type === 'CLEARApply')
    const weights = apply && graph.getLink(apply.inputs.find(({ name }) => name === 'weights').link)
    const loader = weights && graph.getNodeById(weights.origin_id)
    return {
        types: found.map((node) => node.type),
        values: Object.assign({}, ...[...found, loader].filter(Boolean).map((node) => ({ [node.type]: values(node) }))),
        count: graph.nodes.length,
    }
}"""


def open_preset(page: Page, preset: str = "balanced", size: int = 4096) -> None:
    """A shipped workflow with the preset in place of the nodes that it stands for."""
    open_workflow(page, shipped("03_prompt_to_2k"))
    page.evaluate(
        """() => {
            const graph = app.graph, of = (type) => graph.nodes.find((node) => node.type === type)
            const apply = of('CLEARApply'), preset = LiteGraph.createNode('CLEARPreset')
            preset.pos = [0, 0]
            graph.add(preset)
            graph.getNodeById(graph.getLink(apply.inputs[0].link).origin_id).connect(0, preset, 'model')
            const rest = [apply, of('ModelSamplingFlux')].flatMap((node) => [...node.outputs[0].links])
            for (const link of rest.map((id) => graph.getLink(id))) {
                preset.connect(0, graph.getNodeById(link.target_id), link.target_slot)
            }
            for (const type of ['CLEARWeightsLoader', 'CLEARApply', 'ModelSamplingFlux']) graph.remove(of(type))
            app.canvas.ds.offset = [300, 200]
        }"""
    )
    change_widgets(page, {"CLEARPreset": {"preset": preset}, **sides(size)})


def sides(size: int) -> workflow.Changes:
    return {"Width": {"value": size}, "Height": {"value": size}}


def chain(page: Page) -> dict[str, Any]:
    return page.evaluate(CHAIN)


def test_the_panel_shows_what_the_preset_chooses(page: Page, renderer: str) -> None:
    open_preset(page, "detail")
    shown = panel(page).locator("dl")
    for row in ("auto (32)", "NTK factor", "auto (10)", "proportional attention"):
        expect(shown).to_contain_text(row)
    change_widgets(page, {"CLEARPreset": {"preset": "fast"}, **sides(1024)})
    expect(shown).to_contain_text("auto (8)")
    expect(shown).not_to_contain_text("NTK factor")


@pytest.mark.parametrize(("preset", "radius", "bands"), [("balanced", 16, 0), ("memory saver", 8, 32)])
def test_expand_puts_the_single_nodes_in_its_place(
    page: Page, renderer: str, preset: str, radius: int, bands: int
) -> None:
    open_preset(page, preset)
    change_widgets(page, {"CLEARPreset": {"devices": "cpu,cpu"}})
    before = chain(page)
    assert before["types"] == ["UNETLoader", "CLEARPreset"]
    panel(page).get_by_role("button", name="Expand into nodes").click()
    page.wait_for_function("!app.graph.nodes.some((node) => node.type === 'CLEARPreset')")
    after = chain(page)
    assert after["types"] == ["UNETLoader", "CLEARApply", "ModelSamplingFlux", "CLEARMultiGPU"]
    assert after["count"] == before["count"] + 3
    values = after["values"]
    assert values["CLEARWeightsLoader"]["weights_name"] == f"clear_local_{radius}.safetensors"
    assert {values["CLEARApply"][name] for name in ("radius", "down_factor", "ntk_factor")} == {0}
    assert (values["ModelSamplingFlux"]["max_shift"], values["ModelSamplingFlux"]["base_shift"]) == (1.1, 1.1)
    assert (values["CLEARMultiGPU"]["devices"], values["CLEARMultiGPU"]["bands"]) == ("cpu,cpu", bands)
    # The scheduler, too, takes the model with the time shift.
    scheduler = "app.graph.nodes.find((node) => node.type === 'BasicScheduler').inputs[0].link"
    assert page.evaluate(f"app.graph.getNodeById(app.graph.getLink({scheduler}).origin_id).type") == "CLEARMultiGPU"
    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.wait_for_function("app.graph.nodes.some((node) => node.type === 'CLEARPreset')")
    assert chain(page)["types"] == before["types"]


def test_expand_works_inside_a_subgraph(page: Page, renderer: str) -> None:
    """The links that come from and lead to the subgraph's own inputs and outputs."""
    open_preset(page)
    page.evaluate(
        """() => {
            const preset = app.graph.nodes.find((node) => node.type === 'CLEARPreset')
            const { subgraph } = app.graph.convertToSubgraph(new Set([preset]))
            app.canvas.setGraph(subgraph)
            const [x, y] = subgraph.nodes[0].pos
            requestAnimationFrame(() => {
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [300 - x, 200 - y]
                app.canvas.setDirty(true, true)
            })
        }"""
    )
    page.wait_for_function("app.canvas.graph !== app.graph")
    panel(page).get_by_role("button", name="Expand into nodes").click()
    page.wait_for_function("app.canvas.graph.nodes.length === 4")
    ends = page.evaluate(
        """() => {
            const graph = app.canvas.graph
            const first = graph.getNodeById(graph.getLink(graph.inputs[0].linkIds[0]).target_id)
            const last = graph.getNodeById(graph.getLink(graph.outputs[0].linkIds[0]).origin_id)
            const found = [first.type, last.type]
            app.canvas.setGraph(app.graph)
            return found
        }"""
    )
    assert ends == ["CLEARApply", "CLEARMultiGPU"]
