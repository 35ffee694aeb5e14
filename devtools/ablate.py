"""`python dev.py ablate`: every strategy on the small FLUX, before and after the same distillation, at equal cost.

Each strategy of clear_core/strategies takes the place of the dense model's image attention, at about 36 image keys for
each query where it has such a number. Measured: loss, pictures, time, and the four factors on the dense model's own
queries, keys and values. Each row is kept in a folder below --folder (default .dev/ablation), named by the model's
files and the amount, as soon as it is measured: run again, it goes on, and several processes started on one folder
share the work. With all rows there, docs/ablation.md and its figure are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from .ablation import measure as measuring
from .ablation import report, sizes, student
from .inprocess import pack_module
from .machine import processor_name
from .proof.measure import Bench, Measure, Row
from .proof.rows import all_kept, identity, kept, options_of, prompts
from .small_flux import files, gallery
from .small_flux.command import host_with_text, run, say
from .small_flux.train import SIDE

SHOWN = 4
"""Pictures of each student on the sheet."""
_TOKEN = 16  # pixels each way


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured. students: of the proof's measure. scenes: for the factors. rounds: of timing."""

    students: Measure
    scenes: int
    rounds: int


FULL = Amount(Measure(steps=150, batch=4, samples=400, pictures=60, probes=16), scenes=2, rounds=15)
QUICK = Amount(Measure(steps=2, batch=1, samples=2, pictures=1, probes=1), scenes=1, rounds=1)
QUICK_NAMES = ("circle", "agent")


def main(arguments: list[str]) -> int:
    options = options_of("ablate", __doc__, "ablation", arguments)
    amount, names = (QUICK, QUICK_NAMES) if options.quick else (FULL, tuple(sizes.SIZES))
    ablation = Ablation(options.folder, options.models, host_with_text(options.clip), amount, names)
    found = ablation.results(options.seeds)
    images = options.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    report.figure(images / "ablation.png", found)
    ablation.sheet(images / "ablation_pictures.jpg")
    page = report.page(found, amount.students, amount.scenes, processor_name())
    (options.docs / "ablation.md").write_text(page, encoding="utf-8")
    print(f"wrote {options.docs / 'ablation.md'}")
    return 0


class Ablation:
    """A folder of rows: what it has is read, what it lacks is measured, unless another process is at it."""

    def __init__(self, folder: Path, models: Path, clip_l: Path, amount: Amount, names: Sequence[str]) -> None:
        self._amount, self._names = amount, names
        self._folder = folder / identity(models, (amount, sizes.SIZES))
        self._rows = self._folder / "rows"
        self._rows.mkdir(parents=True, exist_ok=True)
        measure = amount.students
        training, held_out = prompts(self._folder, clip_l, measure.samples, measure.pictures)
        self._model, vae = files.load(models)
        self._bench = Bench(self._model, vae, training, held_out, measure, self._folder)
        layout = pack_module("clear_core.layout")
        self._layout = layout.TokenLayout(held_out[1].context.shape[1], layout.Grid(*2 * (SIDE // _TOKEN,)))

    def results(self, seeds: int) -> report.Results:
        """Everything, measured where it is missing. The first seed of all strategies comes before the second."""
        work = {self._file(name): measured for name, measured in self._work(seeds)}
        rows = {file.stem: row for file, row in all_kept(work, say).items()}
        times = kept(self._file("times"), self._times)
        return report.Results(
            rows["dense"], {name: self._result(name, rows, times[name], seeds) for name in self._names}, seeds
        )

    def sheet(self, path: Path) -> None:
        """Pictures of the dense model and of a student of each strategy, a row each."""
        from .proof.report import sheet

        rows = {"dense": "dense"} | {name.replace("_", " "): f"{name}_seed_0" for name in self._names}
        sheet(path, {label: self._rows / f"{name}.png" for label, name in rows.items()})

    def _file(self, name: str) -> Path:
        return self._rows / f"{name}.json"

    def _work(self, seeds: int) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Names of rows, and what measures them."""
        yield "samples", lambda: {"samples": len(self._bench.samples())}
        yield "dense", self._dense
        for seed in range(seeds):
            for name in self._names:
                if seed == 0:
                    yield f"{name}_untrained", partial(self._untrained, name)
                    yield f"{name}_factors", partial(self._factors, name)
                yield f"{name}_seed_{seed}", partial(self._trained, name, seed)

    def _dense(self) -> Row:
        gallery.sheet(self._bench.images[:SHOWN], SHOWN, self._rows / "dense.png")
        return self._bench.dense()

    def _untrained(self, name: str) -> Row:
        attention = self._attention(name)
        return self._compared(f"{name}_untrained", attention, student.untrained(attention))

    def _trained(self, name: str, seed: int) -> Row:
        kept(self._file("samples"), lambda: {"samples": len(self._bench.samples())})
        attention, row = self._attention(name), f"{name}_seed_{seed}"
        state = self._folder / "students" / f"{row}.pt"
        trained = student.distilled(
            self._model, attention, self._bench.samples(), self._amount.students, seed, state, say
        )
        return self._compared(row, attention, trained)

    def _compared(self, row: str, attention: Any, trained: Any) -> Row:
        found, images = self._bench.compared(student.converted(self._model, attention, trained))
        gallery.sheet(images[:SHOWN], SHOWN, self._rows / f"{row}.png")
        return found

    def _factors(self, name: str) -> Row:
        return measuring.factors(self._attention(name), self._layers)

    @cached_property
    def _layers(self) -> measuring.Layers:
        return measuring.layers(self._bench, self._model, self._amount.scenes)

    def _times(self) -> Row:
        attentions = {name: self._attention(name) for name in self._names}
        models = {
            name: student.converted(self._model, each, student.untrained(each)) for name, each in attentions.items()
        }
        return measuring.step_times(self._bench, self._model, models, self._amount.rounds)

    def _attention(self, name: str) -> Any:
        return student.attention_of(self._model, sizes.strategy(name), self._layout.image)

    def _result(self, name: str, rows: dict[str, Row], time: float, seeds: int) -> report.Result:
        attention = self._attention(name)
        strategy, depth = attention.strategy, sum(attention.depth)
        flops = [strategy.flops(self._layout, attention.heads, attention.head_dim, layer) for layer in range(depth)]
        return report.Result(
            name,
            sizes.described(name),
            sizes.image_keys(name, strategy, self._layout),
            sum(flops) / len(flops),
            sum(tensor.numel() for tensor in attention.start().values()),
            time,
            rows[f"{name}_untrained"],
            tuple(rows[f"{name}_seed_{seed}"] for seed in range(seeds)),
            rows[f"{name}_factors"],
        )


if __name__ == "__main__":
    run(main)
