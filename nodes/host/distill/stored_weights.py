"""A MODEL's attention projections, read one layer at a time in main memory: the MODEL is not loaded for it."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.weights import attention_keys
from ..attention_call import SETTINGS
from ..flux_model import transformer_of
from ..patching.weight_patches import host_keys

_PREFIX = "diffusion_model."


class StoredWeights:
    """Called with a name of a released file: the tensor, float32 on the CPU, with the MODEL's own patches, such as
    LoRAs, and without those of other MODELs that share its weights and are loaded at the moment."""

    def __init__(self, model: Any, role: str) -> None:
        """role: of the model, for errors. Raises ValueError for one that CLEAR does not work on, or is applied to."""
        try:
            self.transformer, self.family = transformer_of(model)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error
        if SETTINGS in model.model_options.get("transformer_options", {}):
            raise ValueError(f"{role}: CLEAR is applied to this model. Connect it from before Apply CLEAR Attention.")
        self._role = role
        self._names = host_keys(self.transformer, _PREFIX)
        self._entries: Any = model.get_key_patches(_PREFIX)
        self._layer = ""
        self._tensors: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be asked for, layer by layer."""
        blocks = len(self.transformer.double_blocks), len(self.transformer.single_blocks)
        return tuple(key for key in attention_keys(*blocks, self.family) if key in self._names)

    def __call__(self, key: str) -> Tensor:
        """Raises ValueError for a layer that is stored in a packed format."""
        found = self._names[key]
        name, rows = (found, None) if isinstance(found, str) else (found[0], found[1])
        layer = name.rpartition(".")[0]
        if layer != self._layer:
            self._layer, self._tensors = layer, {}
        if name not in self._tensors:
            self._tensors[name] = self._read(name)
        tensor = self._tensors[name]
        return tensor if rows is None else tensor.narrow(*rows)

    def _read(self, name: str) -> Tensor:
        (stored, convert), *patches = self._entries[name]
        layer = self.transformer.get_submodule(self._layer.removeprefix(_PREFIX))
        if not stored.is_floating_point() or getattr(layer, "pre_quant_scale", None) is not None:
            raise ValueError(
                f"{self._role}: {name} is stored in a packed format ({type(stored).__name__}, {stored.dtype}). Load "
                "the model from a file in bfloat16 or fp8."
            )
        # As the host reads one model to merge it into another.
        copy: Any = comfy.model_management.cast_to_device(stored, torch.device("cpu"), torch.float32, copy=True)
        made: Tensor = comfy.lora.calculate_weight(patches, convert(copy, inplace=True), name)
        return made.detach()
