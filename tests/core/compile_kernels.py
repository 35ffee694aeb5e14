"""Compile every configuration of the triton backend for chips that are not here; JSON lines on stdout.

Run as a script in a process of its own: the interpreter's tests change what `triton.jit` makes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clear_core.backends.triton.config import Chip, KernelConfig, config_for, triton_version
from clear_core.backends.triton.kernel import window_kernel

CHIPS = {80: "sm_80", 86: "sm_86", 89: "sm_89", 90: "sm_90a", 100: "sm_100a", 120: "sm_120a"}
TYPES = {"fp16": 2, "bf16": 2, "fp32": 4}


def source(config: KernelConfig, dtype: str, head_dim: int) -> ASTSource:
    """The kernel as `launch` calls it: pointers and strides divisible by 16, sizes unknown."""
    names = window_kernel.arg_names
    boxes = {"query_source": config.tile, "key_source": config.box, "value_source": config.box}
    boxes |= dict.fromkeys(("text_key", "text_value", "extra_key", "extra_value"), (config.block,))
    constants = {
        "HEADS": 24,
        "D": head_dim,
        "TILE_H": config.tile[0],
        "TILE_W": config.tile[1],
        "KEY_H": config.box[0],
        "KEY_W": config.box[1],
        "BLOCK": config.block,
        "TMA": config.descriptors,
        "IEEE": dtype == "fp32",
        "LSE": True,
    }
    signature: dict[str, str] = {}
    aligned = []
    for name in names:
        if name in boxes:
            shape = [1, 1, *boxes[name], head_dim]
            signature[name] = f"tensordesc<{dtype}{shape}>" if config.descriptors else f"*{dtype}"
        elif name in ("out", "lse", "ranges", "boxes"):
            signature[name] = f"*{dtype}" if name == "out" else "*fp32" if name == "lse" else "*i32"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        if signature[name].startswith("*") or re.fullmatch(r"(q|k|v|tk|tv|ek|ev|o)_[bhn]", name):
            aligned.append(name)
    return ASTSource(
        window_kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def main() -> None:
    for chip in CHIPS:
        for dtype in TYPES if chip in (80, 90) else ("bf16",):
            report_nvidia(chip, dtype, descriptors=True)
    for chip in (90, 120):  # with a Triton that has no descriptors
        report_nvidia(chip, "bf16", descriptors=False)
    report_amd("gfx1100")


def report_nvidia(chip: int, dtype: str, *, descriptors: bool) -> None:
    config = config_for(Chip(divmod(chip, 10), descriptors=descriptors, triton=triton_version()), TYPES[dtype])
    kernel = compiled(config, dtype, GPUTarget("cuda", chip, 32))
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = next(tools.glob("ptxas-blackwell*"), tools / "ptxas")  # knows the newest chips
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        text.write_text(kernel.asm["ptx"])
        command = [ptxas, "-v", "-arch", CHIPS[chip], text, "-o", binary]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        code = subprocess.run([tools / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
    found, registers = re.search(r"(\d+) bytes spill stores", said), re.search(r"Used (\d+) registers", said)
    whole, masked = (instructions * 64 // (config.box[0] * config.box[1]) for instructions in loops(code)[2:4])
    report(
        chip=chip,
        dtype=dtype,
        descriptors=descriptors,
        box=config.box,
        registers=int(registers[1]) if registers else None,
        whole=whole,
        masked=masked,
        shared=kernel.metadata.shared,
        spilled=int(found[1]) if found else None,
        serialised="serialized" in said,
        wgmma=kernel.asm["ptx"].count("wgmma.mma_async"),
        bulk_copies=kernel.asm["ptx"].count("cp.async.bulk.tensor"),
        narrow=narrow_products(kernel.asm["ttir"]),
    )


def report_amd(chip: str) -> None:
    kernel = compiled(config_for(Chip(amd=chip), 2), "bf16", GPUTarget("hip", chip, 32))
    code = kernel.asm["amdgcn"]
    found = re.search(r"\.vgpr_spill_count:\s+(\d+)", code)
    registers = re.search(r"\.vgpr_count:\s+(\d+)", code)
    report(
        chip=chip,
        dtype="bf16",
        registers=int(registers[1]) if registers else None,
        shared=kernel.metadata.shared,
        spilled=int(found[1]) if found else None,
        wmma=code.count("v_wmma"),
    )


def loops(code: str) -> list[int]:
    """Instructions of each innermost loop in nvdisasm's text: over text, extra tokens, full tiles, partial tiles."""
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    count = 0
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            count += 1
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in labels:
                found.append((labels[branch[1]], count))
    inner = [loop for loop in found if not any(loop[0] <= other[0] and other[1] < loop[1] for other in found)]
    return [stop - start for start, stop in sorted(inner) if stop - start > 60]  # not the waits for a barrier


def narrow_products(code: str) -> int:
    """How often a token's number in a list is multiplied by its stride in 32 bits, which overflow at 2^31 elements."""
    return len(re.findall(r"arith\.muli [^\n]*%(?:tk|tv|ek|ev)_n\b[^\n]* : i32\b", code))


def compiled(config: KernelConfig, dtype: str, target: GPUTarget) -> Any:
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source(config, dtype, 128), target=target, options=options)


def report(**found: object) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
