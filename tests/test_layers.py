"""CLEAR_HOST: a tree is checked, and its packages stay out of the shared environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from devtools.layers import check_tree, layer_python, requirements
from devtools.steps import DevError

ROOT = Path(__file__).parents[1]


def tree(folder: Path, needs: str) -> Path:
    """The parts by which a ComfyUI checkout is known, with these requirements."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.99.1"\n', encoding="utf-8")
    (folder / "requirements.txt").write_text(needs, encoding="utf-8")
    return folder


def wheel(folder: Path, name: str, version: str) -> str:
    """A package of one module, as a requirement that pip installs without an index."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return f"{name} @ {path.as_uri()}"


def output(python: Path, script: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run = subprocess.run([str(python), "-c", script], capture_output=True, text=True, env=environment, check=True)
    return run.stdout.split()


def test_a_layer_has_the_hosts_packages_and_leaves_the_shared_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devtools.layers.LAYERS", tmp_path / "layers")
    shared = Path(sys.executable)
    needs = ["torch", "torchvision", wheel(tmp_path, "einops", "99.1"), "comfyui-workflow-templates==0.99"]
    host = tree(tmp_path / "host", "\n".join(needs))
    asked = (
        "import importlib.metadata as m, importlib.util as u; print(m.version('einops'), u.find_spec('torch').origin)"
    )
    before = output(shared, asked)

    python = layer_python(host, shared, fingerprint="one", extras=[wheel(tmp_path, "clearextra", "1.0")])
    assert output(python, asked) == ["99.1", before[1]]
    assert output(python, "import clearextra, einops; print(clearextra.version, einops.version)") == ["1.0", "99.1"]
    assert output(shared, asked) == before and before[0] != "99.1"


def test_a_layer_is_made_once_and_again_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devtools.layers.LAYERS", tmp_path / "layers")
    host = tree(tmp_path / "host", "torch\n")
    python = layer_python(host, Path(sys.executable), fingerprint="one", extras=[])
    layer = python.parents[1]
    (layer / "left").touch()
    assert layer_python(host, Path(sys.executable), fingerprint="one", extras=[]) == python
    assert (layer / "left").exists()

    (layer / "finished.txt").unlink()
    assert layer_python(host, Path(sys.executable), fingerprint="one", extras=[]) == python
    assert not (layer / "left").exists() and (layer / "finished.txt").exists()
    # The shared environment was made anew: its packages may be others.
    assert layer_python(host, Path(sys.executable), fingerprint="two", extras=[]) != python


def test_the_shared_torch_is_not_asked_for(tmp_path: Path) -> None:
    lines = "torch\ntorchvision>=0.2\nTorchaudio\ntorchsde\nav>=16.0.0  # torch\n#torch\ncomfy-kitchen==0.2.31\n"
    host = tree(tmp_path / "host", lines)
    assert requirements(host, ["comfy-kitchen"]) == ["torchsde", "av>=16.0.0  # torch", "#torch"]


@pytest.mark.parametrize("missing", ["main.py", "comfyui_version.py", "requirements.txt"])
def test_a_folder_that_is_no_checkout_is_refused(missing: str, tmp_path: Path) -> None:
    host = tree(tmp_path / "host", "torch\n")
    check_tree(host)
    (host / missing).unlink()
    with pytest.raises(DevError, match=f"not a ComfyUI checkout: {missing} is missing. Set it to the folder"):
        check_tree(host)


def test_dev_says_so_before_it_makes_anything(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "test", "tests/host"],
        capture_output=True,
        text=True,
        env={**os.environ, "CLEAR_HOST": str(tmp_path)},
    )
    assert run.returncode == 1
    assert f"CLEAR_HOST names {tmp_path.resolve()}, which is not a ComfyUI checkout: main.py and" in run.stderr
    assert run.stdout == ""
