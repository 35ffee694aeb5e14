"""`python dev.py prove`: what CLEAR's window costs the small FLUX, and what distillation gives back.

Students are trained with the pack's own distillation and compared with the dense model on prompts that neither has been
trained on. Each row is kept in --folder (default .dev/proof) as soon as it is measured: run again, it goes on. With all
rows there, docs/proof.md and its figures are written.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from clear_core.whole_file import written_whole

from .machine import processor_name
from .proof import report
from .proof.measure import FULL, QUICK, Bench, Measure, Row
from .proof.variants import Variant, grid
from .small_flux import files, gallery, scenes, text
from .small_flux.command import host_with_text, run, say

ROOT = Path(__file__).resolve().parents[1]
_SHOWN = 4  # pictures of each student on the sheet


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py prove", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".dev" / "proof", metavar="DIR", help="where rows are kept"
    )
    parser.add_argument("--models", type=Path, default=files.FOLDER, metavar="DIR", help="the small model's files")
    parser.add_argument("--clip", type=Path, default=None, metavar="FILE", help="the demo's CLIP-L")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR", help="where the report goes")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="two students on a small scale, for tests")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; 1 or more is allowed")
    if not (options.models / files.FLUX).is_file():
        parser.error(f"there is no {options.models / files.FLUX}; python dev.py train-demo makes it")
    clip = host_with_text(options.clip)
    measure = QUICK if options.quick else FULL
    variants = list(grid(1))[:1] + list(grid(1))[4:5] if options.quick else list(grid(options.seeds))
    dense, rows = measured(options.folder, options.models, clip, measure, variants)
    images = options.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    report.figure(images / "proof.png", dense, rows)
    report.write(options.docs / "proof.md", dense, rows, measure, processor_name(), _INTRODUCTION)
    print(f"wrote {options.docs / 'proof.md'}")
    return 0


def measured(
    folder: Path, models: Path, clip_l: Path, measure: Measure, variants: list[Variant]
) -> tuple[Row, dict[Variant, Row]]:
    """The dense model's row and the students', from the folder where they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = scenes.split()
    sets = []
    for name, descriptions in (("training", training[: measure.samples]), ("held_out", held_out[: measure.pictures])):
        prompts = [one.prompt for one in descriptions]
        texts = text.cached(folder / f"text_{name}.safetensors", lambda: text.load_clip(clip_l), prompts)
        sets.append((descriptions, texts))
    model, vae = files.load(models)
    bench = Bench(model, vae, sets[0], sets[1], measure, folder)
    dense = bench.dense()
    gallery.sheet(bench.images[:_SHOWN], _SHOWN, folder / "dense.png")
    rows: dict[Variant, Row] = {}
    for number, variant in enumerate(variants):
        file = folder / "rows" / f"{variant.name}.json"
        if not file.is_file():
            row, images = bench.row(variant, say)
            file.parent.mkdir(exist_ok=True)
            gallery.sheet(images[:_SHOWN], _SHOWN, file.with_suffix(".png"))
            with written_whole(file) as part:
                part.write_text(json.dumps({"variant": asdict(variant), "row": row}, indent=2) + "\n", encoding="utf-8")
        rows[variant] = json.loads(file.read_text(encoding="utf-8"))["row"]
        found = ", ".join(f"{name} {rows[variant][name]:.4g}" for name in ("loss", "psnr", "coherence", "right"))
        say(f"{number + 1} of {len(variants)}, {variant.name}: {found}")
    return dense, rows


_INTRODUCTION = (
    "The small FLUX of the demo (small_flux.md) generates scenes that a program can judge: `right` is the share of "
    "pictures that show everything the prompt says, `coherence` how well distant parts agree, `loss` the mean squared "
    "distance of a student's velocity from the dense model's, PSNR that of its pictures from the dense model's with "
    "the same noise. Made by `python dev.py prove`.",
    "",
    "![loss and coherence of each student](images/proof.png)",
)


if __name__ == "__main__":
    run(main)
