"""What the page asks the server: the shapes of the answers, refusals in words, and the host's own check of origins."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest

from devtools import workflow

ROUTES = ("window?width=1024&height=1024&radius=8", "bands?width=1024&height=1024&radius=8", "devices", "weights")


def get(address: str, path: str, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a route; JSON None where the answer has none."""
    request = urllib.request.Request(f"{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body else None


@pytest.fixture(scope="module")
def ask(server: Any) -> Any:
    def ask(route: str, **values: Any) -> tuple[int, Any]:
        return get(server.address, f"/clear_attention/{route}?{urllib.parse.urlencode(values)}")

    return ask


def test_window(ask: Any) -> None:
    status, facts = ask("window", width=2048, height=1024, radius=8, down_factor=4)
    assert status == 200
    assert facts["grid"] == [64, 128]
    assert facts["cells"] == [16, 32]
    assert facts["keys"] == 193 + 256 + 16 * 32
    assert facts["half_widths"] == [7, 7, 7, 7, 6, 6, 5, 3]
    assert 0 < facts["share"] < 1
    assert facts["speedup"] == "no clear_attention_bench.json in ComfyUI's user folder"
    assert {"radius", "down_factor", "dense_keys"} <= facts.keys()


def test_radius_0_is_the_weights_own(ask: Any) -> None:
    """Of a file that is not here by its name, of one that is by what it holds."""
    for name, own in (("clear_local_8_down_4.safetensors", (8, 4)), (workflow.DEMO.clear, (workflow.DEMO.radius, 1))):
        facts = ask("window", width=512, height=512, weights=name)[1]
        assert (facts["radius"], facts["down_factor"]) == own
    assert ask("window", width=512, height=512, weights="clear_local_8_down_4.safetensors", radius=5)[1]["radius"] == 5


def test_upscale(ask: Any) -> None:
    """The stages of the plan, each with what the other routes and the memory model say of its size."""
    values = {"weights": "clear_local_16.safetensors", "devices": "cpu", "bands": 4}
    status, facts = ask("upscale", width=1024, height=512, size_by="long side", long_side=4096, **values)
    assert status == 200
    assert facts["source"] == [1024, 512]
    assert [stage["size"] for stage in facts["stages"]] == [[2048, 1024], [4096, 2048]]
    for stage in facts["stages"]:
        width, height = stage["size"]
        cut = ask("bands", width=width, height=height, **values)[1]
        assert (stage["bands"], stage["device"], stage["peak"]) == (4, "cpu", cut["peaks"]["cpu"])
        assert stage["vae"]["need"] == 2178 * width * height * 4
        assert stage["vae"]["way"] == ("strips" if stage["vae"]["need"] + 2**29 > stage["vae"]["room"] else "whole")
    tiled = ask("upscale", width=64, height=64, vae_tiling="always", **values)[1]["stages"]
    assert all(stage["vae"]["way"] == "tiles" for stage in tiled)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stages": 10**9}, "stages is 1000000000; allowed is 0 to 6"),
        ({"size_by": "area"}, "size_by is 'area'; choose one of: megapixels, long side, scale"),
        ({"size_by": "scale", "scale": "nan"}, "scale is nan; allowed is 0.1 to 64"),
        ({"size_by": "scale", "scale": 64}, "scale 64 would make 65536 x 65536 pixels of this 1024 x 1024 image"),
        ({"target_megapixels": "inf"}, "target_megapixels is inf"),
        ({"vae_tiling": "x"}, "vae_tiling is 'x'; choose one of: auto, always, never, strips"),
    ],
)
def test_an_upscale_that_cannot_be_is_refused(ask: Any, values: dict[str, Any], words: str) -> None:
    status, facts = ask("upscale", width=1024, height=1024, weights="clear_local_16.safetensors", **values)
    assert status == 200
    assert words in facts["refused"]


def test_bands(ask: Any) -> None:
    status, facts = ask("bands", width=1024, height=2048, radius=8, devices="cpu,cpu", bands=4)
    assert status == 200
    assert facts["bands"] == [[0, 32, 0], [32, 64, 0], [64, 96, 1], [96, 128, 1]]
    assert facts["lanes"] == ["cpu", "cpu"]
    assert facts["peaks"]["cpu"] > 0
    assert facts["halo"] == 7


def test_devices(ask: Any) -> None:
    found = ask("devices")[1]
    assert (found["auto"], found["entries"]) == (["cpu"], [])
    (cpu,) = found["machine"]
    assert (cpu["name"], cpu["title"]) == ("cpu", "cpu")
    assert 0 < cpu["free"] < cpu["total"]


