"""Images by teacher, untrained window and student of one prompt and seed, in the colours of the host's previews."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import comfy.samplers
import torch
from torch import Tensor

from ....clear_core.distill.draws import draw
from ....clear_core.distill.trained import Trained, Untrained
from ..latent_colours import latent_colours
from .session import Session

_STEPS = 8
TEACHER, UNTRAINED, STUDENT = "teacher, full attention", "window, untrained", "student"


def all_pictures(session: Session, trained: Trained) -> dict[str, Tensor]:
    """By the model that generated them: float32 [height, width, 3], 0 to 1. Empty where the host has no preview."""
    untrained = Untrained(session.settings.down_factor)
    by: Mapping[str, Trained | None] = {TEACHER: None, UNTRAINED: untrained, STUDENT: trained}
    made = {name: picture(session, student) for name, student in by.items()}
    return {name: image for name, image in made.items() if image is not None}


def picture(session: Session, trained: Trained | None) -> Tensor | None:
    """The first sample's prompt from a fixed seed, a few Euler steps. trained: None for the teacher."""
    sample = session.samples.read(0)
    noise = draw(session.settings.seed, 0, len(session.samples), session.shape).noise[None]
    sigmas = comfy.samplers.calculate_sigmas(session.model.get_model_object("model_sampling"), "simple", _STEPS)
    latent = noise.to(session.device)
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            inputs = session.inputs_of(latent, float(sigma), sample.conditioning)
            found = session.student.teacher(inputs) if trained is None else session.student.student(trained, inputs)
            latent = latent + (float(following) - float(sigma)) * found.out.float()
    return latent_colours(session.model.get_model_object("latent_format"), latent)
