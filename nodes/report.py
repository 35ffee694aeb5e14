"""CLEAR Report: what the window is, what it costs by size, and who would compute it here, as a picture and in words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.backends.triton.tile_plan import TilePlan
from . import host
from .insight.canvas import percent, shown
from .insight.cost import (
    TEXT,
    TOKEN,
    Backends,
    ModelFacts,
    SizeFigures,
    backends,
    by_size,
    example_call,
    grid_of,
    needed_pairs,
    plan_of_tiles,
)
from .insight.report_figure import ReportPage, report_picture
from .options.clear import USUAL, ClearSettings
from .options.stages import LARGEST_SIDE
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEARReport(io.ComfyNode):
    """Computes, loads nothing and samples nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARReport",
            display_name="CLEAR Report",
            category=CATEGORY,
            description="Shows the window over the image, what attention and memory cost by size, dense against CLEAR, "
            "and which backend would compute it on this machine.",
            search_aliases=["clear", "cost", "flops", "memory", "backends", "window", "explain", "benchmark"],
            inputs=_inputs(),
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="text")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            not_idempotent=CACHED_PER_NODE_ID,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, width: int, height: int) -> io.NodeOutput:
        for name, value in (("width", width), ("height", height)):
            if not TOKEN <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} is {value}; allowed is {TOKEN} to {LARGEST_SIDE} pixels")
        facts = host.model_facts(model)
        settings = facts.settings or USUAL
        grid = grid_of(width, height)
        call = example_call(facts, settings, grid)
        found = backends(call, settings.backend)
        sizes = list(by_size(facts, settings, width, height))
        what = (
            facts.headline.split("\n")[0] or f"radius {settings.window.radius}, the usual one: no CLEAR in this model"
        )
        page = ReportPage(
            width=width,
            height=height,
            subtitle=f"{facts.family}, {what}; {grid} image tokens and {TEXT} of text",
            grid=grid,
            window=settings.window,
            down_factor=settings.down_factor,
            plan=plan_of_tiles(call),
            backends=found,
            sizes=sizes,
            layers=facts.layers,
        )
        about, who = _about(facts, settings, page), _who(found)
        text = "\n".join([*about, "", *_costs(facts, sizes), "", *_plan(page.plan, needed_pairs(call)), "", *who])
        image = report_picture(page)
        # The picture under it says the rest.
        host.node_text_sender(cls.hidden.unique_id)("\n".join([*about, who[0]]))
        shown_images = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui={**shown_images, "text": (text,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX model. From Apply CLEAR Attention, its settings count; without, radius 16 is taken as an "
            "example.",
        ),
        *(
            make(
                io.Int.Input,
                name,
                default=2048,
                min=TOKEN,
                max=LARGEST_SIDE,
                step=TOKEN,
                tooltip=f"The image's {name} in pixels. 2048 is usual; 1K, 2K, 4K and 8K squares are shown as well.",
            )
            for name in ("width", "height")
        ),
    ]


def _about(facts: ModelFacts, settings: ClearSettings, page: ReportPage) -> list[str]:
    radius, tokens = settings.window.radius, settings.window.tokens
    across = (2 * settings.window.halo + 1) * TOKEN
    lines = [page.subtitle]
    if facts.settings is None:
        lines.append("Put Apply CLEAR Attention before this node to see its own settings.")
    lines.append(
        f"The window: radius {radius}, {tokens:,} tokens, {across} px across. Each place of the image sees it, all of "
        "the text"
        + (
            f" and the image in cells of {settings.down_factor} x {settings.down_factor}."
            if page.down_factor > 1
            else "."
        )
    )
    dense = facts.layers - facts.windowed_layers(settings)
    if dense:
        lines.append(
            f"{dense} of {facts.layers} layers stay dense, as asked: blocks other than {settings.blocks.text}."
        )
    if not settings.whole_schedule:
        lines.append(
            f"Counted is a step between {settings.start_percent:g} and {settings.end_percent:g} of sampling; outside, "
            "attention is dense."
        )
    return lines


def _costs(facts: ModelFacts, sizes: list[SizeFigures]) -> list[str]:
    lines = [f"Attention of one step, all {facts.layers} layers:"]
    for size in sizes:
        dense, clear = size.dense / 1e12, size.clear / 1e12
        lines.append(
            f"  {size.width} x {size.height}: dense {shown(dense)} TFLOP, CLEAR {shown(clear)} "
            f"({percent(size.clear / size.dense)})"
        )
    dtype = str(facts.dtype).removeprefix("torch.")
    lines.append(f"Memory of one step besides the weights, predicted, {dtype}, one image at CFG 1:")
    for size in sizes:
        line = f"  {size.width} x {size.height}: {shown(size.whole / 2**30)} GiB, dense or with CLEAR"
        if size.in_bands is not None:
            line += f"; {shown(size.in_bands / 2**30)} in {size.bands} bands (CLEAR Multi-GPU)"
        lines.append(line)
    return lines


def _plan(plan: TilePlan, needed: int) -> list[str]:
    return [
        f"Plan of the fused kernel: {plan.tiles:,} tiles of {plan.tile[0]} x {plan.tile[1]} queries read "
        f"{len(plan.boxes):,} boxes of {plan.box[0]} x {plan.box[1]} keys, {plan.full_boxes:,} of them without a mask;",
        f"  {plan.executed_pairs() / needed:.2f} times the pairs that the windows hold exactly.",
    ]


def _who(found: Backends) -> list[str]:
    lines = [f"Here {found.chosen} would compute it: {found.reason}." if found.chosen else found.reason]
    for backend in found.every:
        lines.append(f"  {backend.name}: {percent(backend.share)} of dense attention's pairs; {backend.said}")
    return lines
