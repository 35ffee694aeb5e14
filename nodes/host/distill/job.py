"""A distillation from a MODEL to a file: goes on where an earlier one of the same name stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ....clear_core.distill.output import file_metadata, save_lora, save_weights
from ....clear_core.distill.processes import Processes
from ....clear_core.distill.run import Point, Run, train
from ....clear_core.distill.samples import TrainingSet
from ....clear_core.distill.settings import ATTENTION, LORA, Settings
from ....clear_core.distill.trained import Trained, merged
from ....clear_core.pooling import mean_weight
from ....clear_core.weights import ClearWeights, Variant, read_weights
from ...options.training_set import check_name
from ..files import download_folder
from .base import Base, Replicated, Sharded
from .session import Session, fingerprint
from .start import trained_at_start
from .stored_weights import StoredWeights

_FOLDER = "clear_distillation"
_LICENCE = (
    "Derived from the base model: its licence applies to this file, for FLUX.1-dev and its fine-tunes the FLUX.1 [dev] "
    "Non-Commercial License."
)


@dataclass(frozen=True, slots=True)
class Result:
    """file: the weights or the LoRA. weights: for Apply; None in a process that does not write the file, and for a LoRA
    of more than the attention. history: all steps. note: what it started from.
    """

    file: Path
    weights: ClearWeights | None
    history: Sequence[Point]
    note: str


@dataclass(frozen=True, slots=True)
class Job:
    """name: of the file to be made, without its ending. save_every: steps. resume: go on from a state of that name.
    folder: for the file and the state; None for ComfyUI's own.
    """

    name: str
    settings: Settings
    save_every: int = 100
    resume: bool = True
    folder: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.save_every < 1:
            raise ValueError(f"save_every is {self.save_every}; 1 or more is allowed")

    @property
    def file(self) -> Path:
        """The result: in models/loras or models/clear."""
        folder = self.folder
        if folder is None:
            folder = Path(folder_paths.get_folder_paths("loras")[0]) if self._is_lora else download_folder()
        return folder / f"{self.name}.safetensors"

    @property
    def state(self) -> Path:
        """Of the training."""
        return (self.folder or Path(folder_paths.get_output_directory()) / _FOLDER) / f"{self.name}.pt"

    @property
    def _is_lora(self) -> bool:
        return self.settings.output == LORA

    def run(
        self,
        model: Any,
        samples: TrainingSet,
        start: ClearWeights | None,
        on_step: Callable[[Session, Trained, Point], None],
        check: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
        *,
        base: Base | None = None,
        start_base: Any = None,
    ) -> tuple[Result, Session, Trained]:
        """Train what is missing and write the file.

        check: called often; may raise to stop, which keeps the state. base: how the processes hold the model; None for
        the host's loading. start_base: the MODEL that `start` was made for, from which it is re-based.
        Raises ValueError for what does not fit together, RuntimeErrors of `clear_core.distill.step`, OSError where a
        file cannot be written.
        """
        with torch.inference_mode(False):
            held = Replicated() if base is None else base
            session = Session.open(model, samples, self.settings, held)
            stored = None if start_base is None else StoredWeights(start_base, "start_base")
            trained, note = trained_at_start(session, start, stored)
            identity = {
                "base": session.base,
                "samples": samples.identity,
                "start_from": start.name if start else "",
                "start_base": fingerprint((key, stored(key)) for key in stored.names) if stored else "",
            }
            self.state.parent.mkdir(parents=True, exist_ok=True)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            run = Run(trained, self.settings, session.gradients(trained, check), self.state, identity, processes)
            if not (self.resume and run.restore()):
                run.check_room()
            train(run, self.save_every, lambda point: on_step(session, trained, point))
            writes = processes is None or processes.rank == 0
            weights = self._write(session, trained) if writes else None
            if isinstance(held, Sharded) and self._merges and not writes:
                for _ in session.student.own_weights(session.dtype, session.device):
                    pass  # the process that writes merges the LoRA into the base, which all of them gather
            return Result(self.file, weights, tuple(run.history), note), session, trained

    @property
    def _merges(self) -> bool:
        """Whether the result is a LoRA that Apply gets as weights too."""
        return self._is_lora and self.settings.layers == ATTENTION

    def _write(self, session: Session, trained: Trained) -> ClearWeights | None:
        settings = self.settings
        dtype = torch.float32 if session.dtype == torch.float32 else torch.bfloat16
        metadata = file_metadata(settings.radius, settings.down_factor, self._facts(session), family=session.family)
        if not self._is_lora:
            save_weights(self.file, trained.parameters, metadata, dtype=dtype)
            return read_weights(self.file)
        save_lora(self.file, trained.parameters, metadata, dtype=dtype)
        if not self._merges:
            return None
        whole = merged(session.own_weights("cpu"), trained.parameters)
        return ClearWeights(
            self.file.name,
            Variant(settings.radius, settings.down_factor),
            {key: tensor.to(dtype) for key, tensor in whole.items()},
            dict.fromkeys(session.student.blocks, mean_weight(settings.down_factor))
            if settings.down_factor > 1
            else {},
            session.student.depth,
            family=session.family,
        )

    def _facts(self, session: Session) -> Mapping[str, str]:
        settings = {f"clear.{name}": value for name, value in self.settings.identity().items()}
        return {
            **settings,
            "clear.steps": str(self.settings.steps),
            "clear.base": session.base,
            "clear.samples": str(len(session.samples)),
            "clear.made": time.strftime("%Y-%m-%d"),
            "clear.licence": _LICENCE,
        }
