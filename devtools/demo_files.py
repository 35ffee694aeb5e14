"""Which model files the demo runs on, and the server's options that make it find them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from devtools import checkpoints, workflow
from devtools.server import BASE
from devtools.small_flux import files as small
from devtools.steps import DEV

# A folder of models/ -> the older name it may still have.
_OLDER_NAMES = {"diffusion_models": "unet", "text_encoders": "clip"}
_KINDS = ("diffusion_models", "text_encoders", "vae", "loras", "clear")
# What makes a file of the small model that is not there.
_MADE_BY = {small.FLUX: "train-demo", small.VAE: "train-demo", small.CLEAR: "prove"}


def choose_files(user: Path | None, *, full_width: bool) -> workflow.Files:
    """The real FLUX if the shipped workflow's files are all there, else a demo model; its missing files are made.

    user: a models folder, beside the server's own. full_width: FLUX.1-dev's shape with random weights, not the small
    trained model. Raises OSError where a file is missing that is not made here.
    """
    folders = [BASE / "models", *([user] if user else [])]
    missing = _missing(workflow.SHIPPED, folders)
    if not missing:
        return workflow.SHIPPED
    if len(missing) < len(workflow.SHIPPED.paths()):
        print(f"Not all of the shipped workflow's files are there (missing: {', '.join(missing)});")
        print(f"using the {'demo checkpoint' if full_width else 'small FLUX'}.")
    if full_width:
        _make("the demo checkpoint (FLUX.1-dev's shape, 1 + 1 blocks, random weights)", checkpoints.ALL)
        return workflow.DEMO
    make_text_encoder()
    for path in _missing(workflow.SMALL, [*folders, small.FOLDER]):
        raise OSError(
            f"{small.FOLDER / path} is missing: a file of the small FLUX, which python dev.py {_MADE_BY[path]} makes. "
            "With --full-width the demo does without."
        )
    return workflow.SMALL


def make_text_encoder() -> None:
    """The small FLUX's, among the server's own models, if it is not there."""
    _make("the small FLUX's text encoder", (checkpoints.CLIP_L,))


def extra_models(user: Path | None, files: workflow.Files, config: Path = DEV / "extra_model_paths.yaml") -> list[str]:
    """The server's options that make it read a further models folder, and the small model's with its loader.

    config: the file to write. Raises OSError where there is no folder `user`.
    """
    if user is not None and not user.is_dir():
        raise OSError(f"--models: there is no folder {user}")
    folders: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    if user is not None:
        for kind in _KINDS:
            names = dict.fromkeys((kind, _OLDER_NAMES.get(kind, kind)))
            folders[kind] += [str(user.resolve() / name) for name in names]
    if files is workflow.SMALL:
        # Downloads and distilled weights go into the first folder, which must not be one of this repository.
        folders["clear"].append(str(BASE / "models" / "clear"))
        for kind in ("diffusion_models", "vae", "clear"):
            folders[kind].append(str(small.FOLDER / kind))
        folders["custom_nodes"] = [str(small.CUSTOM_NODES)]
    lines = {kind: "\n".join(paths) for kind, paths in folders.items() if paths}
    if not lines:
        return []
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"extra": lines}, indent=2), encoding="utf-8")  # JSON is YAML
    return ["--extra-model-paths-config", str(config)]


def _make(what: str, names: tuple[str, ...]) -> None:
    if checkpoints.missing_demo_files(BASE / "models", names):
        print(f"Making {what}:", flush=True)
        # In a process of its own: it imports the host, which this one has no need of.
        subprocess.run([sys.executable, "-m", "devtools.checkpoints", BASE / "models", *names], check=True)


def _missing(files: workflow.Files, folders: list[Path]) -> list[str]:
    return [path for path in files.paths() if not any(_find(folder, path) for folder in folders)]


def _find(folder: Path, path: str) -> bool:
    kind, _, name = path.partition("/")
    return any((folder / kind / name).is_file() for kind in (kind, _OLDER_NAMES.get(kind, kind)))
