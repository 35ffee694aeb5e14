"""What a distillation is asked to do, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from ..weights import LARGEST_FACTOR, LARGEST_RADIUS
from .loss import LossWeights

LAYER_BY_LAYER, END_TO_END, BOTH = METHODS = ("layer by layer", "end to end", "both")
WEIGHTS, LORA = OUTPUTS = ("weights", "LoRA")
ADAMW, ADAMW_8BIT, PRODIGY = OPTIMIZERS = ("AdamW", "AdamW 8-bit", "Prodigy")
ATTENTION, BLOCKS = LAYERS = ("attention", "blocks")
LARGEST_RANK: Final = 1024
LARGEST_SHIFT: Final = 100.0
LARGEST_LOSS_WEIGHT: Final = 100.0
GUIDANCE: Final = 3.5
"""Of teacher, student and generated samples, as the authors trained."""


@dataclass(frozen=True, slots=True)
class Settings:
    """down_factor: of the down-sampled keys and values, 1 for none. rank: of a LoRA. batch: samples of a step.

    method: layer by layer trains each block on its own error, end to end on the authors' loss; both: half the steps
    each. cooldown: share of the steps, at the end, in which the learning rate falls linearly to zero; the authors' is
    constant. timestep_shift: of the noise's share, as in ComfyUI's model sampling: 1 draws all alike, as the authors,
    more than 1 draws more of the noisy ones, where an image's composition is decided.
    flow_weight, output_weight, attention_weight: of the loss's terms, see `LossWeights`.
    micro_batch: samples that are computed together; the gradients are the same but for rounding.
    layers: attention trains the projections of the image's attention, as the authors; blocks all linear layers of the
    transformer's blocks but the modulations, and goes with a LoRA only.
    Raises ValueError for a value that is not allowed.
    """

    radius: int = 16
    down_factor: int = 1
    method: str = BOTH
    output: str = WEIGHTS
    rank: int = 64
    steps: int = 2000
    batch: int = 1
    learning_rate: float = 1e-4
    optimizer: str = ADAMW
    guidance: float = GUIDANCE
    seed: int = 0
    cooldown: float = 0.0
    timestep_shift: float = 1.0
    flow_weight: float = LossWeights().flow
    output_weight: float = LossWeights().output
    attention_weight: float = LossWeights().attention
    micro_batch: int = 1
    layers: str = ATTENTION

    def __post_init__(self) -> None:
        allowed = {"method": METHODS, "output": OUTPUTS, "optimizer": OPTIMIZERS, "layers": LAYERS}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        limits = {"radius": LARGEST_RADIUS, "down_factor": LARGEST_FACTOR, "rank": LARGEST_RANK}
        for name in ("radius", "down_factor", "rank", "steps", "batch", "micro_batch"):
            value, most = getattr(self, name), limits.get(name, 10**6)
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value}; 1 to {most} is allowed")
        if self.layers == BLOCKS and self.output != LORA:
            raise ValueError(
                "layers is 'blocks' and output 'weights', but a weights file has the attention alone; set output to "
                "'LoRA', or layers to 'attention'"
            )
        if not 0 < self.learning_rate <= 10:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; it must be over 0 and at most 10")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is {self.cooldown:g}; 0 to 1 is allowed")
        if not 1 / LARGEST_SHIFT <= self.timestep_shift <= LARGEST_SHIFT:
            raise ValueError(
                f"timestep_shift is {self.timestep_shift:g}; {1 / LARGEST_SHIFT:g} to {LARGEST_SHIFT:g} is allowed"
            )
        for name in ("flow_weight", "output_weight", "attention_weight"):
            if not 0 <= getattr(self, name) <= LARGEST_LOSS_WEIGHT:
                raise ValueError(f"{name} is {getattr(self, name):g}; 0 to {LARGEST_LOSS_WEIGHT:g} is allowed")
        if not self.flow_weight + self.output_weight:
            raise ValueError(
                "flow_weight and output_weight are both 0, and the last blocks would not be trained; set one of them"
            )

    @property
    def loss_weights(self) -> LossWeights:
        return LossWeights(self.flow_weight, self.output_weight, self.attention_weight)

    def stage(self, step: int) -> str:
        """How a step, counted from 0, trains: `LAYER_BY_LAYER` or `END_TO_END`."""
        if self.method != BOTH:
            return self.method
        return LAYER_BY_LAYER if step < self.steps // 2 else END_TO_END

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        cooling = self.cooldown * self.steps
        return self.learning_rate * min(1.0, (self.steps - step) / cooling if cooling else 1.0)

    def identity(self) -> dict[str, str]:
        """What must be equal for a run to go on where another stopped. More steps may follow, but not where their
        number decides when the second half of `BOTH` or a cooldown begins."""
        fixed = self.method == BOTH or self.cooldown > 0
        free = {"micro_batch"} if fixed else {"micro_batch", "steps"}
        return {name: str(value) for name, value in asdict(self).items() if name not in free}
