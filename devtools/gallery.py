"""What the shipped workflows generate on the small FLUX, for the pictures of the template browser.

Each workflow runs in a real server as it is shipped, but for the names of its model files, its prompt, its sizes and
what makes sense at large sizes only. Workflows whose models do not exist at this size are not among CASES.

`tests/server/test_pictures.py` makes them with the pictures. To generate them anew for the pictures that are there, all
of them or those of some workflows:

PYTHONPATH=.dev/host:. PYTHONSAFEPATH=1 .dev/venv/bin/python -m devtools.gallery [NAME ...]
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from PIL import Image
from safetensors.torch import save_file

from devtools import checkpoints, gallery_inset, workflow
from devtools.client import ComfyClient
from devtools.demo_files import extra_models, make_text_encoder
from devtools.server import BASE, ComfyServer, only_this_pack
from devtools.small_flux import files as small
from devtools.small_flux.scenes import Description
from devtools.workflow import Changes, Prompt

SIDE = 256
"""What the small FLUX was trained for: results have about this height, and upscales start at half of it."""

_LAKE = Description("two", "red", "tower", "by a lake", "pink sky", "the sun on the left")
_NIGHT = Description("two", "yellow", "house", "by a lake", "dark sky", "the sun on the left")
_SHORE = Description("three", "orange", "tower", "by a lake", "dark sky", "the sun on the right")
_MEADOW = Description("three", "purple", "house", "on a meadow", "blue sky", "the sun on the right")
_FIELD = Description("three", "orange", "tree", "in a striped field", "pink sky", "no sun")
_DESERT = Description("two", "orange", "house", "in a desert", "blue sky", "the sun on the left")

_GIVEN_BY = "03_prompt_to_2k"
_INPUT = "small_flux.png"
"""Its image at half its size, which the workflows that take an image load."""
_LORAS = ("random_1.safetensors", "random_2.safetensors")
_LORA_STRENGTH = 0.05
_PRESET_WEIGHTS = "clear/clear_local_16.safetensors"
"""The file that CLEAR 4K / 8K looks for. The small model's weights take its name: their radius is in the file."""


@dataclass(frozen=True, slots=True)
class Case:
    """A workflow that the small FLUX can run. changes: beside the names of the model files.

    shown: the titles of the nodes whose images are shown, in that order. more: a second line of the caption.
    """

    changes: Changes
    shown: tuple[str, ...] = ("Save Image",)
    more: str = ""


def _said(description: Description) -> Changes:
    return {"Prompt": {"text": description.prompt}}


_SQUARE: Changes = {"EmptySD3LatentImage": {"width": SIDE, "height": SIDE}}
_SIDES: Changes = {"Width": {"value": SIDE}, "Height": {"value": SIDE}}
_GIVEN: Changes = {"LoadImage": {"image": _INPUT}}
_UPSCALE = {"size_by": "scale", "scale": 2.0}

