"""`python dev.py distill --replay FILE --out OUT`: a recorded training step, computed by this pack.

FILE holds the inputs of a step of the authors' script: base.*, clear.*, the batch, and metadata that says window,
factor and sizes. OUT gets what the step computes, under the names that the authors' recordings use:

    teacher.out, teacher.attn.*      the dense teacher
    start.*                          the student that equals the teacher, its pooling weights means
    pert.*                           the student with the weights of clear.*
    *.loss*, *.grad.*, *.grad_norm   before the first step; *.losses, *.grad_norms of three steps
    start.after3.*                   the weights after them
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .inprocess import import_host, pack_module
from .models import Golden, packed, sinusoids, unpacked

STEPS, LEARNING_RATE = 3, 1e-3
"""Of the recordings."""


class ReplayError(ValueError):
    """The file is not a recorded step; the text says what is missing."""


def replay(path: Path) -> dict[str, Tensor]:
    """What the step computes, by name."""
    return _Replay(_read(path)).tensors()


def _read(path: Path) -> Golden:
    try:
        golden = Golden.read(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ReplayError(f"{path} is no recorded step: {error!r}") from error
    missing = [name for name in ("x", "x0", "noise", "t", "context", "y", "guidance") if name not in golden.tensors]
    missing += [prefix for prefix in ("base.", "clear.") if not golden.part(prefix)]
    if missing:
        raise ReplayError(f"{path} lacks {', '.join(missing)}: it is no recorded step")
    return golden


class _Replay:
    def __init__(self, golden: Golden) -> None:
        window = pack_module("clear_core.window").Window(golden.radius)
        parts = {
            name: pack_module(f"clear_core.distill.{name}")
            for name in ("loss", "optimizers", "trained", "weights", "step")
        }
        self._losses, self._full = parts["loss"].losses, parts["trained"].FullWeights
        self._weights, self._step, self._adamw = parts["weights"], parts["step"], parts["optimizers"].adamw
        self._shape = pack_module("clear_core.distill.output").released_shape
        host = pack_module("nodes.host.distill.model")
        self._add_gradients = host.add_gradients
        self._golden = golden
        self._first = int(golden.metadata.get("attn_first_token", "0"))
        attention = pack_module("clear_core.distill.attention").WindowAttention(window, golden.down_factor)
        self._model = host.DistilledModel(golden.model().model.diffusion_model, attention)
        of = golden.tensors
        given = {"context": of["context"], "y": of["y"], "guidance": of["guidance"]}
        self._inputs = host.Inputs(unpacked(of["x"], golden.height), of["t"], given)
        self._target = of["noise"] - of["x0"]

    def tensors(self) -> dict[str, Tensor]:
        golden = self._golden
        own = dict(self._model.own_weights(torch.float32, torch.device("cpu")))
        start = self._full(self._weights.start_from(own, self._model.depth, golden.down_factor))
        changed = self._full(golden.part("clear."))
        with _frequencies(golden.tensors.get("timestep_freqs")):
            teacher = self._model.teacher(self._inputs)
            made = {"teacher.out": packed(teacher.out), **self._attention("teacher", teacher)}
            made |= self._steps("start", start, teacher) | self._steps("pert", changed, teacher)
        made["out"] = made["pert.out"]
        return {name: tensor.detach().contiguous().clone() for name, tensor in made.items()}

    def _steps(self, point: str, trained: Any, teacher: Any) -> dict[str, Tensor]:
        """Three steps; the first in full."""
        weights = trained.parameters
        optimizer = self._adamw(weights.values(), LEARNING_RATE)
        made: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for number in range(STEPS):
            optimizer.zero_grad()
            prediction = self._model.student(trained, self._inputs)
            found = self._losses(prediction, teacher, self._target)
            self._add_gradients(found.total, list(weights.values()))
            if number == 0:
                made = self._first_step(point, prediction, found, weights)
            norms.append(self._step.clip(weights))
            losses.append(torch.stack([found.flow, found.output, found.attention, found.total]).detach())
            optimizer.step()
        made |= {f"{point}.losses": torch.stack(losses), f"{point}.grad_norms": torch.stack(norms)}
        made[f"{point}.grad_norm"] = norms[0]
        if point == "start":
            made |= {f"start.after3.{key}": self._shape(key, weight) for key, weight in weights.items()}
        return made

    def _first_step(self, point: str, prediction: Any, found: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = {
            f"{point}.out": packed(prediction.out),
            f"{point}.loss_fm": found.flow,
            f"{point}.loss_distill": found.output,
            f"{point}.loss_attn": found.attention,
            f"{point}.loss": found.total,
            f"{point}.loss_attn_each": found.attention_each,
        }
        if point == "start":
            made |= self._attention(point, prediction)
        for key, weight in weights.items():
            assert weight.grad is not None
            made[f"{point}.grad.{key}"] = self._shape(key, weight.grad.clone())
        return made

    def _attention(self, name: str, prediction: Any) -> dict[str, Tensor]:
        return {
            f"{name}.attn.single_transformer_blocks.{block.index}.attn": out[:, self._first :]
            for block, out in prediction.attention.items()
        }


def _frequencies(frequencies: Tensor | None) -> AbstractContextManager[Any]:
    """The timestep's sinusoids with the recording's frequencies, where it has them."""
    if frequencies is None:
        return nullcontext()
    return mock.patch("comfy.ldm.flux.model.timestep_embedding", sinusoids(frequencies))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py distill", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replay", type=Path, metavar="FILE", required=True, help="a recorded step, as safetensors")
    parser.add_argument("--out", type=Path, metavar="OUT", required=True, help="what it computes, as safetensors")
    options = parser.parse_args(arguments)
    if not options.out.resolve().parent.is_dir():
        print(f"There is no folder {options.out.resolve().parent} for --out.", file=sys.stderr)
        return 1
    import_host()
    try:
        made = replay(options.replay)
    except ReplayError as error:
        print(error, file=sys.stderr)
        return 1
    save_file(made, options.out)
    losses = ", ".join(f"{float(loss):.6f}" for loss in made["start.losses"][:, -1])
    print(f"{len(made)} tensors in {options.out}; the loss in three steps: {losses}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
