"""The triton backend without a GPU: exact in the interpreter, and compiled for chips that are not here.

Each in a process of its own: whether Triton interprets is settled once, when something imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Shared memory a program may take, in bytes, from NVIDIA's table of technical specifications and AMD's of RDNA3.
SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
    "gfx1100": 64 * 1024,
}


def python(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    """Run Python with the repository on its path, with Triton's interpreter or without."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_kernel_is_the_reference_in_the_interpreter() -> None:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    run = python("-m", "pytest", *options, str(HERE / "interpreted.py"), interpret=True)
    # pytest's own code for "some ran and none failed"; nothing in that file skips.
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_what_is_kept_for_later_launches_is_what_triton_would_do() -> None:
    run = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "launches.py"), interpret=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_every_configuration_compiles_for_every_chip_within_its_limits() -> None:
    run = python(str(HERE / "compile_kernels.py"), interpret=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert {result["chip"] for result in results} == set(SHARED_LIMIT)
    assert {result["chip"] for result in results if not result.get("descriptors")} == {90, 120, "gfx1100"}
    for result in results:
        assert result["shared"] <= SHARED_LIMIT[result["chip"]], result
        if result["dtype"] == "fp32":
            continue  # there for exactness: speed is not its business
        assert result["spilled"] == 0, result
        if result["chip"] == "gfx1100":
            assert result["wmma"] > 0, result
            continue
        assert result["narrow"] == 0, result
        assert not result["serialised"], result
        if result["chip"] == 90:
            assert result["wgmma"] > 0, result
            assert (result["bulk_copies"] > 0) == result["descriptors"], result


def test_the_kernel_for_hopper_chips_compiles_as_it_must() -> None:
    run = python(str(HERE / "compile_hopper.py"), interpret=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 3
    for result in results:
        assert result["shared"] <= SHARED_LIMIT[90], result
        # Of two consumers: whole blocks, rests of lists, partial boxes.
        assert result["loops"] == 6 and result["wgmma"] > 0 and not result["serialised"], result
        # A few numbers that are needed once for each tile are kept in memory; what a block needs is in registers.
        assert result["spilled"] <= 32 and result["spilled_in_loops"] == 0, result
        assert result["arrivals_without_barrier"] == 0, result
