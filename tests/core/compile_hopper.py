"""Compile the kernel for Hopper chips, which are not here; JSON lines on stdout.

Run as a script in a process of its own: the interpreter's tests change what `triton.jit` makes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from clear_core.backends.triton.config import Chip, KernelConfig, specialised_config, triton_version
from clear_core.backends.triton.hopper_kernel import hopper_kernel


def source(config: KernelConfig, dtype: str, head_dim: int) -> GluonASTSource:
    """The kernel as `hopper_launch` calls it: pointers divisible by 16, sizes unknown."""
    constants = {"HEADS": 24, "D": head_dim, "KEY_H": config.box[0], "KEY_W": config.box[1]}
    constants |= {"STAGES": config.stages, "QUERY_STAGES": 2, "LSE": True}
    blocks = {"query_desc": (8, 8), "out_desc": (8, 8), "key_desc": config.box, "value_desc": config.box}
    blocks |= dict.fromkeys(("text_key", "text_value", "extra_key", "extra_value"), (config.block,))
    pointers = {"ranges": "*i32", "boxes": "*i32", "geometry": "*i32", "lse": "*fp32"}
    signature: dict[str, str] = {}
    for name in hopper_kernel.arg_names:
        if name in blocks:
            shape = [1, 1, *blocks[name], head_dim]
            layout = NVMMASharedLayout(min(128, 2 * head_dim), 16, len(shape))
            signature[name] = f"tensordesc<{dtype}{shape},{layout!r}>"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = pointers.get(name, "fp32" if name == "scale" else "i32")
    position = hopper_kernel.arg_names.index
    aligned: Any = {(position(name),): [["tt.divisibility", 16]] for name in pointers}
    return GluonASTSource(
        hopper_kernel, signature, {(position(name),): value for name, value in constants.items()}, aligned
    )


def main() -> None:
    config = specialised_config(Chip((9, 0), triton=triton_version()), 2)
    assert config is not None
    report(config, "bf16", 128)
    report(config, "fp16", 64)
    report(replace(config, box=(8, 8), block=64, stages=3), "bf16", 128)


def report(config: KernelConfig, dtype: str, head_dim: int) -> None:
    options = {"num_warps": config.warps, "enable_fp_fusion": True}
    kernel = triton.compile(source(config, dtype, head_dim), target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        text.write_text(kernel.asm["ptx"])
        command = [next(tools.glob("ptxas*")), "-v", "-arch", "sm_90a", text, "-o", binary]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        code = subprocess.run([tools / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
    spilled = re.search(r"(\d+) bytes spill stores", said)
    loops = list(product_loops(code))
    half = loops[: len(loops) // 2]  # of one consumer: whole blocks, rests of lists, partial boxes
    found = {
        "config": f"{config.box[0]} x {config.box[1]}, {config.stages} stages",
        "dtype": dtype,
        "head_dim": head_dim,
        "shared": kernel.metadata.shared,
        "spilled": int(spilled[1]) if spilled else None,
        "spilled_in_loops": sum(len(re.findall(r"\b(?:LDL|STL)\b", loop)) for loop in loops),
        "serialised": "serialized" in said,
        "wgmma": kernel.asm["ptx"].count("wgmma.mma_async"),
        "loops": len(loops),
        "whole": half[0].count("\n") * 64 // (config.box[0] * config.box[1]),
        "masked": half[-1].count("\n") * 64 // (config.box[0] * config.box[1]),
        "arrivals_without_barrier": early_arrivals(kernel.asm["ptx"]),
    }
    print(json.dumps(found), flush=True)


def product_loops(code: str) -> Iterator[str]:
    """The innermost loops with matrix products in nvdisasm's text, in its order, one instruction a line."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    found: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in labels:
                found.append((labels[branch[1]], len(lines)))
    products = [index for index, line in enumerate(lines) if "HGMMA" in line]
    inner = {min((b - a, a, b) for a, b in found if a <= index < b) for index in products if _within(index, found)}
    counts = {(start, stop): sum(start <= index < stop for index in products) for _, start, stop in inner}
    # Loops with both products; around them is the loop over tiles, with one product for the first and the last block.
    most = max(count for (start, stop), count in counts.items() if not _holds_another(start, stop, counts))
    for (start, stop), count in sorted(counts.items()):
        if count == most:
            yield "\n".join((*lines[start:stop], ""))


def _holds_another(start: int, stop: int, loops: Iterable[tuple[int, int]]) -> bool:
    return any(start <= first and last < stop for first, last in loops)


def _within(index: int, loops: list[tuple[int, int]]) -> bool:
    return any(start <= index < stop for start, stop in loops)


def early_arrivals(code: str) -> int:
    """How many arrivals of a consumer are not behind a barrier of all its warps.

    One thread arrives for all: without it, it could do so while other warps still read, or still wait.
    """
    last, early = "", 0
    for line in code.splitlines():
        if "wgmma.wait_group" in line or "try_wait" in line or "bulk.wait_group" in line:
            last = "wait"
        elif "bar.sync" in line:
            last = "barrier"
        elif "mbarrier.arrive.shared" in line:
            early += last != "barrier"
    return early


if __name__ == "__main__":
    sys.exit(main())
