"""What the commands of the small FLUX have in common: the host, its text encoder, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .. import checkpoints
from ..inprocess import HOST, import_host


def host_with_text(clip_l: Path | None) -> Path:
    """Put ComfyUI on the path, set for training on this machine. The demo's CLIP-L, made where it is missing.

    clip_l: None for the one among the demo's models.
    """
    import_host()
    from comfy.cli_args import args

    # In float32 the features cost half as much on a CPU, and differ by the last bit that is kept.
    args.use_pytorch_cross_attention, args.fp32_text_enc = True, True
    file = clip_l or HOST.parent / "base" / "models" / checkpoints.CLIP_L
    if not file.is_file():
        checkpoints.make_clip_l(file.parents[1], say)
    return file


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def run(main: Callable[[list[str]], int]) -> None:
    """Run a command with this process's arguments, and exit with its code."""
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on.")
        sys.exit(130)
