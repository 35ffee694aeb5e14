"""A distillation of one MODEL: its samples as the transformer's inputs, its gradients, what is trained at the start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.distill.draws import draw
from ....clear_core.distill.optimizers import STATE
from ....clear_core.distill.samples import TrainingSet
from ....clear_core.distill.settings import LAYER_BY_LAYER, LORA, Settings
from ....clear_core.distill.trained import FullWeights, Lora, Trained
from ....clear_core.distill.weights import spatial_key, start_from
from ....clear_core.flux import FAMILIES
from ....clear_core.weights import ClearWeights
from ....clear_core.window import Window
from ..attention_call import SETTINGS
from ..flux_model import transformer_of
from .model import DistilledModel, Inputs

_ROOM = 4 * 2**30  # bytes left free on the device for activations
_TRIED = 4  # samples by which two starts are compared


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
    def open(cls, model: Any, samples: TrainingSet, settings: Settings) -> Session:
        """Loads the model, with its LoRAs. Raises ValueError for one that cannot be distilled."""
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
        if (rows - 1) ** 2 + (columns - 1) ** 2 < settings.radius**2:
            raise ValueError(
                f"radius {settings.radius} covers the whole image of {columns} x {rows} tokens: there is nothing to "
                "distill. Choose a smaller radius, or larger images."
            )
        comfy.model_management.load_models_gpu([model], memory_required=_ROOM)
        dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        device = torch.device(model.load_device)
        student = DistilledModel(transformer, Window(settings.radius), settings.down_factor)
        base = _fingerprint(student.own_weights(dtype, device))
        return cls(model, student, samples, shape, settings, family, base, dtype, device)

    def trained(self, start: ClearWeights | None) -> tuple[Trained, str]:
        """What is trained, as it starts, and a sentence about that. Raises ValueError where `start` does not fit.

        start: weights of the released format. They are taken where they bring the student closer to the teacher than
        the model's own do: weights of another model of the family may or may not.
        """
        settings = self.settings
        if settings.output == LORA:
            if start is not None:
                raise ValueError("start_from goes with output 'weights': a LoRA starts at zero.")
            device = self.home(2 * settings.rank * self._channels * len(self.student.projections))
            names = self.student.projections
            return Lora(names, self._channels, settings.rank, settings.down_factor, settings.seed, device), "zero"
        device = self.home((self._channels + 1) * self._channels * len(self.student.projections))
        own = self.own_weights(device)
        made = FullWeights(start_from(own, self.student.depth, settings.down_factor), device)
        if start is None:
            return made, "the model's own weights"
        self._check_start(start)
        tensors = dict(start.attention)
        for block, weight in start.spatial.items():
            tensors[spatial_key(block)] = weight
        if not start.spatial:
            tensors |= {key: weight for key, weight in made.parameters.items() if key.endswith("spatial_weight")}
        given = FullWeights({key: tensors[key] for key in made.parameters}, device)
        errors = [self._error(trained) for trained in (made, given)]
        said = f"{start.name} (error {errors[1]:.4g}; the model's own weights {errors[0]:.4g})"
        return (given, said) if errors[1] < errors[0] else (made, f"the model's own weights: better than {said}")

    def own_weights(self, device: torch.device | str) -> dict[str, Tensor]:
        """The model's own projections under the names of a released file, float32, on a device: moved one by one, since
        all of them beside an fp8 model fill a card."""
        found = self.student.own_weights(self.dtype, self.device)
        return {name: tensor.detach().to(device, torch.float32) for name, tensor in found}

    def gradients(
        self, trained: Trained, check: Callable[[], None] = lambda: None
    ) -> Callable[[str, int, float], Mapping[str, float]]:
        """For `run.Run`. check: called often; may raise to stop."""

        def add(stage: str, number: int, share: float) -> Mapping[str, float]:
            inputs, target = self.inputs(number)
            check()
            if stage == LAYER_BY_LAYER:
                errors = self.student.layer_by_layer(trained, inputs, share, lambda block: check())
                each = {f"{block.kind} {block.index}": float(error) for block, error in errors.items()}
                return {"loss": sum(each.values()) / len(each), **each}
            found = self.student.end_to_end(trained, inputs, target, share, lambda block: check())
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

    def inputs(self, number: int) -> tuple[Inputs, Tensor]:
        """The transformer's inputs for a sample of the run, and the target noise - x0."""
        drawn = draw(self.settings.seed, number, len(self.samples), self.shape)
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

    def home(self, elements: int) -> torch.device:
        """Where so many trained values, their gradients and the optimizer's state are kept: on the device if they fit
        beside the model, else in main memory."""
        free: Any = comfy.model_management.get_free_memory(self.device)
        copies = 2 + STATE[self.settings.optimizer]  # themselves and their gradients
        return self.device if elements * 4 * copies + _ROOM <= free else torch.device("cpu")

    @property
    def _channels(self) -> int:
        return int(self.student.transformer.hidden_size)

    def _check_start(self, start: ClearWeights) -> None:
        factor = start.variant.down_factor
        if start.family != self.family or start.blocks != self.student.depth:
            raise ValueError(
                f"start_from: {start.name} is for another model ({start.family}), this one is {self.family}."
            )
        if factor not in (1, self.settings.down_factor):
            raise ValueError(
                f"start_from: {start.name} has down_factor {factor}, this run has {self.settings.down_factor}. "
                "Set the same, or start from weights without down-sampled tokens."
            )

    def _error(self, trained: Trained) -> float:
        """The student's squared distance to the teacher, over a few samples."""
        total = 0.0
        for number in range(min(_TRIED, len(self.samples))):
            inputs, _ = self.inputs(number)
            with torch.no_grad():
                out, wanted = (
                    of.out.float() for of in (self.student.student(trained, inputs), self.student.teacher(inputs))
                )
                total += float((out - wanted).square().mean())
        return total


def _fingerprint(weights: Any) -> str:
    """Of the values that stand at every hundredth place: two models that differ in training differ there."""
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[::101].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
