"""CLEAR Evaluate Folders: its networks against the libraries they come from, their files, the node and the command."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from devtools.checkpoints import random_like
from devtools.server import HOST

from host.executing import Prompt, Queue

ROOT = Path(__file__).parents[2]
LAYERS = 2
"""Of each transformer in these tests; the loaders take their true depths, of which the files have the last by name."""


def put_images(folder: Path, count: int = 3, seed: int = 0, side: int = 64) -> Path:
    """Random images, PNG."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def pixels(folder: Path) -> list[Tensor]:
    return [torch.from_numpy(np.array(Image.open(path))) for path in sorted(folder.iterdir())]


@pytest.fixture
def weights(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.host.evaluation.weights")


@pytest.fixture
def here(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder models/clear_metrics, empty."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, weights.FOLDER, raising=False)
    return tmp_path / "models" / weights.FOLDER


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's output folder."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


class Watch:
    """Keeps nothing."""

    def poll(self) -> None:
        pass

    def step(self, what: str, done: int, of: int) -> None:
        pass


def listed(weights: Any, here: Path, kind: str, **changed: Any) -> Any:
    """The networks' files with the one that was put into models/clear_metrics."""
    path = here / weights.FILES[kind].name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = replace(weights.FILES[kind], sha256=digest, size=path.stat().st_size, **changed)
    return weights.Files(Watch(), files={**weights.FILES, kind: file})


def alexnet() -> dict[str, Tensor]:
    """torchvision's, with random convolutions; what classifies is not used."""
    import torchvision

    with torch.device("meta"):
        shapes = torchvision.models.alexnet().state_dict()
    found = random_like({name: shape for name, shape in shapes.items() if name.startswith("features.")})
    zeros = {name: torch.zeros(shape.shape) for name, shape in shapes.items() if name not in found}
    return {name: tensor.float() for name, tensor in found.items()} | zeros


# ---- networks ------------------------------------------------------------------------------------------


def test_lpips_is_that_of_torchmetrics(
    nodes_api: Any, weights: Any, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    name = weights.FILES["lpips"].name
    cache = tmp_path / "hub" / "checkpoints"  # where torchvision looks before it would fetch
    cache.mkdir(parents=True)
    here.mkdir(parents=True)
    torch.save(alexnet(), cache / name)
    os.link(cache / name, here / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    a, b = pixels(put_images(tmp_path / "a")), pixels(put_images(tmp_path / "b", seed=1))
    measure = nodes_api.module("nodes.host.evaluation.torchvision_networks").lpips(listed(weights, here, "lpips"))
    found = measure.rows([*zip(a, b, strict=True), (a[0], a[0]), (a[0], b[0][:40]), (a[0][:30], b[0][:30])])
    planes = [torch.stack(images).movedim(-1, 1) / 255 for images in (a, b)]
    expected = learned_perceptual_image_patch_similarity(*planes, net_type="alex", reduction="none", normalize=True)
    assert found[:3, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected.min() > 1e-3
    assert found[3] == 0 and found[4:].isnan().all(), "sizes that differ or are too small have none"


def test_inception_is_that_of_torchmetrics(nodes_api: Any, weights: Any, here: Path, tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Untrained(FeatureExtractorInceptionV3):
        """Loads nothing."""

        def load_state_dict(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
            pass

    here.mkdir(parents=True)
    path = here / weights.FILES["inception"].name
    torch.save({}, path)
    torch.manual_seed(0)
    shapes = Untrained("inception-v3-compat", ["2048"], str(path)).state_dict()
    made = {name: tensor.to(shapes[name].dtype) for name, tensor in random_like(shapes).items()}
    made |= {name: torch.ones_like(shapes[name]) for name in shapes if name.endswith("running_var")}
    torch.save(made, path)
    images = [*pixels(put_images(tmp_path / "a", 1)), *pixels(put_images(tmp_path / "b", 1, side=320))]
    measure = nodes_api.module("nodes.host.evaluation.torchvision_networks").inception(
        listed(weights, here, "inception")
    )
    with torch.inference_mode():
        found = measure.rows(images)
        own = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path)).inception
        expected = torch.cat([own(image.movedim(-1, 0)[None]) for image in images])
    assert found.shape == (2, measure.width) and measure.features == 2048
    assert torch.allclose(found[:, :2048], expected, rtol=1e-4, atol=1e-6) and expected.std() > 1e-6
    assert torch.allclose(found[:, 2048:], expected @ made["fc.weight"].T, rtol=1e-3, atol=1e-6)


def test_without_torch_fidelity_there_is_a_reason(
    nodes_api: Any, weights: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.image.fid as library

    monkeypatch.setattr(library, "_TORCH_FIDELITY_AVAILABLE", False)
    here.mkdir(parents=True)
    (here / weights.FILES["inception"].name).write_bytes(b"x")
    measure = nodes_api.module("nodes.host.evaluation.torchvision_networks").inception(
        listed(weights, here, "inception")
    )
    reason = nodes_api.module("clear_core.evaluation.measures").NotAvailableError
    with pytest.raises(reason, match="torch-fidelity, .* is not installed. Run pip install torch-fidelity"):
        measure.rows([torch.zeros(64, 64, 3, dtype=torch.uint8)])


def cut(model: Any) -> Any:
    """Only the first layers: a forward of all takes a minute here."""
    layers = model.vision_model.encoder if hasattr(model, "vision_model") else model.encoder
    name = "layers" if hasattr(layers, "layers") else "layer"
    setattr(layers, name, getattr(layers, name)[:LAYERS])
    return model


def test_clip_is_that_of_transformers(
    nodes_api: Any, weights: Any, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.clip_vision
    import comfy.sd
    import comfy.sd1_clip
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": LAYERS}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": LAYERS}
    config = CLIPConfig(
        text_config={**text, "eos_token_id": 49407}, vision_config={**vision, "patch_size": 14}, projection_dim=768
    )
    with torch.device("meta"):
        shapes = {name: tensor for name, tensor in CLIPModel(config).state_dict().items() if tensor.ndim}
    made = random_like({name: shape for name, shape in shapes.items() if not name.endswith("position_ids")})
    here.mkdir(parents=True)
    deepest = "vision_model.encoder.layers.22.layer_norm1.weight"  # by which the host knows ViT-L
    save_file({**made, deepest: torch.ones(1024)}, here / weights.FILES["clip"].name)
    load_vision, load_text = comfy.clip_vision.load, comfy.sd.load_text_encoder_state_dicts

    def cut_vision(path: str) -> Any:
        loaded = load_vision(path)
        cut(loaded.model)
        return loaded

    def cut_text(state_dicts: Any) -> Any:
        loaded = load_text(state_dicts)
        layers = loaded.cond_stage_model.clip_l.transformer.text_model.encoder
        layers.layers = layers.layers[:LAYERS]
        return loaded

    monkeypatch.setattr(comfy.clip_vision, "load", cut_vision)
    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", cut_text)
    networks, files = nodes_api.module("nodes.host.evaluation.vision_networks"), listed(weights, here, "clip")
    images = pixels(put_images(tmp_path / "a", side=224))
    prompts = ["a red house (by a lake:1.4), pink sky", "two towers"]
    with torch.inference_mode():
        found_images = networks.images(files, "clip").rows(images)
        found_texts = networks.texts(files).rows(prompts)
        model = CLIPModel(config).eval()
        model.load_state_dict({name: tensor.float() for name, tensor in made.items()}, strict=False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (
            (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        ))  # fmt: skip
        values = (torch.stack(images).movedim(-1, 1) / 255 - mean) / std
        tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer"))
        tokens = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
        expected_images = _embedding(model.get_image_features(pixel_values=values))
        expected_texts = _embedding(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]))
    for found, expected in ((found_images, expected_images), (found_texts, expected_texts)):
        assert found.shape == expected.shape
        # The host keeps weights in half precision.
        assert (found - expected).norm() < 5e-3 * expected.norm()
        assert (expected[0] - expected[1]).norm() > 0.02 * expected.norm()


def _embedding(found: Any) -> Tensor:
    """What newer versions of transformers give in an object."""
    return found if isinstance(found, Tensor) else found.pooler_output


def test_dino_is_that_of_transformers(
    nodes_api: Any, weights: Any, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.clip_vision
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=1024, num_attention_heads=16, num_hidden_layers=LAYERS, image_size=518, patch_size=14
    )
    with torch.device("meta"):
        shapes = Dinov2Model(config).state_dict()
    made = random_like(shapes)
    made |= {name: torch.full_like(made[name], 0.3) for name in made if name.endswith("lambda1")}
    here.mkdir(parents=True)
    deepest = "encoder.layer.23.layer_scale2.lambda1"  # by which the host knows ViT-L
    published = {_published(name): tensor for name, tensor in made.items()}
    save_file({**published, deepest: torch.ones(1024)}, here / weights.FILES["dino"].name)
    load = comfy.clip_vision.load

    def cut_vision(path: str) -> Any:
        loaded = load(path)
        cut(loaded.model)
        return loaded

    monkeypatch.setattr(comfy.clip_vision, "load", cut_vision)
    images = pixels(put_images(tmp_path / "a", 2, side=518))
    with torch.inference_mode():
        networks = nodes_api.module("nodes.host.evaluation.vision_networks")
        found = networks.images(listed(weights, here, "dino"), "dino").rows(images)
        model = Dinov2Model(config).eval()
        model.load_state_dict({name: tensor.float() for name, tensor in made.items()})
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = model((torch.stack(images).movedim(-1, 1) / 255 - mean) / std).pooler_output
    assert (found - expected).norm() < 5e-3 * expected.norm()
    assert (expected[0] - expected[1]).norm() > 0.02 * expected.norm()


def _published(name: str) -> str:
    """The name in the published file, for one of transformers' version 5, which renames when it loads."""
    names = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    for new, old in names.items():
        name = name.replace(f".attention.{new}.", f".attention.{old}.")
    return name


# ---- files ---------------------------------------------------------------------------------------------


def test_the_list_of_files(weights: Any) -> None:
    assert set(weights.FILES) == {"inception", "lpips", "clip", "dino"}
    for file in weights.FILES.values():
        assert len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")
        assert file.address.startswith("https://")
        beginning = file.name.rpartition("-")[2].removesuffix(".pth")
        assert not file.name.endswith(".pth") or file.sha256.startswith(beginning)
    assert weights.FILES["dino"].address.startswith("https://huggingface.co/facebook/dinov2-large/resolve/")


def test_a_file_that_is_not_there(nodes_api: Any, weights: Any, here: Path) -> None:
    reason = nodes_api.module("clear_core.evaluation.measures").NotAvailableError
    with pytest.raises(reason) as raised:
        weights.Files(Watch()).path("lpips")
    path = here / "alexnet-owt-7be5be79.pth"
    assert str(raised.value) == (
        f"put alexnet-owt-7be5be79.pth at {path}; it is https://download.pytorch.org/models/alexnet-owt-7be5be79.pth. "
        "Or ask for the download (244 MB)"
    )


def test_a_file_with_another_sha256_is_refused(nodes_api: Any, weights: Any, here: Path) -> None:
    here.mkdir(parents=True)
    (here / "alexnet-owt-7be5be79.pth").write_bytes(b"another")
    reason = nodes_api.module("clear_core.evaluation.measures").NotAvailableError
    with pytest.raises(reason, match="has the SHA-256 [0-9a-f]{64}, not 7be5be791159.*: it is damaged or another file"):
        weights.Files(Watch(), download=True).path("lpips")
    assert (here / "alexnet-owt-7be5be79.pth").read_bytes() == b"another"


def test_a_download_is_made_when_asked_for_only(nodes_api: Any, weights: Any, here: Path) -> None:
    from devtools.hub import LoopbackHub

    data = b"weights" * 1000
    with LoopbackHub({"a.pth": data}) as hub:
        digest = hashlib.sha256(data).hexdigest()
        file = weights.NetworkFile("a.pth", "A network", len(data), digest, url=hub.url("a.pth"))
        reason = nodes_api.module("clear_core.evaluation.measures").NotAvailableError
        with pytest.raises(reason, match="put a.pth at"):
            weights.Files(Watch(), files={"lpips": file}).path("lpips")
        assert not hub.requests
        assert weights.Files(Watch(), True, {"lpips": file}).path("lpips") == here / "a.pth"
        (here / "a.pth").unlink()
        other = replace(file, sha256="0" * 64)
        with pytest.raises(reason, match="what arrived has the SHA-256"):
            weights.Files(Watch(), True, {"lpips": other}).path("lpips")
        assert not list(here.iterdir())


# ---- the node ------------------------------------------------------------------------------------------


@pytest.fixture
def machine(host: Any, pack: dict[str, Any], output: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue(table=("STRING", {"forceInput": True}), csv=("STRING", {"forceInput": True}))
    monkeypatch.setitem(host.NODE_CLASS_MAPPINGS, "Keep", made.keep)
    return made


def prompt(**inputs: Any) -> Prompt:
    """The node, whose outputs are kept."""
    asked = {"original": "", "folders": "", "prompts": "", "metrics": "", "download": False, "save_as": ""}
    return {
        "node": {"class_type": "CLEAREvaluate", "inputs": {**asked, **inputs}},
        "keep": {"class_type": "Keep", "inputs": {"table": ["node", 0], "csv": ["node", 1]}},
    }


def records(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["folder"], row["metric"]): row for row in csv.DictReader(io.StringIO(text))}


def test_the_node_in_the_hosts_executor(
    machine: Queue, weights: Any, here: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(output / "dense", 4, side=48)
    put_images(output / "clear", 4, seed=1, side=48)
    (output / "clear" / "2.png").write_bytes(b"no image")
    put_images(tmp_path / "elsewhere", 3, side=48)
    here.mkdir(parents=True)
    file = here / weights.FILES["lpips"].name
    torch.save({name: tensor for name, tensor in alexnet().items() if name.startswith("features.")}, file)
    monkeypatch.setattr(weights, "FILES", listed(weights, here, "lpips").files)
    folders = f'clear\n"{tmp_path / "elsewhere"}"\n'
    assert machine.queue(prompt(original="dense", folders=folders, save_as="my table")) == "execution_success"
    ((table, text),) = machine.kept
    found = records(text)
    assert float(found["clear", "LPIPS"]["value"]) > 0.001
    assert found["clear", "LPIPS"]["count"] == "3" and found["elsewhere", "PSNR"]["value"] == "inf"
    assert found["clear", "DINO"]["not_measured"].startswith(f"put dinov2-large.safetensors at {here}")
    assert found["clear", "CLIP-T"]["not_measured"].startswith("put clip-vit-large-patch14.safetensors at")
    assert "- clear: left out: clear/2.png cannot be read" in table
    assert "- elsewhere: 1 without a partner in elsewhere: 3" in table
    saved = output / "clear_evaluation"
    assert (saved / "my table.md").read_text(encoding="utf-8").rstrip() == table[: table.index("\n- saved as")]
    assert (saved / "my table.csv").read_text(encoding="utf-8") == text
    assert json.loads((saved / "my table.json").read_text(encoding="utf-8"))["folders"]["clear"]["images"] == 3
    assert list(machine.shown[0]["text"]) == [table]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"original": "nowhere"}, "original is 'nowhere', which is no folder on the machine of ComfyUI"),
        ({"original": " "}, "original is empty. Write the path of a folder with images"),
        ({"folders": "\n \n"}, "folders is empty. Write the path of a folder with images"),
        ({"folders": "x"}, "folders is 'x', which is no folder on the machine of ComfyUI"),
        ({"metrics": "FID, KID"}, "metrics has 'KID'; allowed are FID, LPIPS"),
        ({"prompts": "nothing.json"}, "prompts is 'nothing.json', which is no file on the machine of ComfyUI"),
        ({"save_as": "../x"}, "save_as: name is '../x'; allowed are letters"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_queued(
    machine: Queue, output: Path, inputs: dict[str, str], said: str
) -> None:
    put_images(output / "dense", 1)
    assert said in machine.queue(prompt(**{"original": "dense", "folders": "dense", **inputs}))
    assert not machine.kept


# ---- the command ---------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (HOST, ROOT, ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-m", "devtools.evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CLEAR_HOST": str(HOST), "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"},
    )


def test_the_command(tmp_path: Path) -> None:
    original, clear = put_images(tmp_path / "dense"), put_images(tmp_path / "clear", seed=1)
    (tmp_path / "networks").mkdir()
    shared: Sequence[str | Path] = ("--kept", tmp_path / "kept", "--networks", tmp_path / "networks")
    ran = command(clear, original, "--metrics", "ssim,fid", "--format", "csv", "--save", tmp_path / "table", *shared)
    assert ran.returncode == 0, ran.stderr
    found = records(ran.stdout)
    assert 0 < float(found["clear", "SSIM"]["value"]) < 1
    assert found["clear", "FID"]["not_measured"].startswith(
        f"put pt_inception-2015-12-05-6726825d.pth at {tmp_path / 'networks'}"
    )
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == ran.stdout
    wrong = command(clear, tmp_path / "none")
    assert wrong.returncode == 2 and "none is no folder; name folders with images" in wrong.stderr
