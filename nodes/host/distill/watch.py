"""A distillation on its node: step, loss and time left, a picture now and then, Cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from PIL import Image

from ....clear_core.distill.run import Point
from ....clear_core.distill.samples import TrainingSet
from ....clear_core.distill.trained import Trained
from ....clear_core.show.numbers import duration, shown
from ....clear_core.weights import ClearWeights
from ..node_text import node_text_sender
from .job import Job, Result
from .pictures import all_pictures, picture
from .session import Session

_TIMED = 20  # the last steps, by which the time left is told
_PREVIEW = 512  # pixels of the longer side


def distill(
    job: Job, model: Any, samples: TrainingSet, start: ClearWeights | None, start_base: Any, node_id: str | None
) -> tuple[Result, dict[str, torch.Tensor]]:
    """Run a job with its progress on a node. The result, and images by the model that generated them.

    start_base: the MODEL that `start` was made for, or None.
    """
    watch = _Watch(job, node_text_sender(node_id))
    check = comfy.model_management.throw_exception_if_processing_interrupted
    try:
        result, session, trained = job.run(model, samples, start, watch.step, check, start_base=start_base)
    except comfy.model_management.OOM_EXCEPTION:
        watch.say(f"out of memory at step {watch.done + 1}; {watch.kept}. {_SMALLER}")
        raise
    watch.say(f"{job.file} is made: {len(result.history)} steps, from {result.note}")
    with torch.inference_mode(False):
        return result, all_pictures(session, trained)


_SMALLER = (
    "Try micro_batch 1, an fp8 base (weight_dtype of Load Diffusion Model), method 'layer by layer', output 'LoRA', or "
    "smaller images."
)


class _Watch:
    """The callbacks of one run."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._job, self.say = job, say
        self._bar: Any = ProgressBar(job.settings.steps)
        self._times: list[float] = [time.monotonic()]
        self.done = 0

    @property
    def kept(self) -> str:
        return f"the state of step {self.done} is kept in {self._job.state}" if self.done else "nothing was trained"

    def step(self, session: Session, trained: Trained, point: Point) -> None:
        self.done = point.step
        self._times = [*self._times[-_TIMED:], time.monotonic()]
        each = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        steps = self._job.settings.steps
        left = duration(each * (steps - point.step))
        self.say(
            f"step {point.step} of {steps}, {point.stage}\n"
            f"loss {shown(point.losses['loss'])}, {shown(each)} s a step, {left} left"
        )
        preview = None
        if point.step % self._job.save_every == 0 or point.step == 1:
            preview = _preview(session, trained)
        self._bar.update_absolute(point.step, steps, preview)


def _preview(session: Session, trained: Trained) -> tuple[str, Image.Image, int] | None:
    """As the host's samplers give them."""
    colours = picture(session, trained)
    if colours is None:
        return None
    image = Image.fromarray((colours * 255).round().byte().numpy())
    scale = _PREVIEW / max(image.size)
    size: Sequence[int] = [round(side * scale) for side in image.size]
    return "JPEG", image.resize((size[0], size[1]), Image.Resampling.BILINEAR), _PREVIEW
