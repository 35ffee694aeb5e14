"""What is there is kept: only what is missing, broken or changed is made."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from host.training_set.made import GENERATE, captioned, node


def test_a_second_run_encodes_nothing(run: Any, folder: Path, flux: Any, calls: Counter[str]) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    first, _ = run(folder=str(folder))
    assert calls == {"text": 2, "image": 2}
    again, report = run(folder=str(folder))
    assert calls == {"text": 2, "image": 2}
    assert again == first and "0 made, 2 there before" in report

    first, _ = run(GENERATE, prompts="a\nb", model=flux)
    again, report = run(GENERATE, prompts="a\nb", model=flux)
    assert calls == {"text": 4, "image": 2, "sampled": 2}
    assert again == first
    assert report.endswith("2 other samples in that folder, of other settings, are not in this set")


def test_only_what_changed_is_made_again(run: Any, folder: Path, calls: Counter[str]) -> None:
    for name in ("a", "b", "c"):
        captioned(folder / f"{name}.png", name)
    first, _ = run(folder=str(folder))
    (folder / "a.txt").write_text("another prompt", encoding="utf-8")
    os.utime(folder / "b.png", ns=(0, 0))  # as if it were another image
    captioned(folder / "aa.png", "new")
    calls.clear()
    again, report = run(folder=str(folder))
    assert calls == {"text": 3, "image": 3} and "3 made, 1 there before" in report
    assert [again.read(n).prompt for n in range(4)] == ["another prompt", "new", "b", "c"]
    assert again.files[3] == first.files[2]


@pytest.mark.parametrize("changed", [{"width": 64}, {"height": 80}, {"steps": 3}, {"seed": 8}, {"prompts": "a lake"}])
def test_other_settings_are_other_samples(run: Any, flux: Any, calls: Counter[str], changed: dict[str, Any]) -> None:
    asked = {"prompts": "a hill", "model": flux}
    first, _ = run(GENERATE, **asked)
    other, _ = run(GENERATE, **{**asked, **changed})
    assert calls["sampled"] == 2
    assert set(first.files).isdisjoint(other.files)


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_broken_file_is_made_again(run: Any, folder: Path, calls: Counter[str], content: bytes | None) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    samples, _ = run(folder=str(folder))
    whole = samples.read(0)
    samples.files[0].write_bytes(samples.files[0].read_bytes()[:-1] if content is None else content)
    again, report = run(folder=str(folder))
    assert calls == {"text": 3, "image": 3} and "1 made, 1 there before" in report
    assert again == samples and torch.equal(again.read(0).mean, whole.mean)


def test_a_full_disk_is_said_with_the_path(
    run: Any, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        captioned(folder / f"{name}.png", name)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.startswith("00000_"):
            return real(path, data)
        real(path, data[:99])
        raise OSError(errno.ENOSPC, "No space left on device")

    made = output / "clear_training_sets" / "a set"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            RuntimeError, match=r"a set.00001_\w+\.safetensors is not saved: the disk is full\. 1 samples"
        ):
            run(folder=str(folder))
    assert [path.name[:6] for path in made.iterdir()] == ["00000_"]
    assert "1 made, 1 there before" in run(folder=str(folder))[1]


def test_an_output_folder_that_cannot_be_made(run: Any, folder: Path, output: Path) -> None:
    captioned(folder / "a.png", "a")
    output.mkdir()
    (output / "clear_training_sets").write_text("a file", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"safetensors is not saved: .+\. 0 samples are there\. Make room, or start"):
        run(folder=str(folder))


class Graph:
    """As the host's DynamicPrompt."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self._nodes = nodes

    def get_node(self, name: str) -> Any:
        return self._nodes[name]


def graph(lora: str = "a.safetensors", first: str = "4", second: str = "7") -> Graph:
    return Graph(
        {
            first: node("UNETLoader", unet_name="flux1-dev.safetensors"),
            second: node("LoraLoader", model=(first, 0), clip=(first, 0), lora_name=lora),
            "9": node("CLEARTrainingSet", model=(second, 0), clip=("12", 0), name="x"),
            "12": node("DualCLIPLoader", clip_name1="clip_l.safetensors"),
        }
    )


def test_a_model_is_known_by_the_nodes_before_it(nodes_api: Any) -> None:
    upstream = nodes_api.module("nodes.host.upstream").upstream
    known = upstream(graph(), "9", "model")
    assert known == upstream(graph(first="70", second="3"), "9", "model")
    assert known != upstream(graph(lora="b.safetensors"), "9", "model")
    assert upstream(graph(), "9", "clip") == upstream(graph(lora="b.safetensors"), "9", "clip") != known
    assert upstream(graph(), "9", "vae") == upstream(None, "9", "model") == ""
