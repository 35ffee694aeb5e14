"""`dev.py run --headless`: what a window costs in pictures of the small FLUX, and what distillation gives back.

The shipped workflow runs three times for each prompt with one seed, in one server and through the API that the page
uses: dense; with the window on the model's own weights; with the window and the weights distilled for it. A program
judges the pictures (`small_flux.scorer`), so every figure is of this run.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from clear_core.flux import PIXELS_PER_TOKEN, token_grid
from clear_core.layout import TokenLayout
from clear_core.pattern import attention_flops
from clear_core.window import Window
from devtools import workflow
from devtools.client import ComfyClient
from devtools.demo_run import Asked, Task, device_name, seconds_per_step, text_tokens
from devtools.demo_sheet import Cell, sheet
from devtools.small_flux.gallery import STEPS, psnr
from devtools.small_flux.model import SIZES
from devtools.small_flux.scenes import Description
from devtools.small_flux.scorer import Score, score

TASK = Task(256, 256, STEPS)
SEED = 1
# Of the descriptions that training never sees (`scenes.split`): distant parts of the picture must agree in each.
SHOWN = (
    Description("two", "purple", "tower", "by a lake", "pink sky", "the sun on the right"),
    Description("three", "orange", "tower", "by a lake", "dark sky", "the sun on the right"),
    Description("three", "purple", "house", "in a striped field", "blue sky", "the sun on the left"),
)
DENSE, WINDOW, DISTILLED = "dense", "window, own weights", "window, distilled"
COLUMNS = {DENSE: "dense", WINDOW: "window", DISTILLED: "distilled"}
"""What is compared, from the left -> the name in its files."""
SIDE_BY_SIDE = "side_by_side.png"
_LOST = 0.02  # of the coherence: less is no loss to speak of


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture."""

    picture: Image.Image
    seconds: float
    """Of a step."""
    score: Score
    psnr: float
    """To the dense picture, dB."""
    said: str
    """The node's last words; none without CLEAR."""


@dataclass(frozen=True, slots=True)
class Column:
    """The means of one column. right: pictures that show all that their prompts say. seconds: of a step, in the picture
    that was made fastest, as it is the one that other processes disturbed least."""

    right: int
    coherence: float
    psnr: float
    seconds: float
    multiply_adds: float
    """Of one attention layer."""


def headless(client: ComfyClient, options: Asked) -> str:
    """Writes the pictures; the report."""
    task = TASK.asked(options.size, options.steps)
    rows = [_row(client, options, task, number) for number in range(len(SHOWN))]
    layout = TokenLayout(text_tokens(rows[0][DISTILLED].said), token_grid(task.width, task.height))
    columns = {name: _column([row[name] for row in rows], name, layout, options.files.radius) for name in COLUMNS}
    captions = {name: _share(columns, name) for name in COLUMNS}
    drawn = [
        (one.prompt, [_cell(name, row[name], captions[name]) for name in COLUMNS])
        for one, row in zip(SHOWN, rows, strict=True)
    ]
    sheet(drawn).save(options.output / SIDE_BY_SIDE)
    device = client.get_json("/system_stats")["devices"][0]
    lines = [
        "",
        f"{options.files.flux}, {task.width} x {task.height} pixels, {layout.tokens} tokens, {task.steps} steps, "
        f"on {device_name(device)}",
        "",
        *_table(columns),
        "",
        *(f"{number}. {line}" for number, line in enumerate(_sentences(columns, layout, task, options.files), 1)),
        "",
        f"Side by side: {options.output / SIDE_BY_SIDE}",
    ]
    return "\n".join(lines)


def prompts(files: workflow.Files, one: Description, task: Task) -> dict[str, dict[str, Any]]:
    """The shipped workflow for each column."""
    asked = workflow.sampling(width=task.width, height=task.height, steps=task.steps, seed=SEED)
    whole = workflow.changed(workflow.load(), files.changes(), asked, {"Prompt": {"text": one.prompt}})
    return {
        DENSE: workflow.without_clear(whole),
        WINDOW: workflow.without_weights(whole, files.radius),
        DISTILLED: whole,
    }


