"""What `prove` and `ablate` share: their options, the prompts, and rows kept in files as soon as they are measured."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clear_core.whole_file import written_whole

from ..inprocess import ROOT
from ..small_flux import files, scenes, text
from ..small_flux.text import Texts

Prompts = tuple[Sequence[scenes.Description], Texts]
"""Descriptions with their text features, in the same order."""


def options_of(command: str, description: str | None, folder: str, arguments: list[str]) -> argparse.Namespace:
    """The options of `dev.py command`. folder: below .dev, where rows are kept."""
    parser = argparse.ArgumentParser(
        prog=f"dev.py {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, metavar, told in (
        ("folder", ROOT / ".dev" / folder, "DIR", "where rows are kept"),
        ("models", files.FOLDER, "DIR", "the small model's files"),
        ("clip", None, "FILE", "the demo's CLIP-L"),
        ("docs", ROOT / "docs", "DIR", "where the report goes"),
    ):
        parser.add_argument(f"--{name}", type=Path, default=default, metavar=metavar, help=told)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="students of each kind (default 3)")
    parser.add_argument("--quick", action="store_true", help="two students on a small scale, for tests")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; 1 or more is allowed")
    if not (options.models / files.FLUX).is_file():
        parser.error(f"there is no {options.models / files.FLUX}; python dev.py train-demo makes it")
    return options


def prompts(folder: Path, clip_l: Path, training: int, held_out: int) -> tuple[Prompts, Prompts]:
    """The first so many prompts to train on, and of those that nothing was trained on. folder: keeps the features."""
    found = []
    for name, count, chosen in zip(("training", "held_out"), (training, held_out), scenes.split(), strict=True):
        said = [one.prompt for one in chosen[:count]]
        texts = text.cached(folder / f"text_{name}.safetensors", lambda: text.load_clip(clip_l), said)
        found.append((chosen[:count], texts))
    return found[0], found[1]


def identity(models: Path, what: object) -> str:
    """Names the rows of a model's files and of `what` they are measured with: those of others are never taken for them.

    what: anything whose repr tells all of it.
    """
    digest = hashlib.sha256(repr(what).encode())
    for name in (files.FLUX, files.VAE):
        digest.update((models / name).read_bytes())
    return digest.hexdigest()[:12]


def kept(file: Path, measure: Callable[[], Any], *, wait: bool = True) -> Any:
    """What a file has, measured where it is not there.

    Several processes may share the file: one measures it, and the others wait for that one. wait=False: raises
    TimeoutError instead.
    """
    from filelock import FileLock, Timeout

    try:
        # A process that dies gives its lock up, and what it was measuring is measured again.
        with FileLock(file.with_suffix(".lock"), timeout=-1 if wait else 0):
            if not file.is_file():
                found = measure()
                with written_whole(file) as part:
                    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except Timeout as error:
        raise TimeoutError(f"{file} is being measured by another process") from error
    return json.loads(file.read_text(encoding="utf-8"))


def all_kept(
    work: Mapping[Path, Callable[[], dict[str, float]]], say: Callable[[str], None]
) -> dict[Path, dict[str, float]]:
    """What all files have, measured where they are not there, by several processes if so many are at it.

    say: told of each row that this process has measured.
    """
    rows: dict[Path, dict[str, float]] = {}
    for wait in (False, True):  # first what nobody is at, then what others have not finished
        for number, (file, measure) in enumerate(work.items()):
            with suppress(TimeoutError):
                there = file.is_file()
                rows[file] = kept(file, measure, wait=wait)
                if not there:
                    told = ", ".join(f"{key} {value:.4g}" for key, value in [*rows[file].items()][-3:])
                    say(f"{number + 1} of {len(work)}, {file.stem}: {told}")
    return rows
