"""A workflow from an untrusted source: names that reach for other files, numbers that cannot be, text of megabytes.

What can be known when the prompt is queued is refused then, before anything loads; nothing is read or written outside
the folders for models and images.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devtools import workflow
from devtools.client import ClientError
from devtools.own_base import OwnBase

Refused = Callable[[workflow.Prompt, str], None]

NAN, INFINITY = float("nan"), float("inf")
MEGABYTES = "s0, " * 2_500_000
SECRET = "secret.safetensors"


@pytest.fixture(scope="module")
def secret(models: Path) -> Iterator[Path]:
    """A complete weights file just outside models/clear: a name that reached it would load."""
    path = models / SECRET
    shutil.copy(models / "clear" / workflow.DEMO.clear, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def refused(client: Any, base: OwnBase) -> Refused:
    """Checks that the server refuses a prompt in these words and has done nothing."""

    def state() -> tuple[Any, ...]:
        """What a prompt that ran would change: the server's memory of prompts, and the folders around the weights."""
        around = (base.path, base.models, base.models / "clear")
        folders = [sorted(path.name for path in folder.iterdir()) for folder in around]
        return client.get_json("/queue"), len(client.get_json("/history")), folders

    def check(prompt: workflow.Prompt, words: str) -> None:
        before = state()
        with pytest.raises(ClientError, match=words):
            client.queue(prompt)
        assert state() == before

    return check


# ---- names ---------------------------------------------------------------------------------------------


def test_a_name_reaches_no_file_that_is_not_listed(
    refused: Refused, demo_prompt: Any, secret: Path, subtests: pytest.Subtests
) -> None:
    for name in [
        "../secret.safetensors",
        "../../models/secret.safetensors",
        "..\\secret.safetensors",
        "clear_local_8_demo.safetensors/../../secret.safetensors",
        str(secret),
        f"file://{secret}",
        "/etc/passwd",
        "~/secret.safetensors",
        "C:\\secret.safetensors",
        "\\\\evil.example\\share\\x.safetensors",
        "https://evil.example/x.safetensors",
        "clear_local_8_demo.safetensors\0",
        "clear_local_8_demo.safetensors\n",
        "clear_local_16.safetensors?download=true",
        "Evil/Repository/clear_local_16.safetensors",
        "$(touch /tmp/hacked)",
        "con",
        ".",
        "",
        "\ud800",
        "x" * 100_000,
    ]:
        with subtests.test(name=ascii(name[:80])):
            refused(demo_prompt({"CLEARWeightsLoader": {"weights_name": name}}), "no weights file|not in list")


def test_a_name_that_is_no_text_is_refused(refused: Refused, demo_prompt: Any, subtests: pytest.Subtests) -> None:
    for name in (5, True, {"a": 1}, [1, 2, 3]):
        with subtests.test(name=name):
            refused(demo_prompt({"CLEARWeightsLoader": {"weights_name": name}}), "CLEARWeightsLoader")


# ---- numbers and text -----------------------------------------------------------------------------------


APPLY: list[tuple[dict[str, Any], str]] = [
    ({"radius": -1}, "smaller than min.*: radius"),
    ({"radius": 10**9}, "bigger than max.*: radius"),
    ({"radius": INFINITY}, "convert an input value to a INT"),
    ({"radius": NAN}, "convert an input value to a INT"),
    ({"radius": "wide"}, "convert an input value to a INT"),
    ({"down_factor": 10**9}, "bigger than max.*: down_factor"),
    ({"strength": NAN}, "strength is nan; allowed is 0 to 1"),
    ({"strength": INFINITY}, "strength is inf; allowed is 0 to 1"),
    ({"strength": -0.5}, "strength is -0.5; allowed is 0 to 1"),
    ({"ntk_factor": NAN}, r"ntk_factor is nan; allowed is 0 \(by size\) or 1 to 100"),
    ({"ntk_factor": 1e300}, r"ntk_factor is 1e\+300; allowed is 0 \(by size\) or 1 to 100"),
    ({"start_percent": NAN}, "start_percent is nan; allowed is 0 to 1"),
    ({"end_percent": -INFINITY}, "end_percent is -inf; allowed is 0 to 1"),
    ({"backend": "sdpa; rm -rf /"}, "backend is 'sdpa; rm -rf /'; choose one of: auto"),
    ({"backend": "x" * 10**6}, "backend is 'x{50,59}; choose one of: auto"),
    ({"blocks": MEGABYTES}, "blocks is 10,000,000 characters long, up to 1,000 are read"),
    ({"blocks": "__import__('os')"}, "cannot be read. Write all, double, single"),
    ({"blocks": "s٣"}, "cannot be read"),
]


