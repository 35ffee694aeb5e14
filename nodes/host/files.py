"""Folders of this pack below models/, as the host lists them and as extra_model_paths.yaml extends them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import folder_paths

from ...clear_core.hub.released import DATE, RELEASED, Released, find

FOLDER = "clear"


def weights_files() -> list[str]:
    """Files of models/clear (and of extra_model_paths.yaml), then the released ones that are not among them."""
    _register_folder()
    here = folder_paths.get_filename_list(FOLDER)
    return here + [released.name for released in RELEASED if released.name not in here]


def weights_path(name: str) -> Path:
    """Where a listed file lies. Raises ValueError, naming the folder, when it is not there."""
    _register_folder()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(
            f"There is no weights file {name!r}. Put clear_local_16.safetensors (or another of the five files of "
            f"Huage001/CLEAR on the Hugging Face hub) into {download_folder()} and reload the page, or choose one of "
            "them in the list: it is downloaded when the prompt runs."
        )
    return Path(path)


def absent_release(name: str) -> Released | None:
    """The released file of that name, when it is not here."""
    _register_folder()
    return None if folder_paths.get_full_path(FOLDER, name) else find(name)


def download_folder(name: str = FOLDER) -> Path:
    """The first folder of a name that can be written to, or the first of all. After `register_folder`."""
    if name == FOLDER:
        _register_folder()
    folders = folder_paths.get_folder_paths(name)
    return Path(next((folder for folder in folders if os.access(folder, os.W_OK)), folders[0]))


def file_fingerprint(name: str) -> str:
    """Changes when the file does, without reading it; a download that comes between two runs is no change."""
    _register_folder()
    path = folder_paths.get_full_path(FOLDER, name)
    stat = Path(path).stat() if path else None
    if find(name) and (stat is None or stat.st_mtime == DATE):
        return "released"
    return f"{stat.st_size}:{stat.st_mtime_ns}" if stat else "missing"


def register_folder(name: str, extensions: Collection[str]) -> None:
    """Make models/NAME known to the host, with these extensions of files."""
    if name not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    paths, known = folder_paths.folder_names_and_paths[name]
    own = os.path.join(folder_paths.models_dir, name)
    if own not in paths or not known:
        with suppress(OSError):  # a folder to put files into, where it may be made
            Path(own).mkdir(parents=True, exist_ok=True)
        # The host starts a new folder with no extensions, which would list every file.
        paths = paths if own in paths else [*paths, own]
        folder_paths.folder_names_and_paths[name] = (paths, set(extensions))


def _register_folder() -> None:
    register_folder(FOLDER, {".safetensors"})


def written_path(written: str, base: str, is_there: Callable[[Path], bool]) -> Path | None:
    """A path as a user writes it, a relative one below `base`; None where it is not there."""
    try:
        path = Path(base) / Path(written).expanduser()
        return path if is_there(path) else None
    except (OSError, ValueError, RuntimeError):  # too long, characters that no path has, no such user
        return None
