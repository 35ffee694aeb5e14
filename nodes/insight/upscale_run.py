"""How far an upscale in stages is, and how long the rest takes: counted in operations, timed by what has run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ...clear_core.flux import token_grid
from ...clear_core.layout import TokenLayout
from ...clear_core.pattern import attention_flops
from ...clear_core.show.step_time import Work
from ..options.clear import ClearSettings
from ..options.stages import Stage
from ..options.vae import Way

Part = Literal["encode", "sample", "decode"]
PARTS: Final[tuple[Part, ...]] = ("encode", "sample", "decode")

# Operations of FLUX's autoencoder for a pixel; the core's tiled nodes go over the image three times.
_VAE: Final[Mapping[Part, float]] = {"encode": 4.3e6, "decode": 9.5e6}
_TILED_PASSES: Final = 3


def stage_work(
    stage: Stage, clear: ClearSettings, layers: int, text: int, steps: int, vae_way: Way
) -> dict[Part, float]:
    """Operations of each part of a stage. layers: of the model. text: tokens of a prompt."""
    layout = TokenLayout(text, token_grid(stage.width, stage.height))
    attention = layers * attention_flops(layout, clear.window, down_factor=clear.down_factor)
    step = Work.of(stage.width, stage.height, attention, blocks=layers, text=text)
    passes = _TILED_PASSES if vae_way == "tiles" else 1
    vae: dict[Part, float] = {part: passes * cost * stage.width * stage.height for part, cost in _VAE.items()}
    return {**vae, "sample": steps * (step.matrices + step.attention)}


@dataclass(slots=True)
class _Piece:
    """One part of one stage of one image. done: share that has run. seconds: what that took; 0 from the cache."""

    image: int
    stage: int
    part: Part
    work: float
    done: float = 0.0
    seconds: float = 0.0
    timed: float = 0.0  # the share that `seconds` are of


@dataclass(slots=True)
class UpscaleRun:
    """The parts of all stages of all images, by the node that computes each.

    now: seconds of a clock.
    """

    now: Callable[[], float] = time.monotonic
    _stages: list[list[Stage]] = field(default_factory=list)
    _pieces: dict[str, _Piece] = field(default_factory=dict)
    _current: _Piece | None = None
    _step: tuple[int, int] = (0, 0)
    _since: float = 0.0  # when the current piece began, or its first step ended, which also loads the model
    _from: float = 0.0  # its share then

    def add(
        self, stages: Sequence[Stage], nodes: Sequence[Mapping[Part, str]], work: Sequence[Mapping[Part, float]]
    ) -> None:
        """One more image. nodes, work: of each stage, the id of the node and the operations of each part."""
        image = len(self._stages)
        self._stages.append(list(stages))
        for number, (ids, operations) in enumerate(zip(nodes, work, strict=True)):
            for part in PARTS:
                self._pieces[ids[part]] = _Piece(image, number, part, operations[part])

    def has(self, node: str) -> bool:
        return node in self._pieces

    def started(self, node: str) -> None:
        """What is before it in its image is done: what came from the cache never starts."""
        piece = self._pieces[node]
        for other in self._pieces.values():
            if other is piece:
                break
            if other.image == piece.image:
                other.done = 1.0
        self._current, self._step = piece, (0, 0)
        self._since, self._from = self.now(), 0.0

    def stepped(self, node: str, value: float, most: float) -> None:
        """A node has reported its progress."""
        piece = self._pieces[node]
        if piece is not self._current:
            self.started(node)
        piece.done = min(1.0, max(piece.done, value / most if most else 0.0))
        if piece.part == "sample":
            self._step = (round(value), round(most))
        if self._from:
            piece.seconds, piece.timed = self.now() - self._since, piece.done - self._from
        elif piece.done < 1:
            self._since, self._from = self.now(), piece.done

    def finished(self, node: str) -> None:
        piece = self._pieces[node]
        if piece is self._current and not piece.timed:
            piece.seconds, piece.timed = self.now() - self._since, 1.0 - self._from
        piece.done = 1.0

    @property
    def fraction(self) -> float:
        """Of all work, 0 to 1."""
        total = sum(piece.work for piece in self._pieces.values())
        return sum(piece.done * piece.work for piece in self._pieces.values()) / total if total else 0.0

    def state(self) -> dict[str, Any] | None:
        """For the page; None before the first part begins. stage, image: from 1. left: seconds, None where not known.

        stage_left: of the sampling of this stage.
        """
        piece = self._current
        if piece is None:
            return None
        steps, most = self._step
        return {
            "image": piece.image + 1,
            "images": len(self._stages),
            "sizes": [[stage.width, stage.height] for stage in self._stages[piece.image]],
            "stage": piece.stage + 1,
            "part": piece.part,
            "step": steps,
            "steps": most,
            "fraction": self.fraction,
            "stage_left": self._left(lambda one: (one.image, one.stage) == (piece.image, piece.stage)),
            "left": self._left(lambda one: True),
        }

    def _left(self, wanted: Callable[[_Piece], bool]) -> float | None:
        """Seconds for what is still to do of the wanted pieces."""
        left = 0.0
        for piece in filter(wanted, self._pieces.values()):
            if piece.done < 1:
                pace = self._pace(piece)
                if pace is None:
                    return None
                left += (1 - piece.done) * piece.work * pace
        return left

    def _pace(self, piece: _Piece) -> float | None:
        """Seconds an operation: of the piece itself, else of the last of its kind, else of any."""
        timed = [one for one in self._pieces.values() if one.timed > 0 and one.work > 0]
        own = [one for one in timed if one is piece]
        alike = [one for one in timed if (one.part == "sample") == (piece.part == "sample")]
        chosen = (own or alike or timed)[-1:]
        return chosen[0].seconds / (chosen[0].timed * chosen[0].work) if chosen else None
