"""The folder models/clear, as the host lists it and as extra_model_paths.yaml extends it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import folder_paths

FOLDER = "clear"
NO_FILES = "no file in models/clear yet"


def weights_files() -> list[str]:
    """Files of models/clear (and of extra_model_paths.yaml); one line that says so where there are none."""
    _register_folder()
    return folder_paths.get_filename_list(FOLDER) or [NO_FILES]


def weights_path(name: str) -> Path:
    """Where a listed file lies. Raises ValueError, naming the folder, when it is gone."""
    _register_folder()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folder = folder_paths.get_folder_paths(FOLDER)[0]
        raise ValueError(
            f"There is no weights file {name!r}. Put clear_local_16.safetensors (or another of the five files of "
            f"Huage001/CLEAR on the Hugging Face hub) into {folder} and reload the page."
        )
    return Path(path)


def file_fingerprint(name: str) -> str:
    """Changes when the file does, without reading it."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return "missing"
    stat = Path(path).stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _register_folder() -> None:
    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    own = os.path.join(folder_paths.models_dir, FOLDER)
    if own not in paths or not extensions:
        with suppress(OSError):  # a folder to put files into, where it may be made
            Path(own).mkdir(parents=True, exist_ok=True)
        # The host starts a new folder with no extensions, which would list every file.
        paths = paths if own in paths else [*paths, own]
        folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})