def test_entries_of_devices_are_kept_as_written(ask: Any) -> None:
    found = ask("devices", devices=" CUDA=3,cuda:1, mps ,cpu=0.5,nonsense,cuda:1")[1]
    assert found["entries"] == [
        {"text": "CUDA=3", "device": "cuda:0"},
        {"text": "cuda:1", "device": "cuda:1"},
        {"text": "mps", "device": "mps:0"},
        {"text": "cpu=0.5", "device": "cpu"},
        {"text": "nonsense", "device": "nonsense"},
        {"text": "cuda:1", "device": "cuda:1"},
    ]
    for auto in ("auto", " AUTO ", ""):
        assert ask("devices", devices=auto)[1]["entries"] == []


def test_weights_are_those_of_the_node(ask: Any, object_info: dict[str, Any]) -> None:
    listed = object_info["CLEARWeightsLoader"]["input"]["required"]["weights_name"][1]["options"]
    files = ask("weights")[1]
    assert [file["name"] for file in files] == listed
    here = {file["name"]: file["here"] for file in files}
    assert here[workflow.DEMO.clear]
    assert not here[workflow.SHIPPED.clear]


SIZE = {"width": 512, "height": 512, "radius": 8}


@pytest.mark.parametrize(
    ("route", "values", "words"),
    [
        ("window", {}, ("width is missing",)),
        ("window", {**SIZE, "width": "wide"}, ("width", "'wide'", "not a number")),
        ("window", {**SIZE, "radius": 8.5}, ("radius", "'8.5'", "not a number")),
        ("window", {**SIZE, "height": 16385}, ("height", "16385", "16384")),
        ("bands", {**SIZE, "width": 0}, ("width", "0", "1")),
        ("window", {**SIZE, "blocks": "d0," * 1000}, ("blocks", "2000 characters")),
        ("window", {**SIZE, "colour": "red"}, ("colour", "width")),
        ("devices", {"x": 1}, ("unknown argument 'x'",)),
        ("weights", {"name": "y"}, ("unknown argument 'name'",)),
    ],
)
def test_bad_arguments_are_refused_in_words(ask: Any, route: str, values: dict[str, Any], words: Any) -> None:
    status, answer = ask(route, **values)
    assert status == 400
    assert answer.keys() == {"error"}
    for word in words:
        assert word in answer["error"]


@pytest.mark.parametrize(
    ("route", "values", "words"),
    [
        ("window", {**SIZE, "radius": 0}, ("radius is 0", "no weights")),
        ("window", {**SIZE, "radius": 129}, ("radius", "129", "128")),
        ("window", {**SIZE, "down_factor": 9}, ("down_factor", "9", "8")),
        ("window", {**SIZE, "backend": "magic"}, ("backend", "magic", "sdpa")),
        ("window", {**SIZE, "start_percent": "nan"}, ("start_percent", "nan")),
        ("window", {**SIZE, "blocks": "x9"}, ("blocks", "x9")),
        ("window", {**SIZE, "weights": "../../secret.txt"}, ("no weights file", "secret")),
        ("bands", {**SIZE, "radius": 0}, ("radius is 0", "no weights")),
        ("bands", {**SIZE, "bands": 257}, ("bands", "257", "256")),
        ("bands", {**SIZE, "devices": "gpu"}, ("devices", "gpu", "cuda:0")),
    ],
)
def test_what_a_node_would_refuse_comes_in_its_words(ask: Any, route: str, values: dict[str, Any], words: Any) -> None:
    """No failure of the request: a page that shows a graph as it is has nothing to complain of."""
    status, answer = ask(route, **values)
    assert status == 200
    assert answer.keys() == {"refused"}
    for word in words:
        assert word in answer["refused"]


def test_an_argument_given_twice_is_refused(server: Any) -> None:
    status, answer = get(server.address, "/clear_attention/window?width=512&width=1024&height=512&radius=8")
    assert (status, answer) == (400, {"error": "an argument is given twice"})


@pytest.mark.parametrize("route", ROUTES)
def test_other_sites_are_kept_out_as_the_host_keeps_them_out(server: Any, route: str) -> None:
    for path in ("/queue", f"/clear_attention/{route}", f"/api/clear_attention/{route}"):
        assert get(server.address, path, Origin="http://elsewhere.example")[0] == 403
        assert get(server.address, path, Origin=server.address)[0] == 200


@pytest.mark.parametrize("route", ROUTES)
def test_routes_only_answer_questions(server: Any, route: str) -> None:
    request = urllib.request.Request(f"{server.address}/clear_attention/{route}", b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    assert refusal.value.code == 405
