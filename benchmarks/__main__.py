"""`python dev.py bench [--json PATH]`: one table, and the same as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch

from .attention import Row, cases, measure, table
from .timing import device_name


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table as JSON")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each, the median counts")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PIXELS", help="only these image sizes, such as 2048")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; 1 or more is needed")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [case for case in cases(device) if not options.sizes or case.side * 16 in options.sizes]
    if not wanted:
        parser.error(f"--sizes has none of {sorted({case.side * 16 for case in cases(device)})}")
    rows: list[Row] = []
    for index, case in enumerate(wanted, 1):
        if sys.stderr.isatty():
            print(f"\r{index} of {len(wanted)} ...", end="", file=sys.stderr, flush=True)
        rows += measure(case, device, options.repeats)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    name = device_name(device)
    print(f"Attention of one layer, {rows[0].heads} heads of 128, {rows[0].dtype}, 512 text tokens, on {name}")
    print(f"PyTorch {torch.__version__}, {platform.system()}; the median of {options.repeats}\n")
    print(table(rows))
    _growth(rows)
    if options.json:
        content = {
            "date": date.today().isoformat(),
            "command": "python dev.py bench " + " ".join(arguments),
            "device": name,
            "torch": torch.__version__,
            "rows": [row.as_dict() for row in rows],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _growth(rows: list[Row]) -> None:
    """How the time of a backend grows when the image's pixels grow fourfold: 4 is linear, 16 is dense."""
    times = {(row.backend, row.radius, row.down_factor, row.side): row.seconds for row in rows}
    print("\nTime for four times the pixels (4 is linear)")
    for (backend, radius, factor, side), seconds in times.items():
        larger = times.get((backend, radius, factor, side * 2))
        if larger is not None and backend != "dense":
            print(
                f"  {backend}, radius {radius}, down {factor}: {side * 16} to {side * 32} px: {larger / seconds:.2f} x"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
