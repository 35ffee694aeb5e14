"""`dev.py train-demo`: the small FLUX from nothing.

First at 128 pixels, where a step costs a third, with positions spread to those of 256; then at 256; last, guidance is
distilled into it. Rectified flow as FLUX.1's: x = (1 - sigma) image + sigma noise, and the model is asked for noise -
image.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clear_core.distill.settings import GUIDANCE
from clear_core.whole_file import written_whole

from .pool import Pool
from .text import Texts

SIDE = 256
"""Pixels: the size that the model is for."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training at one size."""

    side: int
    steps: int
    batch: int
    scenes: int
    """Drawn once before it begins."""
    text: int
    """Tokens of the text that the model is shown; the host always sends 77, of which the last 50 are padding."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon for the blocks' matrices; the rest is AdamW's."""
    cooldown: float = 0.0
    """The share of the stage, at its end, in which the learning rate falls to zero."""
    unconditional: float = 0.0
    """The share of pictures whose prompt is left out: the empty text is shown."""
    guidance: float | None = None
    """Distill the model's own classifier-free guidance of this strength into it, as FLUX.1-dev's was."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result."""

    stages: tuple[Stage, ...]
    seed: int = 0
    learning_rate: float = 1.5e-3
    warmup: int = 200
    """Steps at the start of each stage in which the learning rate rises."""
    average: float = 0.998
    """Of the weights' moving average, which is what is kept."""
    save_every: int = 100


FULL = Recipe(
    stages=(
        Stage(128, 3500, 32, 20000, 24),
        Stage(SIDE, 700, 16, 6000, 24),
        Stage(SIDE, 900, 16, 6000, 77, cooldown=0.3),
        Stage(SIDE, 4200, 32, 40000, 77, optimizer="muon", cooldown=0.3, unconditional=0.1),
        Stage(SIDE, 600, 16, 40000, 77, optimizer="muon", cooldown=0.5, guidance=3.0),
    )
)
QUICK = Recipe(stages=(Stage(128, 60, 16, 256, 24, cooldown=0.3),), warmup=10)


@dataclass(slots=True)
class State:
    """Where the training is."""

    stage: int = 0
    step: int = 0
    """Within the stage."""
    losses: list[tuple[int, int, float]] = field(default_factory=list)
    """Stage, step and the mean loss since the last entry."""


class Training:
    """A model, its optimizers and its average."""

    def __init__(self, model: Any, recipe: Recipe, file: Path, *, bfloat16: bool = False) -> None:
        self.model, self.recipe, self._file, self._bfloat16 = model, recipe, file, bfloat16
        self.averaged = _copied(model)
        self.state = State()
        self._teacher = _copied(model)
        self._optimizers: list[torch.optim.Optimizer] = []
        if file.is_file():
            self._load()

    def go_on_from(self, weights: dict[str, Tensor], stages: int) -> None:
        """Begin after that many stages of the recipe, with the weights that they made. Before the first step."""
        if (self.state.stage, self.state.step) == (0, 0):
            self.model.load_state_dict(weights)
            self.averaged = _copied(self.model)
            self.state.stage = stages

    def run(self, pools: Callable[[Stage], Pool], texts: Texts, say: Callable[[str], None]) -> None:
        """Train to the recipe's end, from wherever it is. texts: of the pools' prompts; last, of the empty one."""
        while self.state.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.state.stage]
            if self.state.step == 0:
                # A stage needs nothing of the one before but what that one makes: its averaged weights.
                self.model.load_state_dict(self.averaged)
                self._teacher = _copied(self.model)
                self._optimizers = new_optimizers(self.model, stage.optimizer, self.recipe.learning_rate)
            self._train(stage, pools(stage), texts, say)
            self.state.stage, self.state.step = self.state.stage + 1, 0
            self._save()

    def _train(self, stage: Stage, pool: Pool, texts: Texts, say: Callable[[str], None]) -> None:
        started, first, summed, count = time.monotonic(), self.state.step, 0.0, 0
        while self.state.step < stage.steps:
            # A generator of its own for each step: a run that was stopped goes on with the same numbers.
            generator = torch.Generator().manual_seed(
                (self.recipe.seed << 40) + (self.state.stage << 32) + self.state.step
            )
            for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
                group["lr"] = self.recipe.learning_rate * self._share(stage)
            summed, count = summed + self._step(stage, pool, texts, generator), count + 1
            self.state.step += 1
            if self.state.step % 50 == 0:
                self.state.losses.append((self.state.stage, self.state.step, summed / count))
                pace = (time.monotonic() - started) / (self.state.step - first)
                left = pace * (stage.steps - self.state.step) / 60
                say(
                    f"{stage.side} px: step {self.state.step} of {stage.steps}, loss {summed / count:.4f}, "
                    f"{pace:.2f} s a step, {left:.0f} min left of this stage"
                )
                summed, count = 0.0, 0
            if self.state.step % self.recipe.save_every == 0:
                self._save()

    def _share(self, stage: Stage) -> float:
        """Of the full learning rate, at this step."""
        rising = min(1.0, (self.state.step + 1) / self.recipe.warmup)
        falling = stage.cooldown * stage.steps
        return min(rising, (stage.steps - self.state.step) / falling) if falling else rising

    def _step(self, stage: Stage, pool: Pool, texts: Texts, generator: torch.Generator) -> float:
        chosen = torch.randint(len(pool), (stage.batch,), generator=generator)
        image = pool.latents[chosen].float()
        prompts = pool.prompts[chosen]
        if stage.unconditional:
            left_out = torch.rand(stage.batch, generator=generator) < stage.unconditional
            prompts = torch.where(left_out, len(texts) - 1, prompts)
        context, pooled = texts.context[prompts, : stage.text].float(), texts.pooled[prompts].float()
        sample, scale = noised(image, generator), SIDE / stage.side
        if stage.guidance is not None:
            empty = texts.context[-1:, : stage.text].float(), texts.pooled[-1:].float()
            sample = replace(sample, velocity=self._guided(sample, (context, pooled), empty, stage.guidance, scale))
        value = self._gradients(sample, context, pooled, scale)
        if not math.isfinite(value):
            raise ArithmeticError(f"The loss is {value} at step {self.state.step} of {stage.side} px; start again.")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        # A short stage has to forget what it began with.
        keep = min(self.recipe.average, (1 + self.state.step) / (10 + self.state.step))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.averaged[name].lerp_(tensor, 1 - keep)
        return value

    def _guided(
        self, sample: Noised, text: tuple[Tensor, Tensor], empty: tuple[Tensor, Tensor], guidance: float, scale: float
    ) -> Tensor:
        """The velocity of the stage's first weights under classifier-free guidance."""

        def teacher(*inputs: Tensor, **options: Any) -> Tensor:
            return torch.func.functional_call(self.model, self._teacher, inputs, options)

        size = len(sample.latent)
        none = [one.expand(size, *one.shape[1:]) for one in empty]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            without, with_text = (predicted(teacher, sample, *one, scale=scale).float() for one in (none, text))
        return without + guidance * (with_text - without)

    def _gradients(self, sample: Noised, context: Tensor, pooled: Tensor, scale: float) -> float:
        """Of the batch in two halves, on a thread each: the model's operations are too small to divide. The loss."""
        parameters = list(self.model.parameters())

        def half(part: slice) -> tuple[Tensor, ...]:
            with OutOfPlace(), torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                loss = flow_loss(self.model, sample.part(part), context[part], pooled[part], scale=scale)
            share = len(context[part]) / len(context)
            return loss.detach() * share, *torch.autograd.grad(loss * share, parameters)

        middle = (len(context) + 1) // 2
        parts = [part for part in (slice(0, middle), slice(middle, None)) if len(context[part])]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            (loss, *total), *others = threads.map(half, parts)
        for more, *gradients in others:
            loss = loss + more
            for whole, gradient in zip(total, gradients, strict=True):
                whole.add_(gradient)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        return float(loss)

    def _save(self) -> None:
        saved = {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "teacher": self._teacher,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "state": (self.state.stage, self.state.step, self.state.losses),
        }
        with written_whole(self._file) as part:
            torch.save(saved, part)
        with self._file.with_suffix(".csv").open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("stage", "step", "loss"), *self.state.losses])

    def _load(self) -> None:
        saved = torch.load(self._file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.averaged, self._teacher = saved["averaged"], saved["teacher"]
        self.state = State(saved["state"][0], saved["state"][1], [tuple(entry) for entry in saved["state"][2]])
        if self.state.step:
            stage = self.recipe.stages[self.state.stage]
            self._optimizers = new_optimizers(self.model, stage.optimizer, self.recipe.learning_rate)
            for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)


