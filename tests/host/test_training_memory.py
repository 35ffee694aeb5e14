"""Memory of a training step, followed on the host's FLUX at full width without contents, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from devtools.inprocess import ROOT

CODE = """
import json
from benchmarks.training import CASES, measure
print(json.dumps([measure(case, depth).as_dict() for case in CASES for depth in ((1, 2), (1, 4))]))
"""


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, float]]]:
    """By case: with two and with four single blocks."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {pair[0]["case"]: list(pair) for pair in zip(found[::2], found[1::2], strict=True)}


def test_the_full_depth_fits_its_card(rows: dict[str, list[dict[str, float]]]) -> None:
    """55 more blocks, each with what one adds to the peak. A double block has twice a single one's weights."""
    for case, (two, four) in rows.items():
        each = (four["peak_gib"] - two["peak_gib"]) / 2
        full = two["peak_gib"] + each * (36 + 18 * 2.2)
        assert full < two["bound_gib"], case
        assert full > 11, case  # no less than the weights


def test_offloaded_weights_add_nothing_for_a_block_but_its_base(rows: dict[str, list[dict[str, float]]]) -> None:
    two, four = next(pair for case, pair in rows.items() if "offloaded" in case)
    assert four["peak_gib"] - two["peak_gib"] == pytest.approx(four["base_gib"] - two["base_gib"], abs=0.02)
    assert four["main_gib"] > two["main_gib"]
