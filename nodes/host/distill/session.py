"""A distillation of one MODEL: its samples as the transformer's inputs, its gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.distill.attention import BlockAttention, WindowAttention
from ....clear_core.distill.draws import draw
from ....clear_core.distill.optimizers import STATE
from ....clear_core.distill.run import Gradients
from ....clear_core.distill.samples import TrainingSet
from ....clear_core.distill.settings import LAYER_BY_LAYER, LORA, Settings
from ....clear_core.distill.trained import Trained
from ....clear_core.flux import FAMILIES
from ....clear_core.window import Window
from ..attention_call import SETTINGS
from ..flux_model import transformer_of
from .base import ROOM, Base
from .model import DistilledModel, Inputs


@dataclass(frozen=True, slots=True)
class Session:
    """model: a loaded MODEL. dtype, device: of the host's computing. samples: of one latent size.

    shape: of a latent, [channels, height, width]. family: of the model. base: a fingerprint of its attention
    projections.
    """

    model: Any
    student: DistilledModel
    samples: TrainingSet
    shape: tuple[int, ...]
    settings: Settings
    family: str
    base: str
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def open(
        cls, model: Any, samples: TrainingSet, settings: Settings, base: Base, attention: BlockAttention | None = None
    ) -> Session:
        """Loads the model, with its LoRAs. Raises ValueError for one that cannot be distilled.

        attention: of the student, in place of the window of the settings.
        """
        transformer, family = transformer_of(model)
        if family not in FAMILIES:
            raise ValueError(f"This model is {family}; weights can be distilled for {', '.join(FAMILIES)}.")
        if SETTINGS in model.model_options.get("transformer_options", {}):
            raise ValueError(
                "CLEAR is applied to this model: the teacher needs full attention. Connect the model from before "
                "Apply CLEAR Attention; weights to start from go to start_from."
            )
        if not len(samples):
            raise ValueError("The training set has no samples.")
        shape = tuple(samples.read(0).mean.shape)
        if shape[0] != model.model.latent_format.latent_channels:
            raise ValueError(
                f"The training set's latents have {shape[0]} channels, {family} needs "
                f"{model.model.latent_format.latent_channels}: it was made with another model's VAE."
            )
        rows, columns = (-(-side // transformer.patch_size) for side in shape[1:])
        if attention is None and (rows - 1) ** 2 + (columns - 1) ** 2 < settings.radius**2:
            raise ValueError(
                f"radius {settings.radius} covers the whole image of {columns} x {rows} tokens: there is nothing to "
                "distill. Choose a smaller radius, or larger images."
            )
        if settings.micro_batch > 1 and len(lengths := samples.text_tokens()) > 1:
            raise ValueError(
                f"micro_batch is {settings.micro_batch}, and the training set's prompts have {min(lengths)} to "
                f"{max(lengths)} text tokens: only prompts of one length can be computed together. Set micro_batch to "
                "1, or shorten the longest prompts."
            )
        attention = attention or WindowAttention(Window(settings.radius), settings.down_factor)
        student = DistilledModel(transformer, attention, base.gathered, settings.layers)
        base.load(model)
        dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        device = torch.device(model.load_device)
        known = fingerprint(student.own_weights(dtype, device))
        return cls(model, student, samples, shape, settings, family, known, dtype, device)

    def own_weights(self, device: torch.device | str) -> dict[str, Tensor]:
        """Copies of the model's own projections under the names of a released file, float32, on a device: made one by
        one, since all of them beside an fp8 model fill a card."""
        found = self.student.own_weights(self.dtype, self.device)
        return {name: tensor.detach().to(device, torch.float32, copy=True) for name, tensor in found}

    def gradients(self, trained: Trained, check: Callable[[], None] = lambda: None) -> Gradients:
        """For `run.Run`. check: called often; may raise to stop."""

        def add(stage: str, numbers: Sequence[int], share: float) -> Mapping[str, float]:
            inputs, target = self.inputs(numbers)
            share *= len(numbers)  # what is computed below are means over the samples
            check()
            if stage == LAYER_BY_LAYER:
                errors = self.student.layer_by_layer(trained, inputs, share, lambda block: check())
                each = {f"{block.kind} {block.index}": float(error) for block, error in errors.items()}
                return {"loss": sum(each.values()) / len(each), **each}
            weights = self.settings.loss_weights
            found = self.student.end_to_end(trained, inputs, target, share, lambda block: check(), weights)
            names = [f"{block.kind} {block.index}" for block in self.student.compared]
            each = dict(zip(names, found.attention_each.tolist(), strict=False))
            return {
                "loss": float(found.total),
                "flow": float(found.flow),
                "output": float(found.output),
                "attention": float(found.attention),
                **each,
            }

        return add

    def inputs(self, numbers: Sequence[int]) -> tuple[Inputs, Tensor]:
        """The transformer's inputs for samples of the run, with texts of one length, and the target noise - x0."""
        each, targets = zip(*map(self._inputs, numbers), strict=True)
        return _batch(each), torch.cat(targets)

    def _inputs(self, number: int) -> tuple[Inputs, Tensor]:
        settings = self.settings
        drawn = draw(settings.seed, number, len(self.samples), self.shape, settings.timestep_shift)
        sample = self.samples.read(drawn.image)
        latent = self.model.model.process_latent_in((sample.mean + sample.std * drawn.spread)[None])
        noise = drawn.noise[None]
        noisy = (1 - drawn.sigma) * latent + drawn.sigma * noise
        return self.inputs_of(noisy, drawn.sigma, sample.conditioning), (noise - latent).to(self.device)

    def inputs_of(self, latent: Tensor, sigma: float, conditioning: Mapping[str, Tensor]) -> Inputs:
        """What a sampler would give the transformer for one latent, [1, channels, height, width]. Fill, Canny and Depth
        get an empty image to go by, as the host gives them where none is connected."""
        known: dict[str, Any] = {"pooled_output": None, **{name: value[None] for name, value in conditioning.items()}}
        conds = self.model.model.extra_conds(
            **known, guidance=self.settings.guidance, noise=latent, latent_image=latent, device=self.device
        )
        given = {name: self._cast(cond.cond) for name, cond in conds.items()}
        given["context"] = given.pop("c_crossattn")
        latent = self._cast(latent)
        if "c_concat" in given:
            latent = torch.cat((latent, given.pop("c_concat")), dim=1)
        return Inputs(latent, torch.tensor([sigma], device=self.device), given)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    def home(self) -> torch.device:
        """Where the trained values, their gradients and the optimizer's state are kept: on the device if they fit
        beside the model, else in main memory."""
        free: Any = comfy.model_management.get_free_memory(self.device)
        copies = 2 + STATE[self.settings.optimizer]  # themselves and their gradients
        return self.device if self._values * 4 * copies + ROOM <= free else torch.device("cpu")

    @property
    def _values(self) -> int:
        """How many are trained, without biases and pooling weights."""
        shapes = self.student.shapes.values()
        if self.settings.output == LORA:
            return self.settings.rank * sum(map(sum, shapes))
        return sum(outputs * inputs for outputs, inputs in shapes)


def _batch(each: Sequence[Inputs]) -> Inputs:
    """Of inputs of one sample each. What is no tensor is the same for all samples."""
    given = {
        name: torch.cat([one.given[name] for one in each]) if isinstance(value, Tensor) else value
        for name, value in each[0].given.items()
    }
    return Inputs(torch.cat([one.latent for one in each]), torch.cat([one.sigma for one in each]), given)


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Of the values that stand at every hundredth place: two models that differ in training differ there."""
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(name.encode())
        # A copy: what numpy has seen of a tensor's memory cannot be freed, which a sharded base does.
        values = tensor.detach().flatten()[::101].to("cpu", torch.float32, copy=True)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
