"""The shipped workflow in its two forms: the page's (UI) and the server's (API), and changes to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import checkpoints
from .small_flux import files as small

ROOT = Path(__file__).resolve().parents[1]
NAMES = tuple(sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
"""The shipped workflows: workflows/{name}.json for the page, workflows/api/{name}.json for the server."""
UI_FILE = ROOT / "workflows" / "03_prompt_to_2k.json"
API_FILE = ROOT / "workflows" / "api" / "03_prompt_to_2k.json"

Prompt = dict[str, Any]
# For a node of each type (or title, where two share a type): the widgets to set.
Changes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Files:
    """The model files a workflow names, as its loader nodes list them."""

    flux: str
    clip_l: str
    t5xxl: str
    clip_type: str
    vae: str
    clear: str
    radius: int  # of the CLEAR file
    weight_dtype: str | None = None  # in which FLUX is loaded; None for the workflow's own

    def changes(self) -> Changes:
        dtype = {} if self.weight_dtype is None else {"weight_dtype": self.weight_dtype}
        return {
            "UNETLoader": {"unet_name": self.flux, **dtype},
            "DualCLIPLoader": {"clip_name1": self.clip_l, "clip_name2": self.t5xxl, "type": self.clip_type},
            "VAELoader": {"vae_name": self.vae},
            "CLEARWeightsLoader": {"weights_name": self.clear},
        }

    def paths(self) -> list[str]:
        """Where they lie below a models folder."""
        text = [f"text_encoders/{name}" for name in dict.fromkeys((self.clip_l, self.t5xxl))]
        return [f"diffusion_models/{self.flux}", *text, f"vae/{self.vae}", f"clear/{self.clear}"]


# CLIP-L twice under the type "sd3": T5 is too large to make up, and this loads without it and gives
# FLUX a context of the right width.
DEMO = Files(
    flux=Path(checkpoints.FLUX).name,
    clip_l=Path(checkpoints.CLIP_L).name,
    t5xxl=Path(checkpoints.CLIP_L).name,
    clip_type="sd3",
    vae=Path(checkpoints.VAE).name,
    clear=Path(checkpoints.CLEAR).name,
    radius=checkpoints.RADIUS,
)
# Trained, for 256 x 256. Its text is the demo's CLIP-L too.
SMALL = replace(
    DEMO,
    flux=Path(small.FLUX).name,
    vae=Path(small.VAE).name,
    clear=Path(small.CLEAR).name,
    radius=small.RADIUS,
    weight_dtype="default",
)
SHIPPED = Files(
    flux="flux1-dev.safetensors",
    clip_l="clip_l.safetensors",
    t5xxl="t5xxl_fp16.safetensors",
    clip_type="flux",
    vae="ae.safetensors",
    clear="clear_local_16.safetensors",
    radius=16,
)


def page_form(name: str) -> Any:
    return load(ROOT / "workflows" / f"{name}.json")


def server_form(name: str) -> Any:
    return load(ROOT / "workflows" / "api" / f"{name}.json")


def load(path: Path = API_FILE) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sampling(*, width: int, height: int, steps: int, seed: int, prefix: str = "CLEAR") -> Changes:
    """What a run is asked for, beside its model files."""
    return {
        "Width": {"value": width},
        "Height": {"value": height},
        "BasicScheduler": {"steps": steps},
        "RandomNoise": {"noise_seed": seed},
        "SaveImage": {"filename_prefix": prefix},
    }


# ---- the API form ------------------------------------------------------------------------------------


def changed(prompt: Prompt, *changes: Changes) -> Prompt:
    """A copy with other widget values. Raises KeyError for a node or a widget that is not there."""
    prompt = copy.deepcopy(prompt)
    for change in changes:
        for name, values in change.items():
            inputs = prompt[node_id(prompt, name)]["inputs"]
            for key, value in values.items():
                if key not in inputs:
                    raise KeyError(f"{name} has no input {key!r}; it has {', '.join(inputs)}")
                inputs[key] = value
    return prompt


def node_id(prompt: Prompt, name: str) -> str:
    """The id of the one node of that type or title. Raises KeyError for none or several."""
    found = [key for key, node in prompt.items() if name in (node["class_type"], node["_meta"]["title"])]
    if len(found) != 1:
        raise KeyError(f"{len(found)} nodes are called {name!r}")
    return found[0]


def without_clear(prompt: Prompt) -> Prompt:
    """A copy with Apply CLEAR Attention bypassed: the model runs straight through, its weights are not read."""
    prompt = copy.deepcopy(prompt)
    removed = prompt.pop(node_id(prompt, "CLEARApply"))
    prompt.pop(node_id(prompt, "CLEARWeightsLoader"))
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if is_link(value) and value[0] not in prompt:
                node["inputs"][key] = removed["inputs"]["model"]
    return prompt


def without_weights(prompt: Prompt, radius: int) -> Prompt:
    """A copy with a window of that radius on the model's own weights: Apply CLEAR Attention without a weights file."""
    prompt = copy.deepcopy(prompt)
    prompt.pop(node_id(prompt, "CLEARWeightsLoader"))
    apply = prompt[node_id(prompt, "CLEARApply")]["inputs"]
    del apply["weights"]
    apply["radius"] = radius
    return prompt


