"""CLEAR Report: the window, its cost by size, and the backend that would run here, as a picture and as text."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..clear_core.backends.triton.tile_plan import TilePlan
from ..clear_core.flux import PIXELS_PER_TOKEN
from ..clear_core.show.cost import BackendTable, Report
from ..clear_core.show.figure import report_page
from ..clear_core.show.numbers import percent, shown
from . import host
from .insight.cost import ModelInfo
from .insight.picture import as_image, page_theme
from .insight.step_time import StepClock, step_times
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
            description="Shows the attention window over the image, the cost of attention and memory by image size, "
            "with full attention and with CLEAR, and the backend that would run on this machine.",
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
            if not PIXELS_PER_TOKEN <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} is {value}; allowed is {PIXELS_PER_TOKEN} to {LARGEST_SIDE} pixels")
        info = host.model_info(model)
        report = info.report(width, height)
        radius = report.options.window.radius
        what = info.headline.split("\n")[0] or f"radius {radius} as an example: no CLEAR in this model"
        subtitle = f"{info.family}, {what}; {report.grid} image tokens and {report.options.text} text tokens"
        about, backends = [subtitle, *_about(info, report)], _backends(report.backends)
        # The whole step first: that is what one waits for, attention is a part of it.
        own = host.own_times(info.subject, report.options.backend) if info.family == host.FLUX_1 else None
        times = step_times(StepClock.of(info.subject, report.options, own), info.subject, report)
        costs = [*times, *_costs(report, info)]
        text = "\n".join([*about, "", *costs, "", *_tiles(report.tiles, report.tile_overhead), "", *backends])
        image = as_image(report_page(report, subtitle, page_theme(host.page_is_light())))
        # The picture below it shows the rest.
        host.node_text_sender(cls.hidden.unique_id)("\n".join([*about, backends[0]]))
        preview = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui={**preview, "text": (text,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX model. Connect it through Apply CLEAR Attention to use that node's settings; otherwise the "
            "report uses radius 16 as an example.",
        ),
        *(
            make(
                io.Int.Input,
                name,
                default=2048,
                min=PIXELS_PER_TOKEN,
                max=LARGEST_SIDE,
                step=PIXELS_PER_TOKEN,
                tooltip=f"Image {name} in pixels, usually 2048. Squares of 1K, 2K, 4K and 8K are always listed too.",
            )
            for name in ("width", "height")
        ),
    ]


def _about(info: ModelInfo, report: Report) -> list[str]:
    options, settings = report.options, info.clear
    across = (2 * options.window.halo + 1) * PIXELS_PER_TOKEN
    lines = []
    if info.settings is None:
        lines.append("Put Apply CLEAR Attention before this node to see its settings.")
    coarse = f" and the image down-sampled by {options.down_factor}" if options.down_factor > 1 else ""
    lines.append(
        f"Attention window: radius {options.window.radius}, {options.window.tokens:,} tokens, {across} px across. Each "
        f"image token attends to its window, all text tokens{coarse}."
    )
    if options.dense_layers:
        lines.append(
            f"{options.dense_layers} of {report.model.layers} layers stay dense, as set: blocks other than "
            f"{settings.blocks.text}."
        )
    if not settings.whole_schedule:
        lines.append(
            f"The costs are those of a step between {settings.start_percent:g} and {settings.end_percent:g} of "
            "sampling; other steps run dense."
        )
    return lines


def _costs(report: Report, info: ModelInfo) -> list[str]:
    lines = [f"Attention in one step, all {report.model.layers} layers:"]
    for size in report.sizes:
        dense, clear = size.dense / 1e12, size.clear / 1e12
        lines.append(
            f"  {size.width} x {size.height}: dense {shown(dense)} TFLOP, CLEAR {shown(clear)} "
            f"({percent(size.clear / size.dense)})"
        )
    dtype = str(report.model.dtype).removeprefix("torch.")
    lines.append(
        f"Memory in one step, predicted, {dtype}, one image at CFG 1, beside {shown(info.weight_bytes / 2**30)} GiB of "
        "weights:"
    )
    for size in report.sizes:
        line = f"  {size.width} x {size.height}: {shown(size.stock / 2**30)} GiB, dense or with CLEAR"
        if size.banded is not None:
            line += f"; {shown(size.banded / 2**30)} in {size.bands} bands (CLEAR Multi-GPU)"
        lines.append(line)
    return lines


def _tiles(plan: TilePlan, overhead: float) -> list[str]:
    return [
        f"Plan of the fused kernel: {plan.tiles:,} tiles of {plan.tile[0]} x {plan.tile[1]} queries visit "
        f"{len(plan.boxes):,} tiles of {plan.box[0]} x {plan.box[1]} keys, {plan.full_boxes:,} full and the others "
        "partial (masked);",
        f"  it computes {overhead:.2f} times the (query, key) pairs in the windows.",
    ]


def _backends(table: BackendTable) -> list[str]:
    chosen = f"Backend on this machine: {table.chosen} ({table.reason})." if table.chosen else table.reason
    rows = (f"  {one.name}: {percent(one.share)} of the pairs of dense attention; {one.note}" for one in table.backends)
    return [chosen, *rows]