def new_optimizers(model: Any, kind: Literal["adamw", "muon"], learning_rate: float) -> list[torch.optim.Optimizer]:
    """For all of a model's parameters. Muon's step is scaled to AdamW's size, so that one learning rate serves both."""
    named = list(model.named_parameters())
    for_muon = [one for name, one in named if kind == "muon" and one.ndim == 2 and "blocks" in name]
    taken = {id(one) for one in for_muon}
    rest = [one for _, one in named if id(one) not in taken]
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.97), weight_decay=0.01, fused=True)
    ]
    if for_muon:
        out.append(torch.optim.Muon(for_muon, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return out


class OutOfPlace(TorchFunctionMode):
    """`x += y` makes a new tensor: the host's blocks add their residuals to tensors that autograd has saved.

    PyTorch's own `allow_mutation_on_saved_tensors` takes a tensor of one block for one of an earlier block where no
    activation is recomputed: it tells tensors by address and version, and both come again (2.13).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.add_:  # what `+=` calls
            func = torch.Tensor.add
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Noised:
    """Images on their way to noise, and the velocity there."""

    latent: Tensor
    """[batch, 16, height, width]."""
    sigma: Tensor
    """[batch]: the share of noise."""
    velocity: Tensor
    """noise - image."""

    def part(self, part: slice) -> Noised:
        return Noised(self.latent[part], self.sigma[part], self.velocity[part])


def noised(image: Tensor, generator: torch.Generator) -> Noised:
    """Noise and its share, drawn for each image of a batch."""
    sigma = torch.sigmoid(torch.randn(len(image), generator=generator) + 0.3)
    noise = torch.randn(image.shape, generator=generator)
    part = sigma[:, None, None, None]
    return Noised((1 - part) * image + part * noise, sigma, noise - image)


def flow_loss(model: Any, sample: Noised, context: Tensor, pooled: Tensor, *, scale: float = 1.0) -> Tensor:
    """The mean squared error of the velocity. scale: of the tokens' positions."""
    return (predicted(model, sample, context, pooled, scale=scale) - sample.velocity).square().mean()


def predicted(model: Any, sample: Noised, context: Tensor, pooled: Tensor, *, scale: float) -> Tensor:
    """The velocity that a model gives: as `sample.latent`."""
    guidance = torch.full_like(sample.sigma, GUIDANCE)
    options = spread(scale)
    return model(sample.latent, sample.sigma, context, pooled, guidance, transformer_options=options)


def spread(scale: float) -> dict[str, Any]:
    """The host's option for positions: tokens of a small image where those of a large one lie."""
    if scale == 1:
        return {}
    shift = (scale - 1) / 2  # between the tokens that one of these stands for
    return {"rope_options": {"scale_y": scale, "scale_x": scale, "shift_y": shift, "shift_x": shift}}


def _copied(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
