"""`python dev.py card`: everything that only a real card can answer, in at most ten minutes.

Each part is a process of its own with a time limit; card.json and card.md are saved after each. Called again, it goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from clear_core.show.measured import file_name
from devtools import card_bundle
from devtools.environment import HOST

from .page import page
from .parts import HOPPER, PARTS, Part, parts
from .results import OtherResults, Results
from .supervise import DONE, Outcome, supervise

_LEAST_SECONDS = 5  # that a part is started for
_MACHINE = Part("machine", "The machine", 60)


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.bundle is not None:
        return _bundle(options.bundle)
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        machine = _run(_MACHINE, Path(scratch), _MACHINE.seconds, rehearse=options.rehearse)
        if machine.status != DONE or not machine.rows:
            print("\n".join(machine.log), file=sys.stderr)
            print(f"\nThe card cannot be used: {machine.status}. --rehearse runs without one.", file=sys.stderr)
            return 1
        try:
            results = Results.open(options.out, machine.rows[0])
        except OtherResults as problem:
            print(problem, file=sys.stderr)
            return 1
        every = parts(rehearsal=options.rehearse)
        for part in every:
            if part.name not in (options.only or [part.name]) or (results.is_done(part.name) and not options.again):
                continue
            left = deadline - time.monotonic()
            if left < _LEAST_SECONDS:
                print(f"{part.name:<12} not started: the {options.minutes:g} minutes are over", flush=True)
                continue
            print(f"{part.name:<12} {part.what} ...", flush=True)
            settings = _hopper_setting(results.parts.get(HOPPER))
            outcome = _run(part, Path(scratch), min(part.seconds, left), rehearse=options.rehearse, settings=settings)
            results.save(part.name, outcome)
            results.write_page(page(results, every))
            print(f"{'':<12} {outcome.status}, {outcome.seconds:.0f} s, {len(outcome.rows)} rows", flush=True)
        if not results.parts:
            print("No part was started.", file=sys.stderr)
            return 1
        written = results.write_page(page(results, every))
    print(f"\n{written}")
    if "steps" in results.parts and not options.rehearse:
        target = f"benchmarks/results/{file_name(results.run['device'])}"
        print(f"For CLEAR Report's times on such a card: copy {written.with_name('card.json')} to {target}")
    return 0


def _bundle(file: Path) -> int:
    try:
        size = card_bundle.make(file, HOST)
    except card_bundle.BundleError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{file}: {size / 1e6:.0f} MB. On the machine with the card: python dev.py card --here {file.name}")
    return 0


def _hopper_setting(outcome: Outcome | None) -> dict[str, str]:
    """Use the kernel for Hopper chips without another trial if it passed its own, and not at all if it did not."""
    if outcome is None:
        return {}
    right = outcome.status == DONE and all(row.get("right", True) for row in outcome.rows)
    return {"CLEAR_HOPPER_KERNEL": str(int(right))}


def _run(
    part: Part, folder: Path, limit: float, *, rehearse: bool, settings: Mapping[str, str] = MappingProxyType({})
) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.card.part", part.name, *(["--rehearse"] if rehearse else [])]
    if rehearse:
        settings = {**settings, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": str(int(part.interpret))}
    return supervise(command, folder, limit, settings)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py card", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="in all (default 10)")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"only these: {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the processor at toy sizes, with parts that hang and crash"
    )
    parser.add_argument(
        "--here",
        metavar="BUNDLE",
        help="(first) with this Python, its PyTorch, and no network; BUNDLE brings ComfyUI, '-' is none",
    )
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="instead: make the bundle for --here, about 9 MB")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for card.json and card.md (default .dev/card)")
    options = parser.parse_args(arguments)
    if options.here is not None:
        parser.error("--here comes first: python dev.py card --here BUNDLE ...")
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; more than 0 is needed")
    if options.out is None:
        options.out = Path(".dev", "card-rehearsal" if options.rehearse else "card")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
