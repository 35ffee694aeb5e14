"""Training forwards through ComfyUI's own FLUX: a dense teacher and a windowed student on one frozen base.

The base model stays frozen. The student's forward swaps the trained tensors in for the attention projections of the
image stream. In fused layers (qkv, linear1) only the rows for queries, keys and values are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ...clear_core.distill.attention import StudentAttention
from ...clear_core.distill.loss import Prediction, compared_blocks
from ...clear_core.distill.weights import spatial_key
from ...clear_core.weights import BlockId, attention_keys
from .attention_call import OVERRIDE, block_of
from .patching.weight_patches import Key, host_keys


@dataclass(frozen=True, slots=True)
class Batch:
    """What FLUX is given, as its `forward_orig` takes it: img [batch, image tokens, channels], txt [batch, text tokens,
    channels], their ids, timesteps and guidance [batch], y [batch, channels]."""

    img: Tensor
    img_ids: Tensor
    txt: Tensor
    txt_ids: Tensor
    timesteps: Tensor
    y: Tensor
    guidance: Tensor


class DistilledFlux:
    """flux: the host's module. student: its attention, for the batch's numbers of tokens."""

    def __init__(self, flux: Any, student: StudentAttention) -> None:
        self._flux, self._student = flux, student
        self.blocks = len(flux.double_blocks), len(flux.single_blocks)
        self._compared = compared_blocks(*self.blocks)
        names = host_keys(flux, "")
        self._slots = {key: _slot(names[key]) for key in attention_keys(*self.blocks)}
        self._frozen = {name: tensor.detach() for name, tensor in flux.state_dict().items()}
        self._mask = student.mask(next(iter(self._frozen.values())).device)

    def teacher_weights(self) -> dict[str, Tensor]:
        """The base's own projections, under the names of a released file: views."""
        return {key: self._rows(*slot) for key, slot in self._slots.items()}

    def teacher(self, batch: Batch) -> Prediction:
        """Dense, without gradients."""

        def dense(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return function(*args, **kwargs)

        with torch.no_grad():
            return self._predict({}, batch, dense)

    def student(self, weights: Mapping[str, Tensor], batch: Batch) -> Prediction:
        """weights: by the names of a released file. Run it, and the backward of what it gives, within `training`."""

        def windowed(function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            block = block_of(kwargs["transformer_options"])
            return self._student(query, key, value, self._mask, weights.get(spatial_key(block)))

        return self._predict(self._assembled(weights), batch, windowed)

    @staticmethod
    @contextmanager
    def training() -> Iterator[None]:
        """ComfyUI's blocks add their residuals in place, which autograd refuses where it has saved the sum."""
        with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            yield

    def _predict(self, changed: dict[str, Tensor], batch: Batch, attend: Callable[..., Tensor]) -> Prediction:
        seen: dict[BlockId, Tensor] = {}

        def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
            out = attend(function, *args, **kwargs)
            block = block_of(kwargs["transformer_options"])
            if block in self._compared:
                seen[block] = out
            return out

        given = (batch.img, batch.img_ids, batch.txt, batch.txt_ids, batch.timesteps, batch.y, batch.guidance)
        caller = _Caller(self._flux)
        tensors = {f"flux.{name}": tensor for name, tensor in (self._frozen | changed).items()}
        out = functional_call(caller, tensors, given, {"transformer_options": {OVERRIDE: override}})
        return Prediction(out, {block: seen[block] for block in self._compared})

    def _assembled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The host's fused tensors, with the trained rows in place of the frozen ones."""
        made: dict[str, Tensor] = {}
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for key, (name, rows) in self._slots.items():
            if rows is None:
                made[name] = weights[key]
            else:
                parts.setdefault(name, []).append((rows.start, weights[key]))
        for name, found in parts.items():
            trained = [rows for _, rows in sorted(found, key=lambda part: part[0])]
            rest = self._frozen[name][sum(len(rows) for rows in trained) :]
            made[name] = torch.cat([*trained, rest])
        return made

    def _rows(self, name: str, rows: slice | None) -> Tensor:
        tensor = self._frozen[name]
        return tensor if rows is None else tensor[rows]


class _Caller(torch.nn.Module):
    """FLUX's transformer without its patching of latents, as a module that `functional_call` takes."""

    def __init__(self, flux: Any) -> None:
        super().__init__()
        self.flux = flux

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.flux.forward_orig(*args, **kwargs)


def _slot(key: Key) -> tuple[str, slice | None]:
    """A name of the host's, and the rows of it where it is fused with others."""
    if isinstance(key, str):
        return key, None
    name, (dimension, start, length) = key
    assert dimension == 0
    return name, slice(start, start + length)
