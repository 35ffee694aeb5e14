"""`python dev.py card`: parts that end badly, results that are kept, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.card.__main__ import _hopper_setting
from benchmarks.card.page import page
from benchmarks.card.parts import FAULTS, PARTS, parts
from benchmarks.card.results import OtherResults, Results
from benchmarks.card.supervise import DONE, Outcome, supervise
from devtools import card_bundle
from devtools.environment import HOST

ROOT = Path(__file__).parents[2]
SOURCE = "abc1234"
RUN: dict[str, Any] = {"device": "A card", "torch": "2.13", "source": SOURCE, "rehearsal": False}

CHILD = "import os, time; from benchmarks.card.supervise import append; append({'found': 1});"


def child(body: str, folder: Path, limit: float = 60.0) -> Outcome:
    return supervise([sys.executable, "-c", CHILD + body], folder, limit)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", DONE),
        ("raise MemoryError('no room')", "failed with exit code 1"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    ],
    ids=["done", "raises", "crashes"],
)
def test_what_was_found_before_a_part_ended_is_kept(body: str, status: str, tmp_path: Path) -> None:
    outcome = child(body, tmp_path)
    assert (outcome.status, outcome.rows) == (status, [{"found": 1}])
    assert ("MemoryError: no room" in "\n".join(outcome.log)) == (body.startswith("raise"))


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    late = f"import time, pathlib; time.sleep(8); pathlib.Path({str(mark)!r}).touch()"
    body = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}]); time.sleep(3600)"
    outcome = child(body, tmp_path, limit=4)
    assert outcome.status == "stopped at its limit of 4 s"
    assert outcome.rows == [{"found": 1}]
    # Ended with the part: waiting for it ends at once, and it never gets to its mark.
    assert child("time.sleep(8)", tmp_path).status == DONE
    assert not mark.exists()


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    outcome = child("open(os.environ['CLEAR_CARD_ROWS'], 'a').write('{\"found')", tmp_path)
    assert outcome.rows == [{"found": 1}]


def test_results_go_on_where_they_stopped(tmp_path: Path) -> None:
    results = Results.open(tmp_path, RUN)
    results.save("speed", Outcome(DONE, 1.0, [{"ms": 2.0}], []))
    results.save("tiles", Outcome("stopped at its limit of 60 s", 60.0, [{"ms": 3.0}], ["a line"]))
    again = Results.open(tmp_path, RUN)
    assert (again.is_done("speed"), again.is_done("tiles"), again.is_done("steps")) == (True, False, False)
    assert again.parts == results.parts
    with pytest.raises(OtherResults, match=r"device 'A card' there, 'Another' now. Name another folder with --out"):
        Results.open(tmp_path, {**RUN, "device": "Another"})
    saved = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert saved["run"] == RUN
    fixed = Results.open(tmp_path, {**RUN, "source": "def5678"})
    assert not fixed.is_done("speed"), "done again after a fix"
    assert "s, from source abc1234." in page(fixed, PARTS)
    assert "- From source abc1234, not def5678: speed, tiles." in page(fixed, PARTS).split("## Settings")[0]
    (tmp_path / "card.json").write_text(json.dumps({**saved, "schema": 0}), "utf-8")
    with pytest.raises(OtherResults, match=r"is of another version of this command. Name another folder with --out"):
        Results.open(tmp_path, RUN)


@pytest.mark.parametrize(
    ("outcome", "setting"),
    [
        (None, {}),
        (Outcome(DONE, 1.0, [{"right": True}, {"right": True}], []), {"CLEAR_HOPPER_KERNEL": "1"}),
        (Outcome(DONE, 1.0, [{"right": True}, {"right": False}], []), {"CLEAR_HOPPER_KERNEL": "0"}),
        (Outcome("stopped at its limit of 100 s", 100.0, [{"right": True}], []), {"CLEAR_HOPPER_KERNEL": "0"}),
    ],
)
def test_later_parts_run_the_kernel_that_the_first_one_found_right(
    outcome: Outcome | None, setting: dict[str, str]
) -> None:
    assert _hopper_setting(outcome) == setting


def test_the_page_says_what_is_wrong_what_is_fast_and_what_to_change(tmp_path: Path) -> None:
    results = Results(tmp_path, RUN)
    checks = [
        {"case": "whole", "backend": "triton", "error": 3e-3, "allowed": 4e-3, "right": True},
        {"case": "band", "backend": "triton", "error": 5e-1, "allowed": 4e-3, "right": False},
        {"case": "whole", "backend": "masked", "refused": "its mask would take 64 MB"},
    ]
    speed = {"pixels": 8192, "radius": 8, "down": 1, "of the matrix rate": 0.6}
    rows = [{**speed, "backend": "sdpa", "ms": 9.0, "against dense": 30.0}]
    rows += [{**speed, "backend": "triton", "ms": 3.0, "against dense": 90.0}]
    tuned = {"radius": 8, "config": {"tile": [8, 16], "warps": 4}, "current": False, "ms": 2.5}
    results.parts["correctness"] = Outcome(DONE, 1.0, checks, [], SOURCE)
    results.parts["tuning"] = Outcome(DONE, 1.0, [tuned, {**tuned, "current": True, "ms": 3.0}], [], SOURCE)
    results.parts["speed"] = Outcome("ended by SIGSEGV", 1.0, rows, ["Segmentation fault"], SOURCE)
    step = {"pixels": 8192, "blocks": 57, "weights": "fp8", "radius": 16, "bands": 0, "s": 12.3}
    steps = [step, {**step, "bands": 64}, {**step, "radius": 0, "blocks": 6}, {"weights": "bf16", "left out": "small"}]
    results.parts["steps"] = Outcome(DONE, 1.0, steps, [], SOURCE)
    two = {"what": "a layer", "cards": 2, "pixels": 8192, "times as fast": 1.9, "right": True}
    results.parts["devices"] = Outcome(DONE, 1.0, [{"what": "copy", "GB/s": 25.0}, two], [], SOURCE)
    text = page(results, PARTS)
    assert "Right: 2 of 3 checks" in text
    assert "- masked did not run in 1 of the checks: its mask would take 64 MB." in text
    assert text.count("- A step of") == text.count("- A step of 57 blocks at 8192 px, radius 16, fp8: 12.3 s.") == 1
    assert "Us to launch: what a call keeps the host busy." in text
    assert "**Wrong**: case band, backend triton, error 0.5" in text
    assert "8192 px, radius 8: attention 90.0 times as fast as the best dense kernel (triton, 60 %" in text
    assert "radius 8: tile 8 x 16, warps 4: 2.50 ms against 3.00 ms of the current one" in text
    assert "- 2 cards: a layer at 8192 px 1.90 times as fast as one." in text
    assert "From source" not in text
    assert "Part speed: ended by SIGSEGV" in text
    assert "Segmentation fault" in text
    assert text.count("Not run.") == len(PARTS) - 5
    assert "rehearsal" not in text.lower()
    nothing = page(Results(tmp_path, RUN), PARTS)
    assert "Right: not measured" in nothing
    assert "Fast: not measured" in nothing


def test_a_rehearsal_has_every_part_and_the_faults_between_them() -> None:
    assert {part.name for part in parts(rehearsal=True)} == {part.name for part in (*PARTS, *FAULTS)}
    assert parts(rehearsal=False) == PARTS
    for part in (*PARTS, *FAULTS):
        assert (ROOT / "benchmarks" / "card" / f"{part.name}.py").is_file()


def card(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.card", "--rehearse", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_rehearsal_of_bands_and_tiles(tmp_path: Path) -> None:
    """The command itself; all parts take minutes: `python dev.py card --rehearse`."""
    ended = card(tmp_path, "--only", "banding", "devices")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "card.json").read_text("utf-8"))["parts"]
    assert {name: part["status"] for name, part in found.items()} == {"banding": DONE, "devices": DONE}
    banding = found["banding"]["rows"]
    assert [row["bands"] for row in banding] == [3, 6]
    for row in banding:
        assert row["difference"] < 1e-6
        assert 0 < row["hit rate, first step"]["sdpa"] < 1
    layer, step = found["devices"]["rows"]
    assert (layer["what"], step["what"]) == ("a layer", "a step of 2 blocks")
    for row in (layer, step):
        assert (row["cards"], row["difference"], row["right"]) == (2, 0, True)
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "nothing here says anything about a card" in text
    again = card(tmp_path, "--only", "devices")
    assert "devices" not in again.stdout, "what is done is not done again"
    late = card(tmp_path, "--only", "speed", "--minutes", "0.01")
    assert "not started: the 0.01 minutes are over" in late.stdout


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with ComfyUI and this Python's packages; wheels for other Pythons come from a network."""
    monkeypatch.setattr(card_bundle, "BINARY_PACKAGES", ())
    monkeypatch.setattr(card_bundle, "PYTHONS", ())
    file = tmp_path / "bundle.zip"
    assert card_bundle.make(file, HOST) < card_bundle.LARGEST
    with zipfile.ZipFile(file, "a") as made:
        made.writestr("packages/torchaudio.py", "raise ModuleNotFoundError('a bare machine has no torchaudio')")
    return file