def with_lora(prompt: Prompt, *, before: str, name: str) -> Prompt:
    """A copy with a LoRA node put into the model's wire that ends at the node called `before`."""
    prompt = copy.deepcopy(prompt)
    end = prompt[node_id(prompt, before)]["inputs"]
    prompt["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": end["model"], "lora_name": name, "strength_model": 1.0},
        "_meta": {"title": "LoRA"},
    }
    end["model"] = ["lora", 0]
    return prompt


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


# ---- the UI form -------------------------------------------------------------------------------------

_NOTES = ("Note", "MarkdownNote")
_BYPASSED = 4


def changed_ui(ui: dict[str, Any], object_info: dict[str, Any], *changes: Changes) -> dict[str, Any]:
    """The same changes as `changed` makes, in a copy of the page's form."""
    ui = copy.deepcopy(ui)
    merged = {name: values for change in changes for name, values in change.items()}
    for node in ui["nodes"]:
        values = merged.get(node.get("title", ""), merged.get(node["type"], {}))
        names = list(widget_names(node["type"], object_info)) if values else []
        for key, value in values.items():
            node["widgets_values"][names.index(key)] = value
    return ui


def to_api(ui: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """What the page sends on Run. Handles what the shipped workflow uses."""
    links = {link[0]: (str(link[1]), link[2]) for link in ui["links"]}
    prompt: Prompt = {}
    for node in ui["nodes"]:
        if node["type"] in _NOTES:
            continue
        if node["mode"] == _BYPASSED:
            raise ValueError(f"node {node['id']} is bypassed, which this conversion does not know")
        info = object_info[node["type"]]
        names = list(widget_names(node["type"], object_info))
        if len(names) != len(node["widgets_values"]):
            raise ValueError(f"{node['type']} has the widgets {names} but values {node['widgets_values']}")
        inputs = {
            name: value
            for name, value in zip(names, node["widgets_values"], strict=True)
            if not name.endswith(_CONTROL)
        }
        for slot in node["inputs"]:
            if slot["link"] is not None:
                inputs[slot["name"]] = list(links[slot["link"]])
        title = node.get("title") or info["display_name"] or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


_CONTROL = "\0control after generate"
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widget_names(node_type: str, object_info: dict[str, Any]) -> Iterator[str]:
    """The widgets of a node in the order in which the page stores their values."""
    inputs = object_info[node_type]["input"]
    for group in ("required", "optional"):
        for name, spec in inputs.get(group, {}).items():
            if isinstance(spec[0], list) or spec[0] in _WIDGET_TYPES:
                yield name
                if len(spec) > 1 and spec[1].get("control_after_generate"):
                    yield name + _CONTROL