CASES: Mapping[str, Case] = MappingProxyType(
    {
        "01_prompt_to_4k": Case(
            _said(_NIGHT) | {"Size": {"width": SIDE // 2, "height": SIDE // 2}, "CLEARHighRes": _UPSCALE}
        ),
        "02_image_to_4k": Case(_said(_LAKE) | _GIVEN | {"CLEARHighRes": _UPSCALE}),
        "03_prompt_to_2k": Case(_said(_LAKE) | _SIDES),
        # Its second pass has one and a half times the size: 264 pixels.
        "04_image_to_image": Case(_said(_LAKE) | _GIVEN | {"Size": {"width": 176}}),
        "05_upscale_by_hand": Case(
            _said(_LAKE)
            | _GIVEN
            | {"Size": {"width": SIDE, "height": SIDE}, "ModelSamplingFlux": {"width": SIDE, "height": SIDE}}
        ),
        "09_lora": Case(
            _said(_FIELD)
            | _SQUARE
            | {
                "LoRA before CLEAR": {"lora_name": _LORAS[0], "strength_model": _LORA_STRENGTH},
                "LoRA after CLEAR": {"lora_name": _LORAS[1], "strength_model": _LORA_STRENGTH},
            },
            more="with two random LoRAs",
        ),
        "10_lora_scheduled": Case(
            _said(_DESERT)
            | _SQUARE
            | {"CreateHookLoraModelOnly": {"lora_name": _LORAS[0], "strength_model": _LORA_STRENGTH}},
            more="with a random LoRA",
        ),
        "12_regional": Case(
            {
                "Prompt left": {"text": _NIGHT.prompt},
                "Prompt right": {"text": _MEADOW.prompt},
                "Width": {"value": 2 * SIDE},
                "Height": {"value": SIDE},
                "Region": {"width": SIDE + SIDE // 8},
                "Right": {"x": SIDE - SIDE // 8},
            }
        ),
        "14_schnell": Case(_said(_SHORE) | _SQUARE),
        # With 0.05 or more, EasyCache leaves out steps that the small FLUX needs; with this it leaves out none.
        "15_fast": Case(
            _said(_SHORE)
            | _SIDES
            | {"EasyCache": {"reuse_threshold": 0.02}, "UNETLoader": {"weight_dtype": "fp8_e4m3fn"}}
        ),
        "20_compare": Case(
            _said(_MEADOW) | _SQUARE,
            ("Picture, dense", "Picture, CLEAR", "Where they differ"),
            "dense, CLEAR, difference",
        ),
        "24_sweep": Case(
            _said(_LAKE) | _SQUARE | {"CLEARSweep": {"axes": f"radius: 2, 3, 5\nweights: {Path(small.CLEAR).name}"}},
            more="the sheet: dense, radius 2, 3, 5",
        ),
    }
)
"""By the name of the workflow."""


def prompt_of(name: str) -> Prompt:
    """What the server is asked to run."""
    prompt = workflow.server_form(name)
    types = {node["class_type"] for node in prompt.values()}
    files = {kind: values for kind, values in workflow.SMALL.changes().items() if kind in types}
    return workflow.changed(prompt, files, CASES[name].changes)


@contextmanager
def served(folder: Path, *, base: Path = BASE, options: Sequence[str] = ()) -> Iterator[ComfyClient]:
    """A client of a server that has the small FLUX.

    folder: an empty one, for what the server reads and writes. base, options: of the server; its models have the demo's
    text encoder. Raises ServerError where the server does not start.
    """
    with small_server(folder, base=base, options=options) as server:
        yield ComfyClient(server.address, timeout=1800)


def small_server(folder: Path, *, base: Path = BASE, options: Sequence[str] = ()) -> ComfyServer:
    """A server that has the small FLUX, not started. folder, base, options: as for `served`."""
    more = extra_models(_stand_ins(folder / "models"), workflow.SMALL, folder / "paths.yaml")
    more += [*only_this_pack(folder, small.LOADER), *options, "--use-pytorch-cross-attention"]
    return ComfyServer(folder / "server.log", options=more, base=base, cpu=True)


def results(client: ComfyClient, names: Iterable[str]) -> Iterator[tuple[str, list[Image.Image]]]:
    """Runs these workflows of CASES; for each the images that it shows. Raises ClientError where one fails."""
    (given,) = _shown(client, _GIVEN_BY)
    client.upload_picture(_INPUT, given.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS))
    for name in names:
        yield name, _shown(client, name)


def write(client: ComfyClient, names: Iterable[str], pictures: Path) -> None:
    """Lays the results of these workflows into their pictures in that folder."""
    for name, images in results(client, names):
        gallery_inset.lay(pictures / f"{name}.jpg", images, CASES[name].more)


def _shown(client: ComfyClient, name: str) -> list[Image.Image]:
    prompt = prompt_of(name)
    run = client.run(prompt)
    references = [run.outputs[workflow.node_id(prompt, title)]["images"][0] for title in CASES[name].shown]
    return [Image.open(io.BytesIO(client.image(one))).convert("RGB") for one in references]


def _stand_ins(models: Path) -> Path:
    """A models folder with what the small FLUX has no file of its own for."""
    small.put(small.FOLDER / small.CLEAR, models / _PRESET_WEIGHTS)
    (models / "loras").mkdir()
    for seed, name in enumerate(_LORAS):
        save_file(checkpoints.random_lora(small.FOLDER / small.FLUX, str(seed)), models / "loras" / name)
    return models


def main(names: Sequence[str]) -> None:
    make_text_encoder()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as client:
        write(client, names or CASES, workflow.ROOT / "workflows")


if __name__ == "__main__":
    main(sys.argv[1:])
