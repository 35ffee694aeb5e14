"""`python dev.py train-demo`: train the small FLUX of the demo and its autoencoder from nothing, and score them.

Everything is drawn, trained and scored on this machine; nothing is downloaded. The work lies in --folder, by default
.dev/small_flux. Run again after a stop, it goes on where it was. --quick is the same on a small scale, in a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clear_core.whole_file import written_whole

from .machine import processor_name
from .small_flux import files, gallery, scenes, text, train
from .small_flux.autoencoder import Coefficients, set_encoder
from .small_flux.command import host_with_text, run, say
from .small_flux.decoder import DecoderTraining
from .small_flux.model import SIZES, new_model
from .small_flux.pool import Pool, draw_pool, draw_scene

ROOT = Path(__file__).resolve().parents[1]
_KEY = "clear.small_flux"  # of the metadata
HELD_OUT = 100
"""Prompts that training never sees; the scores are of these."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each."""

    recipe: train.Recipe
    prompts: int
    """Of the training descriptions."""
    held_out: int
    decoder_steps: int
    decoder_scenes: int


FULL = Plan(train.FULL, prompts=1000, held_out=HELD_OUT, decoder_steps=1200, decoder_scenes=300)
QUICK = Plan(train.QUICK, prompts=24, held_out=4, decoder_steps=20, decoder_scenes=8)


