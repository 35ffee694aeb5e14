"""A run of training: its steps, and its state on disk, from which it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..whole_file import written_whole
from .optimizers import STATE
from .processes import Alone, Processes
from .settings import LAYER_BY_LAYER, Settings
from .step import NoGradientError, NotFiniteError, clip
from .trained import Trained, by_block

Gradients = Callable[[str, Sequence[int], float], Mapping[str, float]]
"""(stage, numbers of samples, share): adds share times each sample's gradients, returns the means of their losses by
name."""


class StateError(ValueError):
    """The state on disk is of another run, or cannot be read; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step, counted from 1. losses: means over its samples, by name. norm: of the gradients before clipping, the
    largest of the blocks' where each is trained on its own."""

    step: int
    stage: str
    losses: Mapping[str, float]
    norm: float


class Run:
    """trained: is changed. state: where the run's state is kept. identity: what else makes it this run, by name."""

    def __init__(
        self,
        trained: Trained,
        settings: Settings,
        gradients: Gradients,
        state: Path,
        identity: Mapping[str, str],
        processes: Processes | None = None,
    ) -> None:
        self._trained, self._settings, self._gradients = trained, settings, gradients
        self._path, self._processes = state, processes or Alone()
        if settings.batch % self._processes.world:
            raise ValueError(
                f"batch is {settings.batch}; it must be a multiple of the {self._processes.world} processes sharing it"
            )
        self._identity = {**settings.identity(), **identity}
        self._optimizer = self._new_optimizer()
        self._saved = 0
        self.history: list[Point] = []

    @property
    def step(self) -> int:
        """Steps that are done."""
        return len(self.history)

    @property
    def alone(self) -> bool:
        return self._processes.world == 1

    @property
    def finished(self) -> bool:
        return self.step >= self._settings.steps

    def check_room(self) -> None:
        """Raises ValueError where the state, and what is made of it, will not fit on the disk."""
        size = sum(tensor.nbytes for tensor in self._trained.parameters.values())
        needed = size * (2 + STATE[self._settings.optimizer])  # the weights, and as much again for the result
        free = shutil.disk_usage(self._path.parent).free
        if free < needed:
            raise ValueError(
                f"The training's state needs {needed / 2**30:.1f} GiB in {self._path.parent}, where "
                f"{free / 2**30:.1f} GiB are free. Free some, or train a LoRA or a smaller rank."
            )

    def restore(self) -> bool:
        """Go on from the state on disk; False where there is none. Raises StateError."""
        if not self._path.is_file():
            return False
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            identity, parameters = state["identity"], state["parameters"]
        except Exception as error:  # whatever the unpickler meets in a damaged file
            raise StateError(
                f"{self._path} cannot be read ({error}). Delete it, or turn resume off, to start anew."
            ) from error
        other = [
            f"{name} was {was}, now {self._identity.get(name, 'not given')}"
            for name, was in identity.items()
            if was != self._identity.get(name)
        ]
        if other:
            raise StateError(
                f"{self._path} is the state of another run: {'; '.join(other)}. Set these as they were to go on, "
                "choose another name, or turn resume off to start anew."
            )
        with torch.no_grad():
            for name, parameter in self._trained.parameters.items():
                parameter.copy_(parameters[name])
        self.history = [Point(*point) for point in state["history"]]
        self._optimizer.load_state_dict(state["optimizer"])
        self._saved = self.step
        return True

    def save(self) -> None:
        """Write the state, whole or not at all; all processes have to call it. Raises OSError where that fails."""
        if self._saved == self.step:
            return
        self._saved = self.step
        optimizer = self._processes.whole_state(self._optimizer)
        if optimizer is None:
            return
        state: dict[str, Any] = {
            "identity": self._identity,
            "parameters": {name: tensor.detach() for name, tensor in self._trained.parameters.items()},
            "optimizer": optimizer,
            "history": [(p.step, p.stage, dict(p.losses), p.norm) for p in self.history],
        }
        with written_whole(self._path) as part:
            torch.save(state, part)

    def advance(self) -> Point:
        """One step. Raises NotFiniteError, NoGradientError and whatever `gradients` does; nothing has changed then."""
        stage = self._settings.stage(self.step)
        if self.step and stage != self._settings.stage(self.step - 1):
            self._optimizer = self._new_optimizer()  # the losses have another scale, and so have their moments
        parameters = self._trained.parameters
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate(self.step)
        self._optimizer.zero_grad()
        try:
            losses = self._losses(stage)
            norm = self._clipped(stage)
            if not self.step and norm == 0:
                raise NoGradientError(
                    "All gradients are zero at the first step: the window covers the whole image, or the student "
                    "computes what the teacher does. Choose a smaller radius, or larger images."
                )
            self._optimizer.step()
        finally:
            for parameter in parameters.values():
                parameter.grad = None
        self.history.append(Point(self.step + 1, stage, losses, norm))
        return self.history[-1]

    def _losses(self, stage: str) -> dict[str, float]:
        """Gradients of this step's samples, and their mean losses."""
        batch, processes = self._settings.batch, self._processes
        total: dict[str, float] = {}
        own = range(self.step * batch + processes.rank, (self.step + 1) * batch, processes.world)
        for at in range(0, len(own), self._settings.micro_batch):
            numbers = own[at : at + self._settings.micro_batch]
            for name, loss in self._gradients(stage, numbers, 1 / batch).items():
                total[name] = total.get(name, 0.0) + loss * len(numbers) / batch
        if processes.world > 1:
            total = self._added_up(total)
        bad = [name for name, loss in total.items() if not -float("inf") < loss < float("inf")]
        if bad:
            raise NotFiniteError(
                f"The loss is not finite at step {self.step + 1} ({bad[0]} is {total[bad[0]]}). Lower learning_rate; "
                "if it is the first step, look for NaN in the model or the training set."
            )
        return total

    def _added_up(self, losses: Mapping[str, float]) -> dict[str, float]:
        names = sorted(losses)
        values = torch.tensor([losses[name] for name in names], dtype=torch.float64)
        gradients = []
        for parameter in self._trained.parameters.values():
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self._processes.add_up([values, *gradients])
        return dict(zip(names, values.tolist(), strict=True))

    def _clipped(self, stage: str) -> float:
        if stage != LAYER_BY_LAYER:
            return float(clip(self._trained.parameters))
        return max(float(clip(group)) for group in by_block(self._trained).values())

    def _new_optimizer(self) -> Any:
        settings = self._settings
        weights = list(self._trained.parameters.values())
        return self._processes.optimizer(settings.optimizer, weights, settings.learning_rate)


def train(run: Run, save_every: int, on_step: Callable[[Point], None]) -> None:
    """Steps until the run is finished. Its state is saved every `save_every` steps, at the end, and when something
    stops it: what was done is not lost, but for several processes, which cannot save when one of them is gone."""
    try:
        while not run.finished:
            point = run.advance()
            on_step(point)
            if point.step % save_every == 0:
                run.save()
    except BaseException:
        if run.alone:
            run.save()
        raise
    run.save()
