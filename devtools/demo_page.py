"""The workflow that `dev.py run` puts among the user's: the shipped one with the names of the files present."""

from __future__ import annotations

import json
from pathlib import Path

from devtools import workflow
from devtools.client import ComfyClient
from devtools.demo_run import Task
from devtools.demo_small import SHOWN, TASK
from devtools.small_flux import files as small
from devtools.small_flux import scenes

PROMPT = SHOWN[0].prompt
_FULL_TASK = Task(768, 768, 4)

_FULL_NOTE = """
**This copy** uses the demo checkpoint: FLUX.1-dev's shape, one block of each kind, random weights. Its pictures \
are textures; what it shows is that everything runs, and how fast.
"""


def put_workflow(client: ComfyClient, files: workflow.Files, user: Path) -> Path:
    """Put the workflow for these files among those of the user; never overwrites. user: the server's folder."""
    names = {workflow.SMALL: "CLEAR small FLUX.json", workflow.DEMO: "CLEAR demo.json", workflow.SHIPPED: "CLEAR.json"}
    path = user / "default" / "workflows" / names[files]
    if path.exists():
        return path
    changes = [files.changes()]
    if files is not workflow.SHIPPED:
        task = TASK if files is workflow.SMALL else _FULL_TASK
        changes.append(workflow.sampling(width=task.width, height=task.height, steps=task.steps, seed=1))
    if files is workflow.SMALL:
        changes.append({"Prompt": {"text": PROMPT}})
    ui = workflow.changed_ui(workflow.load(workflow.UI_FILE), client.object_info(), *changes)
    for note in (node for node in ui["nodes"] if node["type"] == "MarkdownNote"):
        if files is workflow.SMALL:
            note["widgets_values"][0] = small_note()
        elif files is workflow.DEMO:
            note["widgets_values"][0] += _FULL_NOTE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ui, indent=2), encoding="utf-8")
    return path


def small_note() -> str:
    """What the small model is, which prompts it understands, what to expect."""
    choices = (scenes.COUNTS, scenes.COLOURS, scenes.THINGS, scenes.GROUNDS, scenes.SKIES, scenes.LIGHTS)
    names = ("how many", "colour", "what", "where", "sky", "light")
    words = "\n".join(f"- {name}: {', '.join(words)}" for name, words in zip(names, choices, strict=True))
    return f"""## The small FLUX, node by node
ComfyUI's own FLUX class, thin and shallow, trained on drawn scenes: it generates pictures within seconds on a CPU. \
CLEAR stands between the model and the sampler: every image token attends to a circular window around it, here of \
radius {small.RADIUS}, with weights that were distilled for it.

**Prompts** say one thing from each line, in this order, and nothing else means anything to it:

{words}

such as "{PROMPT}". More than one: houses, trees, balls, towers. Under a dark sky the sun is the moon.

**Expect** what the prompt says, drawn simply, at {TASK.width} x {TASK.height}: it was trained for that size. A window \
saves nothing in so small an image; what it does to the picture is what there is to see.

**Try**
- *Compare with full attention* on **Apply CLEAR Attention**: both pictures under a slider.
- Take the weights' wire away and set the radius to {small.RADIUS}: the window untrained.
- Other seeds, and a prompt with three objects by a lake: do they stay alike, and does the lake mirror them?

For the real FLUX, start with `python dev.py run --models DIR`, or take a template of this pack.
"""
