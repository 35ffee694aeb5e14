"""`python -m benchmarks.card.part NAME [--rehearse]`: one part, in the process that `supervise` watches."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator

import torch

from .scale import Scale, card, rehearsal
from .supervise import Row, append


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    scale = rehearsal() if options.rehearse else card(torch.device("cuda", 0))
    for row in _rows(options.name, scale):
        append(row)
        print(row, flush=True)
    return 0


def _rows(name: str, scale: Scale) -> Iterator[Row]:
    return importlib.import_module(f"benchmarks.card.{name}").rows(scale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
