"""`python dev.py evaluate FOLDER... ORIGINAL`: how close the images of folders are to those of an original.

Images belong together where their names are the same, extensions aside. What is measured of them is kept in --kept, so
a run that was stopped goes on. docs/evaluation.md says what the numbers mean and which networks they need.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .inprocess import ROOT, import_host, pack_module
from .small_flux.command import run

_EVERY = 5.0  # seconds between two lines of progress


def main(arguments: list[str]) -> int:
    options = _parsed(arguments)
    import_host()
    evaluation = pack_module("nodes.host.evaluation.run")
    weights = pack_module("nodes.host.evaluation.weights")
    table = pack_module("clear_core.evaluation.table")
    if options.networks is not None:
        _use_networks(weights, options.networks)
    watch = _Watch()
    files = weights.Files(watch, options.download)
    try:
        metrics = pack_module("nodes.options.evaluation").listed_metrics(options.metrics)
        found = evaluation.evaluate_folders(
            options.original, options.folders, metrics, options.prompts, files, watch, options.kept
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print({"markdown": table.markdown, "csv": table.as_csv, "json": table.as_json}[options.format](found).rstrip("\n"))
    if options.save is not None:
        for path in table.write(found, options.save.parent, options.save.name):
            print(f"wrote {path}", file=sys.stderr)
    return 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py evaluate", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folders of images to evaluate")
    parser.add_argument("original", type=Path, metavar="ORIGINAL", help="the folder that they are compared with")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="for CLIP-T: .json, .csv or .txt")
    parser.add_argument("--metrics", default="", metavar="NAMES", help="what to measure, between commas (default: all)")
    parser.add_argument("--download", action="store_true", help="download networks that are missing: 3.3 GB in all")
    parser.add_argument(
        "--networks", type=Path, metavar="DIR", help="where their files lie (default: models/clear_metrics of ComfyUI)"
    )
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown", help="what is printed")
    parser.add_argument("--save", type=Path, metavar="NAME", help="also write NAME.md, NAME.csv and NAME.json")
    parser.add_argument(
        "--kept", type=Path, default=ROOT / ".dev" / "evaluation", metavar="DIR", help="where measured rows are kept"
    )
    options = parser.parse_args(arguments)
    for folder in (*options.folders, options.original):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder; name folders with images")
    if options.prompts is not None and not options.prompts.is_file():
        parser.error(f"--prompts is {options.prompts}, which is no file")
    if options.networks is not None and not options.networks.is_dir():
        parser.error(f"--networks is {options.networks}, which is no folder")
    return options


def _use_networks(weights: Any, folder: Path) -> None:
    import folder_paths

    folder_paths.add_model_folder_path(weights.FOLDER, str(folder.resolve()), is_default=True)


class _Watch:
    """Prints how far it is, some seconds apart, beside the table."""

    def __init__(self) -> None:
        self._said = 0.0

    def poll(self) -> None:
        pass

    def step(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            print(f"{what}: {done:,} of {of:,}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