def test_values_of_apply_that_cannot_be(refused: Refused, demo_prompt: Any, subtests: pytest.Subtests) -> None:
    for values, words in APPLY:
        prompt = demo_prompt()
        # Also inputs that the shipped workflow does not have.
        prompt[workflow.node_id(prompt, "CLEARApply")]["inputs"] |= values
        with subtests.test(words=words):
            refused(prompt, words)


BANDS: list[tuple[dict[str, Any], str]] = [
    ({"bands": -1}, "bands is -1; choose 0"),
    ({"bands": 10**9}, "bands is 1000000000; choose 0"),
    ({"bands": INFINITY}, "convert an input value to a INT"),
    ({"devices": "cuda:0; rm -rf /"}, "devices has 'cuda:0; rm -rf /'"),
    ({"devices": "$(reboot)"}, "devices has '.\\(reboot\\)'"),
    ({"devices": "cpu\0"}, "devices has 'cpu"),
    ({"devices": "../../dev/nvidia0"}, "devices has '../../dev/nvidia0'"),
    ({"devices": "cuda:200"}, "devices has 'cuda:200'"),
    ({"devices": "cuda:-1"}, "devices has 'cuda:-1'"),
    ({"devices": "cpu=1e9"}, "devices has 'cpu=1e9'"),
    ({"devices": "cpu=" + "9" * 400}, "devices has 'cpu=9"),
    ({"devices": "cpu," * 10**6}, "devices is 4,000,000 characters long"),
    ({"devices": "cpu," * 300 + "cpu"}, "devices has 301 names; at most 256"),
]


def test_bands_and_devices_that_cannot_be(refused: Refused, subtests: pytest.Subtests) -> None:
    for node in ("CLEARTiledSampler", "CLEARMultiGPU", "CLEARHighRes"):
        for values, words in BANDS:
            with subtests.test(node=node, words=words):
                refused(ending_in(node, values), words)


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("CLEARTiledSampler", {"text_merge": "x" * 10**6}, "text_merge is 'x{50,59}; choose one of"),
    ("CLEARControlNet", {"radius": 0}, "radius is 0; allowed is 1 to 128"),
    ("CLEARControlNet", {"radius": 10**9}, "radius is 1000000000; allowed is 1 to 128"),
    ("CLEARControlNet", {"backend": "/bin/sh"}, "backend is '/bin/sh'; choose one of"),
    ("CLEARCompare", {"gain": NAN}, "gain is nan; allowed is 1 to 255"),
    ("CLEARLoadLarge", {"image": "../models/clear/x.png"}, "There is no image '../models/clear/x.png' in the input"),
    ("CLEARLoadLarge", {"image": "/etc/passwd"}, "There is no image '/etc/passwd' in the input folder"),
    ("CLEARLoadLarge", {"image": MEGABYTES}, "There is no image 's0, s0.{40,56} in the input folder"),
    ("CLEARLoadLarge", {"left": -1}, "left is -1; allowed is 0 to 65535"),
    ("CLEARLoadLarge", {"width": 10**9}, "width is 1000000000; allowed is 0 to 65536"),
    ("CLEARAttentionMap", {"x": NAN}, "x is nan"),
    ("CLEARAttentionMap", {"block": MEGABYTES}, "block is .s0, s0.{40,56}; write one block"),
    ("CLEARFactors", {"least_mass": NAN}, "least_mass is nan; allowed is 0 to 1"),
    ("CLEARFactors", {"percents": MEGABYTES}, "percents is .s0, s0.{40,56}; write 1 to 8 numbers"),
    ("CLEARFactors", {"blocks": MEGABYTES}, "blocks is 10,000,000 characters long"),
    ("CLEARFactors", {"radius": 10**9}, "radius is 1000000000; allowed is 0 to 128"),
    ("CLEARHighRes", {"target_megapixels": NAN}, "target_megapixels is nan; allowed is 0.1 to 268.5"),
    ("CLEARHighRes", {"target_megapixels": 10**9}, "target_megapixels is 1000000000.0; allowed is 0.1 to 268.5"),
    ("CLEARHighRes", {"denoise": NAN}, "denoise is nan; allowed is 0.05 to 1"),
    ("CLEARHighRes", {"guidance": INFINITY}, "guidance is inf; allowed is 0 to 100"),
    ("CLEARHighRes", {"ntk_factor": -1}, "ntk_factor is -1.0; allowed is 0 to 100"),
    ("CLEARHighRes", {"scale": NAN}, "scale is nan; allowed is 0.1 to 64"),
    ("CLEARHighRes", {"long_side": 10**9}, "bigger than max.*: long_side"),
    ("CLEARHighRes", {"size_by": "area"}, "size_by is 'area'; choose one of: "),
    ("CLEARHighRes", {"vae_tiling": "x"}, "vae_tiling is 'x'; choose one of: "),
    ("CLEARHighRes", {"stages": 10**9}, "bigger than max.*: stages"),
    ("CLEARHighRes", {"steps": 0}, "smaller than min.*: steps"),
    ("CLEARHighRes", {"sampler_name": "os.system"}, "sampler_name is 'os.system'; choose one that KSampler has"),
    ("CLEARHighRes", {"scheduler": "\n"}, "scheduler is '.n'; choose one that KSampler has"),
]