class Work:
    """The folder of a training: what is made once is read the next time."""

    def __init__(self, folder: Path, clip_l: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self._folder, self._clip_l, self._plan, self._say = folder, clip_l, plan, say
        training, held_out = scenes.split(HELD_OUT)
        self.training, self.held_out = training[: plan.prompts], held_out[: plan.held_out]
        folder.mkdir(parents=True, exist_ok=True)

    def texts(self, name: str, prompts: list[str]) -> text.Texts:
        file = self._folder / f"text_{name}.safetensors"
        return text.cached(file, lambda: text.load_clip(self._clip_l), prompts, self._say)

    def coefficients(self) -> Coefficients:
        file = self._folder / "coefficients.safetensors"
        if not file.is_file():
            images = torch.stack([draw_scene(self.training[i % len(self.training)], 1, i, 128) for i in range(256)])
            found = Coefficients.fit(images)
            with written_whole(file) as part:
                save_file({"weight": found.weight, "bias": found.bias}, part)
        return Coefficients(**load_file(file))

    def autoencoder(self) -> Any:
        """A `comfy.taesd.taesd.TAESD`, trained as far as the plan says."""
        from comfy.taesd.taesd import TAESD

        coefficients = self.coefficients()
        vae = TAESD(latent_channels=SIZES["in_channels"])
        set_encoder(vae, coefficients)
        steps = self._plan.decoder_steps
        decoder = DecoderTraining(vae, coefficients, self._folder / "decoder.pt", steps)
        if decoder.step < steps:
            scenes_drawn = range(self._plan.decoder_scenes)
            images = [draw_scene(self.training[i % len(self.training)], 2, i, train.SIDE) for i in scenes_drawn]
            decoder.run(torch.stack(images), self._say)
        return vae

    def flux(self, start: Path | None, *, bfloat16: bool) -> train.Training:
        """Trained to the end of the recipe. start: a models folder, whose model has been through its first stages."""
        recipe = self._plan.recipe
        training = train.Training(new_model(recipe.seed), recipe, self._folder / "flux.pt", bfloat16=bfloat16)
        if start is not None:
            weights, metadata = files.read_flux(start)
            if _KEY not in metadata:
                raise ValueError(f"{start / files.FLUX} does not say how it was trained: train-demo has not made it.")
            training.go_on_from(weights, stages_done(json.loads(metadata[_KEY])["recipe"], recipe, start))
        texts = self.texts("training", [one.prompt for one in self.training])
        training.run(self._pool, texts.and_then(self.texts("empty", [""])), self._say)
        return training

    def _pool(self, stage: train.Stage) -> Pool:
        file = self._folder / f"scenes_{stage.side}_{stage.scenes}.safetensors"
        if not file.is_file():
            self._say(f"drawing {stage.scenes} scenes at {stage.side} pixels")
            pool = draw_pool(self.training, self.coefficients(), stage.scenes, stage.side, seed=stage.side)
            with written_whole(file) as part:
                save_file({"latents": pool.latents, "prompts": pool.prompts}, part)
        return Pool(**load_file(file))

    def evaluate(self, models: Path) -> dict[str, float]:
        """Scores of a models folder's files on the held-out prompts; their pictures as a sheet in the work's folder."""
        model, vae = files.load(models)
        texts = self.texts("held_out", [one.prompt for one in self.held_out])
        samples = gallery.latents(model, texts, range(len(self.held_out)), side=train.SIDE)
        images = gallery.decoded(vae, samples)
        gallery.sheet(images, 10, self._folder / "held_out.png")
        drawn = torch.stack([draw_scene(one, 3, i, train.SIDE) for i, one in enumerate(self.held_out[:20])])
        with torch.inference_mode():
            coded = vae.encode(drawn.permute(0, 2, 3, 1))
        again = gallery.decoded(vae, coded)
        error = (again - drawn.permute(0, 2, 3, 1)).square().mean()
        return {**gallery.judged(images, self.held_out), "autoencoder_psnr": float(-10 * error.log10())}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py train-demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the whole way in a minute, for tests")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the work lies (default .dev/small_flux)")
    parser.add_argument(
        "--clip", type=Path, metavar="FILE", help="the demo's CLIP-L (default: made in .dev/base/models)"
    )
    parser.add_argument("--score", action="store_true", help="only score what is there, or what --from names")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="DIR",
        help="train only the stages that this folder's model lacks, with its autoencoder",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16: faster on a CPU with AVX512-BF16 or AMX"
    )
    options = parser.parse_args(arguments)
    clip_l = host_with_text(options.clip)
    plan = QUICK if options.quick else FULL
    folder = options.folder or ROOT / ".dev" / ("small_flux_quick" if options.quick else "small_flux")
    work, started = Work(folder, clip_l, plan, say), time.monotonic()
    if not options.score:
        try:
            _train(work, plan, folder, options.start, bfloat16=options.bfloat16)
        except (ArithmeticError, OSError, SafetensorError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    found = work.evaluate(options.start if options.score and options.start else folder / "models")
    found["minutes"] = round((time.monotonic() - started) / 60, 1)
    (folder / "scores.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    say("\n".join(f"{name:18}{value:8.3f}" for name, value in found.items()))
    say(f"models, scores and pictures: {folder}")
    return 0


def stages_done(done: dict[str, Any], recipe: train.Recipe, folder: Path) -> int:
    """How many stages of a recipe a model has been through. Raises ValueError where they are others."""
    wanted = [asdict(stage) for stage in recipe.stages]
    same = zip(done["stages"], wanted, strict=False)  # a file may be older than a field of Stage
    if len(done["stages"]) > len(wanted) or any(not one.items() <= stage.items() for one, stage in same):
        raise ValueError(
            f"{folder / files.FLUX} was trained by other stages than this recipe's first {len(done['stages'])}: "
            f"{done['stages']}. Leave --from out to train from nothing."
        )
    return len(done["stages"])


def _train(work: Work, plan: Plan, folder: Path, start: Path | None, *, bfloat16: bool) -> None:
    training = work.flux(start, bfloat16=bfloat16)
    metadata = {_KEY: json.dumps({"sizes": dict(SIZES), "recipe": asdict(plan.recipe), "on": processor_name()})}
    files.save_flux(training.averaged, folder / "models", metadata)
    if start is None:
        files.save_vae(work.autoencoder(), folder / "models", metadata)
    else:  # its latents are what the model has learnt
        files.put(start / files.VAE, folder / "models" / files.VAE)
    if training.state.losses:
        say(f"loss at the end: {training.state.losses[-1][2]:.4f}")


if __name__ == "__main__":
    run(main)
