"""`python dev.py prove`: what CLEAR's window costs the small FLUX, and what distillation gives back.

Students are trained with the pack's own distillation and compared with the dense model on prompts that neither has been
trained on; then the main student at larger sizes, in bands, and with a LoRA of the dense model. Each row is kept below
--folder (default .dev/proof), with those of the same model and amounts, as soon as it is measured: run again, it goes
on, and several processes share the students. With all rows there, docs/proof.md and its figures are written, and the
main student's weights join the model's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .inprocess import pack_module
from .machine import processor_name
from .proof import beyond, report
from .proof.measure import FULL, QUICK, Bench, Measure, Row
from .proof.rows import all_kept, identity, kept, options_of, prompts
from .proof.variants import ALL_LAYERS, LONGEST, MAIN, STARTS, UNTRAINED, Variant, grid
from .small_flux import files, gallery
from .small_flux.command import host_with_text, run, say

SHOWN = 4
"""Pictures of each student on the sheet."""


def main(arguments: list[str]) -> int:
    options = options_of("prove", __doc__, "proof", arguments)
    proof = Proof(options.folder, options.models, host_with_text(options.clip), QUICK if options.quick else FULL)
    few = [Variant(files.RADIUS, UNTRAINED), MAIN, LONGEST, replace(LONGEST, start_percent=STARTS[0]), ALL_LAYERS]
    variants = few if options.quick else list(grid(options.seeds))
    dense, rows = proof.students(variants)
    further = proof.beyond(beyond.QUICK if options.quick else beyond.FULL)
    images = options.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    report.figure(images / "proof.png", dense, rows)
    proof.sheet(images / "proof_pictures.jpg")
    report.write(options.docs / "proof.md", dense, rows, further, proof.measure, processor_name())
    print(f"wrote {options.docs / 'proof.md'}")
    return 0


class Proof:
    """Rows of one model and one `Measure`, in a folder of their own below `folder`: what is there is read, what is not
    is measured."""

    def __init__(self, folder: Path, models: Path, clip_l: Path, measure: Measure) -> None:
        folder /= identity(models, (measure, MAIN.settings(measure.steps, measure.batch)))
        self._folder, self._models, self.measure = folder, models, measure
        folder.mkdir(parents=True, exist_ok=True)
        self._training, self._held_out = prompts(folder, clip_l, measure.samples, measure.pictures)
        self._model, self._vae = files.load(models)

    def students(self, variants: Sequence[Variant]) -> tuple[Row, dict[Variant, Row]]:
        """The dense model's row and the students'."""
        bench = Bench(self._model, self._vae, self._training, self._held_out, self.measure, self._folder)
        folder = self._folder / "rows"
        folder.mkdir(exist_ok=True)

        def dense() -> Row:
            gallery.sheet(bench.images[:SHOWN], SHOWN, folder / "dense.png")
            return bench.dense()

        def student(variant: Variant) -> Row:
            if variant != variant.student:  # trained by its own row
                kept(file(variant.student), partial(student, variant.student))
            row, images = bench.row(variant, say)
            if variant != variant.student:
                del row["loss"]  # at some of its noise levels attention is full
            gallery.sheet(images[:SHOWN], SHOWN, folder / f"{variant.name}.png")
            return row

        def file(variant: Variant) -> Path:
            return folder / f"{variant.name}.json"

        kept(folder / "samples.json", lambda: {"samples": float(len(bench.samples()))})  # one process generates them
        whole = kept(folder / "dense.json", dense)
        rows = all_kept({file(variant): partial(student, variant) for variant in variants}, say)
        return whole, {variant: rows[file(variant)] for variant in variants}

    def beyond(self, amount: beyond.Amount) -> report.Further:
        """What goes beyond the training, of the student that the demo uses; its weights join the model's files."""
        weights = self._models / files.CLEAR
        files.put(self._folder / "students" / f"{MAIN.name}.safetensors", weights)
        descriptions, texts = self._held_out
        student = beyond.Beyond(
            self._model, pack_module("clear_core.weights").read_weights(weights), self._vae, descriptions, texts, amount
        )
        folder = self._folder / "beyond"
        folder.mkdir(exist_ok=True)
        sizes: dict[str, Row] = {}
        for name, measured in student.sizes(folder):
            sizes[name] = kept(folder / f"{name.replace(', ', '_')}.json", measured)
            say(f"{name}: right {sizes[name]['right']:.2f}, coherence {sizes[name]['coherence']:.3f}")
        bands = kept(folder / "bands.json", student.bands)
        say(f"bands: {bands['difference']:.2g}, {bands['psnr']:.1f} dB")
        training, training_texts = self._training
        transfer = kept(
            folder / "transfer.json", lambda: student.transfer(self._models, training, training_texts, folder)
        )
        return report.Further(sizes, bands, transfer)

    def sheet(self, path: Path) -> None:
        """Pictures of the dense model and of students, a row each."""
        names = {"dense": "dense"}
        for radius in (2, 3, 4):
            names |= {Variant(radius, UNTRAINED).name: f"radius {radius}, untrained"}
            names |= {Variant(radius).name: f"radius {radius}, distilled"}
        names |= {LONGEST.name: f"radius {MAIN.radius}, longer"}
        pooled = f"radius {ALL_LAYERS.radius}, down {ALL_LAYERS.down_factor}"
        names |= {ALL_LAYERS.untrained.name: f"{pooled}, untrained", ALL_LAYERS.name: f"{pooled}, distilled"}
        rows = {label: self._folder / "rows" / f"{name}.png" for name, label in names.items()}
        report.sheet(path, {label: file for label, file in rows.items() if file.is_file()})


if __name__ == "__main__":
    run(main)