def test_values_of_other_nodes_that_cannot_be(refused: Refused, subtests: pytest.Subtests) -> None:
    for node, values, words in OTHERS:
        with subtests.test(node=node, words=words):
            refused(ending_in(node, values), words)


VALUES: dict[str, dict[str, Any]] = {
    "CLEARTiledSampler": {"devices": "auto", "bands": 0, "text_merge": "exact"},
    "CLEARMultiGPU": {"devices": "auto", "bands": 0, "text_merge": "exact"},
    "CLEARControlNet": {"radius": 32, "backend": "auto"},
    "CLEARCompare": {"gain": 4.0},
    "CLEARLoadLarge": {"image": "absent.png", "left": 0, "top": 0, "width": 0, "height": 0},
    "CLEARAttentionMap": {"seed": 0, "percent": 0.5, "block": "s18", "head": -1, "x": 0.5, "y": 0.5},
    "CLEARFactors": {
        "seed": 0,
        "percents": "0.5",
        "least_mass": 0.9,
        "largest_error": 0.1,
        "radius": 0,
        "blocks": "all",
        "queries": 256,
    },
    "CLEARHighRes": {
        "target_megapixels": 4.2,
        "stages": 0,
        "denoise": 0.7,
        "steps": 20,
        "guidance": 7.5,
        "ntk_factor": 0.0,
        "proportional_attention": True,
        "seed": 0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "devices": "auto",
        "bands": 0,
    },
}


def ending_in(node: str, values: dict[str, Any]) -> workflow.Prompt:
    """A node of its own whose output is shown. Its sockets are left open: that is one more reason to refuse it."""
    return {
        "strange": {"class_type": node, "inputs": VALUES[node] | values, "_meta": {"title": "Strange"}},
        "seen": {"class_type": "PreviewAny", "inputs": {"source": ["strange", 0]}, "_meta": {"title": "Seen"}},
    }


def test_sizes_and_steps_of_nothing_are_refused_by_the_host(refused: Refused, demo_prompt: Any) -> None:
    refused(demo_prompt(steps=0), "smaller than min.*: steps")
    refused(demo_prompt({"EmptySD3LatentImage": {"batch_size": 0}}), "smaller than min.*: batch_size")


# ---- what is odd but can be -----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(16, 16), (16, 144), (128, 16)])
def test_an_image_of_a_token_or_a_line(client: Any, demo_prompt: Any, picture: Any, width: int, height: int) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, width=width, height=height)
    assert picture(client.run(prompt)).shape == (height, width, 3)


def test_a_latent_of_one_cell(client: Any, demo_prompt: Any, picture: Any) -> None:
    """8 x 8 pixels: half a token, which ComfyUI pads. With one token there is nothing to leave out of sight."""
    prompt = demo_prompt({"CLEARApply": {"strength": 0.0}})
    sampler = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]["inputs"]
    vae = prompt[workflow.node_id(prompt, "VAEDecode")]["inputs"]["vae"]
    grey = {"width": 8, "height": 8, "batch_size": 1, "color": 0x808080}
    prompt["grey"] = {"class_type": "EmptyImage", "inputs": grey, "_meta": {"title": "Grey"}}
    prompt["cell"] = {
        "class_type": "VAEEncode",
        "inputs": {"pixels": ["grey", 0], "vae": vae},
        "_meta": {"title": "Cell"},
    }
    sampler["latent_image"] = ["cell", 0]
    clear = picture(client.run(prompt))
    assert clear.shape == (8, 8, 3)
    dense = picture(client.run(workflow.without_clear(prompt)))
    assert np.abs(clear.astype(int) - dense).max() <= 1
