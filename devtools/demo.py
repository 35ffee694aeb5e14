"""`dev.py run`: ComfyUI with this pack installed, with its page, or headless with a report.

Where the real FLUX is not there, it runs on the small trained FLUX, or with --full-width on FLUX.1-dev's shape with
random weights. Headless, the shipped workflow runs dense and with CLEAR in one server, through the API of the page.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from devtools import demo_full, demo_page, demo_small, workflow
from devtools.client import ClientError, ComfyClient
from devtools.demo_files import choose_files, extra_models
from devtools.demo_run import Asked
from devtools.server import BASE, PACK_FOLDER, ComfyServer, ServerError, free_port
from devtools.steps import DEV


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        files = choose_files(options.models, full_width=options.full_width)
        flags = extra_models(options.models, files)
        return (headless if options.headless else serve)(options, files, flags)
    except subprocess.CalledProcessError as error:
        return error.returncode  # it has said why
    except (ClientError, ServerError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130


def serve(options: argparse.Namespace, files: workflow.Files, flags: list[str]) -> int:
    """Run the server until Ctrl-C."""
    port = free_port(options.port or 8188)
    if options.port and port != options.port:
        print(f"Port {options.port} is in use; taking {port}.")
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(DEV / "server.log", port=port, options=flags, echo=_echo) as server:
        where = demo_page.put_workflow(ComfyClient(server.address), files, BASE / "user")
        time.sleep(0.3)  # let the server's own last lines come first
        print(f"\nComfyUI with CLEAR is at {server.address}")
        print(f"In the page: Workflows > {where.stem}, or Browse Templates > {PACK_FOLDER}. Ctrl-C stops.", flush=True)
        try:
            return server.wait()
        except KeyboardInterrupt:
            print("\nStopping.")
            return 0


def headless(options: argparse.Namespace, files: workflow.Files, flags: list[str]) -> int:
    """Run the shipped workflow in all ways, then print the report."""
    asked = Asked(files, options.output or DEV / "output", options.size, options.steps)
    asked.output.mkdir(parents=True, exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    flags = [*flags, "--use-pytorch-cross-attention"]
    with ComfyServer(DEV / "server.log", port=options.port or 0, options=flags) as server:
        client = ComfyClient(server.address, timeout=1800)
        small = files is workflow.SMALL
        report = demo_small.headless(client, asked) if small else demo_full.headless(server, client, asked)
    print(report)
    return 0


def _echo(text: str) -> None:
    print(text, end="", flush=True)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) % 16 == 0 == int(height) % 16 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: give width and height in multiples of 16, such as 1024x768")
    return int(width), int(height)


def _steps(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give 2 or more, the first step loads and is not measured")
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py run", description=__doc__)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--full-width", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--size", type=_size)
    parser.add_argument("--steps", type=_steps)
    parser.add_argument("--models", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
