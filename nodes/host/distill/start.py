"""What a distillation starts from: the model's own weights, or given ones where they come closer to the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....clear_core.distill.rebase import rebased
from ....clear_core.distill.settings import LORA
from ....clear_core.distill.trained import FullWeights, Lora, Trained
from ....clear_core.distill.weights import spatial_key, start_from
from ....clear_core.weights import ClearWeights
from .session import Session
from .stored_weights import StoredWeights

_TRIED = 4  # samples by which starts are compared
_OWN = "the model's own weights"


def trained_at_start(session: Session, start: ClearWeights | None, base: StoredWeights | None) -> tuple[Trained, str]:
    """What is trained, as it starts, and a sentence about that. Raises ValueError where something does not fit.

    start: weights of the released format. base: of the model that they were made for.
    Where `start` is given, up to three starts are tried on the same samples, and the closest to the teacher is taken:
    the model's own weights, those of `start`, and with `base` those of `start` re-based: W_start + (W_own - W_base).
    """
    settings, student = session.settings, session.student
    if start is None and base is not None:
        raise ValueError(
            "start_base goes with start_from: it is the model that those weights were made for. Connect weights to "
            "start_from, or nothing to start_base."
        )
    if settings.output == LORA:
        if start is not None:
            raise ValueError("start_from goes with output 'weights': a LoRA starts at zero.")
        device = session.home()
        return Lora(student.shapes, settings.rank, settings.down_factor, settings.seed, device), "zero"
    if start is not None:
        _check_start(session, start)
    if base is not None:
        _check_base(session, base)
    device = session.home()
    made = FullWeights(start_from(session.own_weights(device), student.depth, settings.down_factor), device)
    if start is None:
        return made, _OWN
    starts: dict[str, Callable[[], dict[str, Tensor]]] = {start.name: lambda: dict(start.attention)}
    if base is not None:
        starts[f"{start.name} re-based"] = lambda: _rebased(session, start, base, device)
    pooling = _pooling(start, made)
    best, errors = _OWN, {_OWN: _error(session, made)}
    for name, tensors in starts.items():
        # One after another: two sets of weights are there at once.
        other = FullWeights(_ordered({**tensors(), **pooling}, made), device)
        errors[name] = _error(session, other)
        if errors[name] < errors[best]:
            best, made = name, other
    others = " and ".join(f"{name} (error {error:.4g})" for name, error in errors.items() if name != best)
    return made, f"{best} (error {errors[best]:.4g}): better than {others}"


def _rebased(session: Session, start: ClearWeights, base: StoredWeights, device: torch.device) -> dict[str, Tensor]:
    own = session.student.own_weights(session.dtype, session.device)
    try:
        return rebased(start.attention, own, base, device)
    except ValueError as error:
        raise ValueError(f"start_base: {error}") from error


def _pooling(start: ClearWeights, own: FullWeights) -> dict[str, Tensor]:
    """Means where the weights have none."""
    if start.spatial:
        return {spatial_key(block): weight for block, weight in start.spatial.items()}
    return {key: weight for key, weight in own.parameters.items() if key.endswith("spatial_weight")}


def _ordered(tensors: dict[str, Tensor], own: FullWeights) -> dict[str, Tensor]:
    return {key: tensors[key] for key in own.parameters}


def _check_start(session: Session, start: ClearWeights) -> None:
    factor = start.variant.down_factor
    if start.family != session.family or start.blocks != session.student.depth:
        raise ValueError(
            f"start_from: {start.name} is for another model ({start.family}), this one is {session.family}."
        )
    if factor not in (1, session.settings.down_factor):
        raise ValueError(
            f"start_from: {start.name} has down_factor {factor}, this run has {session.settings.down_factor}. "
            "Set the same, or start from weights without down-sampled tokens."
        )


def _check_base(session: Session, base: StoredWeights) -> None:
    given, own = (
        (family, len(of.double_blocks), len(of.single_blocks), of.hidden_size)
        for family, of in ((base.family, base.transformer), (session.family, session.student.transformer))
    )
    if given != own:
        raise ValueError(
            f"start_base is {_described(*given)}; the model that is distilled is {_described(*own)}. Connect the model "
            "that the weights of start_from were made for: FLUX.1-dev for the released files."
        )


def _described(family: str, double: int, single: int, channels: int) -> str:
    return f"{family} with {double} double and {single} single blocks of {channels} channels"


def _error(session: Session, trained: Trained) -> float:
    """The student's squared distance to the teacher, over a few samples."""
    total = 0.0
    for number in range(min(_TRIED, len(session.samples))):
        inputs, _ = session.inputs([number])
        with torch.no_grad():
            out, wanted = (
                of.out.float() for of in (session.student.student(trained, inputs), session.student.teacher(inputs))
            )
            total += float((out - wanted).square().mean())
    return total