def _row(client: ComfyClient, options: Asked, task: Task, number: int) -> dict[str, Shown]:
    one, row = SHOWN[number], {}
    print(f"{one.prompt}:", flush=True)
    for name, prompt in prompts(options.files, one, task).items():
        run = client.run(prompt)
        data = client.image(run.images()[0])
        (options.output / f"{number + 1}_{COLUMNS[name]}.png").write_bytes(data)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        seconds = seconds_per_step(run.steps_of(workflow.node_id(prompt, "SamplerCustomAdvanced")))
        pixels = _pixels(picture)
        dense = _pixels(row[DENSE].picture) if row else pixels
        said = run.texts[-1][1] if run.texts else ""
        row[name] = Shown(
            picture,
            seconds,
            score(pixels, one),
            psnr(torch.from_numpy(dense)[None], torch.from_numpy(pixels)[None]),
            said,
        )
        print(f"  {name}: {seconds:.3f} s a step, coherence {row[name].score.coherence:.2f}", flush=True)
    return row


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32) / 255


def _column(shown: Sequence[Shown], name: str, layout: TokenLayout, radius: int) -> Column:
    heads = SIZES["num_heads"]
    window = None if name == DENSE else Window(radius)
    flops = attention_flops(layout, window, heads=heads, head_dim=SIZES["hidden_size"] // heads)
    return Column(
        right=sum(one.score.right for one in shown),
        coherence=statistics.mean(one.score.coherence for one in shown),
        psnr=statistics.mean(one.psnr for one in shown),
        seconds=min(one.seconds for one in shown),
        multiply_adds=flops / 2,
    )


def _share(columns: dict[str, Column], name: str) -> str:
    """The attention's multiply-adds, of dense's."""
    return f"{columns[name].multiply_adds / columns[DENSE].multiply_adds:.0%}"


def _cell(name: str, shown: Shown, share: str) -> Cell:
    cost = f"{shown.seconds:.3f} s a step, attention {share}"
    judged = f"coherence {shown.score.coherence:.2f}, {'' if shown.score.right else 'not '}all as the prompt says"
    return Cell(shown.picture, (name, cost, judged))


def _table(columns: dict[str, Column]) -> list[str]:
    rows: list[tuple[str, Callable[[Column], str]]] = [
        ("all as the prompt says", lambda column: f"{column.right} of {len(SHOWN)}"),
        ("coherence, 0 to 1", lambda column: f"{column.coherence:.2f}"),
        ("PSNR to dense, dB", lambda column: "" if column is columns[DENSE] else f"{column.psnr:.1f}"),
        ("seconds per step", lambda column: f"{column.seconds:.3f}"),
        ("attention, million multiply-adds", lambda column: f"{column.multiply_adds / 1e6:.1f}"),
    ]
    lines = [f"{'':34}" + "".join(f"{name:>21}" for name in columns)]
    return lines + [f"{name:34}" + "".join(f"{text(one):>21}" for one in columns.values()) for name, text in rows]


def _sentences(
    columns: dict[str, Column], layout: TokenLayout, task: Task, files: workflow.Files
) -> tuple[str, str, str, str, str]:
    """What one sees, in the figures of this run."""
    dense, window, distilled = (columns[name] for name in COLUMNS)
    pictures, sight = len(SHOWN), files.radius * PIXELS_PER_TOKEN
    lost = dense.coherence - window.coherence
    if lost < _LOST:
        broken, back = "hardly anything is lost in these", ""
    else:
        broken = "the horizon, the objects and a lake's mirror image no longer fit together"
        share = (distilled.coherence - window.coherence) / lost
        back = f" {f'{share:.0%}' if share > 0 else 'Nothing'} of the lost coherence is back."
    ratio = distilled.seconds / dense.seconds
    outcome = "what is computed around attention outweighs what is saved" if ratio > 0.9 else "that already pays"
    return (
        f"Dense: every token attends to every other. {dense.right} of {pictures} pictures show all that the prompt "
        f"says; coherence {dense.coherence:.2f} (1: a straight horizon, objects alike, a lake that mirrors).",
        f"Window of radius {files.radius} on the same weights: in a layer no token sees further than {sight} pixels; "
        f"{broken}. {window.right} of {pictures} right, coherence {window.coherence:.2f}, PSNR to dense "
        f"{window.psnr:.1f} dB.",
        f"The same window, distilled: {distilled.right} of {pictures} right, coherence {distilled.coherence:.2f}, PSNR "
        f"{distilled.psnr:.1f} dB ({distilled.psnr - window.psnr:+.1f}).{back}",
        f"Cost: attention needs {_share(columns, DISTILLED)} of the dense multiply-adds; a step takes "
        f"{dense.seconds:.3f} s dense, {window.seconds:.3f} s with the window, {distilled.seconds:.3f} s distilled.",
        f"At {task.width} x {task.height} with {layout.text} of {layout.tokens} tokens text, a step with the window "
        f"takes {ratio:.2f} times as long as a dense one: {outcome}. Windows are for large images: python dev.py run "
        "--headless --full-width, docs/benchmarks.md.",
    )
