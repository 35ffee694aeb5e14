"""What `python dev.py card --here` needs beside PyTorch, in one file: ComfyUI's tree and small packages.

A rented card is a bare machine: PyTorch and the usual packages, often no network. Standard library only: `dev.py`
unpacks a bundle there before anything else is imported.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

# What a FLUX step uses. Pure Python, or built for every Python from 3.11 on (abi3).
PACKAGES = ("packaging", "psutil", "torchsde", "tqdm", "trampoline")
# Built for each Python alone.
BINARY_PACKAGES = ("greenlet",)
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")
LARGEST = 60 * 10**6  # bytes

_UNUSED = {"web", "user", "models", "input", "output", "temp", "tests", "tests-unit", ".git", ".github"}  # at the top
_SUFFIXES = {".py", ".json", ".txt", ".toml", ".yaml", ".model"}


class BundleError(Exception):
    """A bundle that cannot be made or used; the message says what to do."""


def make(file: Path, host: Path) -> int:
    """Write a bundle for Linux; its size in bytes.

    host: ComfyUI's tree. Packages are those of the running Python, and wheels that pip downloads for the others.
    Raises BundleError where one cannot be had, or where the bundle would be too large.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, path in (*_host_files(host), *_package_files(), *_built_files(Path(scratch))):
            bundle.write(path, name)
    size = file.stat().st_size
    if size > LARGEST:
        file.unlink()
        raise BundleError(f"The bundle would have {size / 1e6:.0f} MB; {LARGEST / 1e6:.0f} MB is the most.")
    return size


def unpack(file: Path, below: Path) -> tuple[Path, list[Path]]:
    """Unpack a bundle into a folder named by its content, unless it is there: ComfyUI's tree, and folders of packages.

    Raises BundleError where the file is no bundle.
    """
    if not file.is_file():
        raise BundleError(f"There is no bundle {file}. Make one elsewhere: python dev.py card --bundle FILE")
    folder = below / hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    if not folder.is_dir():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with zipfile.ZipFile(file) as bundle:
                bundle.extractall(partial)
        except zipfile.BadZipFile as problem:
            raise BundleError(f"{file} is not a bundle: {problem}. Copy it again.") from problem
        if not (partial / "host" / "comfy").is_dir():
            raise BundleError(f"{file} is not a bundle: there is no ComfyUI in it.")
        partial.rename(folder)
    return folder / "host", [folder / "packages", folder / f"python{sys.version_info[0]}.{sys.version_info[1]}"]


def _host_files(host: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(host.rglob("*")):
        inside = path.relative_to(host)
        if path.is_file() and path.suffix in _SUFFIXES and inside.parts[0] not in _UNUSED:
            yield str(PurePosixPath("host", *inside.parts)), path


def _package_files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for entry in metadata.files(package) or []:
            path = Path(str(entry.locate()))
            outside = ".." in entry.parts or "__pycache__" in entry.parts
            if path.is_file() and not outside:
                yield str(PurePosixPath("packages", *entry.parts)), path


def _built_files(scratch: Path) -> Iterator[tuple[str, Path]]:
    """The wheels that are built for one Python each, unpacked."""
    for version in PYTHONS:
        folder = scratch / f"python{version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", version, "--dest", str(folder / "wheels")]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        ended = subprocess.run([*command, *BINARY_PACKAGES], capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise BundleError(f"pip cannot download {', '.join(BINARY_PACKAGES)} for Python {version}: {ended.stderr}")
        for wheel in sorted((folder / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as content:
                content.extractall(folder / "content")
        for path in sorted((folder / "content").rglob("*")):
            if path.is_file() and path.suffix not in (".h", ".cpp", ".c", ".hpp"):
                yield str(PurePosixPath(folder.name, *path.relative_to(folder / "content").parts)), path
