"""`python dev.py distill CONFIG.toml`: a distillation without a page, also under torchrun.

CONFIG.toml names a model file, a folder of CLEAR Training Set and the settings of Distill CLEAR Weights; see
docs/distill.md and devtools/distill.toml. The result and the state lie in `folder`. Run again after a stop, it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomllib

from clear_core.distill.sharding import PLACEMENTS, REPLICATED

from .inprocess import import_host, pack_module

_DTYPES = ("default", "fp8_e4m3fn", "fp8_e5m2")


class ConfigError(ValueError):
    """The file is no configuration; the text says where."""


@dataclass(frozen=True, slots=True)
class Config:
    """model, samples, start_from, start_base: paths, relative ones from the configuration's folder. settings: of the
    node. base: how several processes hold the model: each all of it, or each a part."""

    model: Path
    samples: Path
    folder: Path
    name: str
    settings: Mapping[str, Any]
    weight_dtype: str = "default"
    save_every: int = 100
    resume: bool = True
    start_from: Path | None = None
    start_base: Path | None = None
    base: str = REPLICATED


def read(path: Path) -> Config:
    """Raises ConfigError for what is missing, unknown or of the wrong kind."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    known = {field.name: field for field in fields(Config)}
    unknown = [name for name in given if name not in known]
    missing = [name for name in ("model", "samples", "folder", "name", "settings") if name not in given]
    if unknown or missing:
        parts = [f"{', '.join(names)} {what}" for names, what in ((unknown, "unknown"), (missing, "missing")) if names]
        raise ConfigError(f"{path}: {'; '.join(parts)}. Known are {', '.join(known)}.")
    for name in ("model", "samples", "folder", "start_from", "start_base"):
        if name in given:
            given[name] = path.parent / _of(path, given, name, str)
    kinds = {"name": str, "weight_dtype": str, "base": str, "save_every": int, "resume": bool, "settings": dict}
    for name, kind in kinds.items():
        if name in given:
            _of(path, given, name, kind)
    for name, choices in (("weight_dtype", _DTYPES), ("base", PLACEMENTS)):
        if given.get(name, choices[0]) not in choices:
            raise ConfigError(f"{path}: {name} is {given[name]!r}; choose one of {', '.join(choices)}")
    return Config(**given)


def _of(path: Path, given: Mapping[str, Any], name: str, kind: type) -> Any:
    if type(given[name]) is not kind:
        raise ConfigError(f"{path}: {name} is {given[name]!r}; a value of type {kind.__name__} is needed")
    return given[name]


def run(config: Config) -> None:
    """Raises ConfigError and whatever a job raises."""
    import comfy.sd
    import torch

    sample, settings = pack_module("clear_core.distill.samples"), pack_module("clear_core.distill.settings")
    jobs, weights = pack_module("nodes.host.distill.job"), pack_module("clear_core.weights")
    files = tuple(sorted(config.samples.glob("*.safetensors")))
    if not files:
        raise ConfigError(f"samples: there is no .safetensors file in {config.samples}. CLEAR Training Set makes them.")
    for name, file in (("model", config.model), ("start_base", config.start_base)):
        if file is not None and not file.is_file():
            raise ConfigError(f"{name}: there is no file {file}")
    try:
        asked = settings.Settings(**config.settings)
    except TypeError as error:
        raise ConfigError(
            f"settings: {error}; known are {', '.join(f.name for f in fields(settings.Settings))}"
        ) from error
    job = jobs.Job(config.name, asked, config.save_every, config.resume, config.folder)
    start = weights.read_weights(config.start_from) if config.start_from is not None else None
    with pack_module("clear_core.distill.processes").joined() as processes:
        base = pack_module("nodes.host.distill.base").base_of(config.base)
        options = {} if config.weight_dtype == "default" else {"dtype": getattr(torch, config.weight_dtype)}
        model = comfy.sd.load_diffusion_model(str(config.model), model_options=options)
        start_base = None if config.start_base is None else comfy.sd.load_diffusion_model(str(config.start_base))

        def say(session: Any, trained: Any, point: Any) -> None:
            if processes.rank == 0:
                print(f"step {point.step} of {asked.steps}, {point.stage}: loss {point.losses['loss']:.4g}", flush=True)

        samples = sample.TrainingSet(config.samples, files)
        result, _, _ = job.run(model, samples, start, say, processes=processes, base=base, start_base=start_base)
        if processes.rank == 0:
            print(f"{result.file}: {len(result.history)} steps, from {result.note}")
            if base.shards is not None:
                print(f"Base: {_sizes(base.shards)}")


def _sizes(shards: Any) -> str:
    """In words, of what one process has held and received."""
    held, whole, largest, received = (
        f"{size / 2**30:.2f} GiB" for size in (shards.held, shards.whole, shards.largest, shards.received)
    )
    return f"{held} of the blocks' {whole} in this process, and {largest} of a gathered block; {received} received"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        config = read(Path(arguments[0]))
        import_host()
        run(config)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the state is kept. The same command goes on.", file=sys.stderr)
        return 130
    pack_module("clear_core.distill.processes").end_process()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