def test_a_step_runs_on_what_a_bundle_brings(bundle: Path, tmp_path: Path) -> None:
    """`--here`: this Python, and ComfyUI from the bundle alone."""
    command = [sys.executable, "dev.py", "card", "--here", str(bundle), "--rehearse", "--only", "steps"]
    settings = {name: value for name, value in os.environ.items() if name not in ("CLEAR_HOST", "PYTHONPATH")}
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))["parts"]["steps"]
    assert found["status"] == DONE, found["log"]
    assert {(row["weights"], row["bands"]) for row in found["rows"]} == {
        ("float32", 0),
        ("float32", 2),
        ("float32", 3),
        ("float32", 6),
        ("fp8", 0),
        ("fp8", 2),
        ("fp8", 3),
        ("fp8", 6),
    }


def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(card_bundle.BundleError, match=r"There is no bundle .*none.zip. Make one elsewhere"):
        card_bundle.unpack(tmp_path / "none.zip", tmp_path)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK, but not for long")
    with pytest.raises(card_bundle.BundleError, match="is not a bundle: File is not a zip file. Copy it again"):
        card_bundle.unpack(broken, tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "something else")
    with pytest.raises(card_bundle.BundleError, match="there is no ComfyUI in it"):
        card_bundle.unpack(tmp_path / "other.zip", tmp_path)


def test_what_is_not_installed_can_be_imported_and_not_used() -> None:
    """In a process of its own: the finder stays."""
    body = """
from devtools.absent import stand_in_for_absent
assert stand_in_for_absent(("torch", "not_installed")) == ("not_installed",)
import not_installed.part, torch
from not_installed.part.deeper import Thing
class Mine(Thing.Inner): pass
assert torch.ones(1).item() == 1.0 and not_installed.part.CONSTANT[0].inner
try:
    Thing()
except ModuleNotFoundError as problem:
    assert str(problem) == "not_installed.part.deeper.Thing is used, and not_installed is not installed", problem
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", body], cwd=ROOT, check=True)


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.card", "--out", str(tmp_path)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "finds no GPU on this machine" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "card.json").exists()
    misplaced = card(tmp_path, "--here", "bundle.zip")
    assert "--here comes first: python dev.py card --here BUNDLE" in misplaced.stderr
