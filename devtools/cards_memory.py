"""What ComfyUI loads, evicts and offloads on cards of some size before FLUX.1 is sampled in bands.

The host's own model management decides, on simulated cards: the text encoders and the autoencoder have been used, then
a sampler prepares a run. No step is computed; what one takes beside the weights is the memory model's figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .cards import GIB, Cards, cards
from .models import FULL_SIZE, flux_model

DRIVER = GIB // 2
"""Bytes of a card that its driver and the desktop take."""
ENCODERS, AUTOENCODER = "text encoders", "autoencoder"
_SIZES = {ENCODERS: (24, 200 * 2**20), AUTOENCODER: (16, 10 * 2**20)}
"""Layers and bytes of each: T5-XXL in fp8 with CLIP-L, FLUX's autoencoder in 16 bits."""
_TILE = 9 * GIB // 2  # what the host asks for to encode or decode a tile of 1024 px


@dataclass(frozen=True, slots=True)
class CardAfter:
    """One card when the run has been prepared; bytes.

    kept: other models of which something is still on it. need: beside the weights, in a step.
    """

    device: torch.device
    loaded: int
    offloaded: int
    kept: tuple[str, ...]
    bands: int
    need: int
    free: int

    @property
    def spare(self) -> int:
        return self.free - self.need


def prepared(
    count: int,
    memory: int,
    dtype: torch.dtype,
    pixels: int,
    in_bands: Callable[[Any], Any],
    module: Callable[[str], Any],
    bands: int = 0,
) -> list[CardAfter]:
    """`count` cards of `memory` bytes, FLUX.1 with weights of `dtype`, an image of `pixels` a side.

    in_bands: patches a MODEL as the nodes do. bands: as set on the node; 0 for as many as fit. module: a module of the
    pack by its name.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sampler_helpers

    load = comfy.model_management.load_models_gpu
    with FakeTensorMode():
        flux, companions = _flux(dtype), {name: _other(name) for name in _SIZES}
    for module_of in (flux, *companions.values()):
        _replace(module_of, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
    with cards(count, memory=memory) as found:
        drivers = [torch.empty(DRIVER, dtype=torch.uint8, device=device) for device in found.devices]
        others = {name: _at_home(found, other) for name, other in companions.items()}
        load([others[ENCODERS]])
        load([others[AUTOENCODER]], memory_required=_TILE)
        model = in_bands(_at_home(found, flux))
        options = comfy.model_patcher.create_model_options_clone(model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
        shape = (1, 16, pixels // 8, pixels // 8)
        comfy.sampler_helpers.prepare_sampling(model, shape, {}, options)
        after = _after(found, model, shape, others, module, bands)
        del drivers
    return after


def _after(
    found: Cards, model: Any, shape: Any, others: dict[str, Any], module: Callable[[str], Any], bands: int
) -> list[CardAfter]:
    import comfy.model_management

    memory, predicted = module("nodes.host.bands.memory"), module("clear_core.bands.memory")
    lane, settings = module("nodes.host.bands.replicas").Lane, module("nodes.host.attention_call").SETTINGS
    of = {type(model.model)}
    patchers = {p.load_device: p for p in comfy.model_management.loaded_models() if type(p.model) in of}
    lanes = [lane(device, patchers[device].model.diffusion_model, 1.0, patchers[device]) for device in found.devices]
    clear = model.model_options["transformer_options"][settings]
    demand = memory.Demand.of(model, shape, clear, lanes)
    fitting = memory.plan_that_fits(demand.plan_of, lanes, (), lanes[0].flux, 2, 512, 1)
    plan = demand.plan_of(bands) if bands else fitting
    after = []
    for number, device in enumerate(found.devices):
        patcher = patchers[device]
        shape_there = memory.shape_of(lanes[number].flux, 2, device, offloaded=memory.is_offloaded(patcher))
        need = predicted.lane_bytes(plan, number, 512, shape_there)
        if len(plan.bands) == 1:
            need = predicted.stock_bytes(plan.image, 512, shape_there)
        on_card, size = _bytes_on(patcher, device), sum(weight.nbytes for weight in patcher.model.parameters())
        kept = [name for name, other in others.items() if _bytes_on(other, device)]
        free: Any = comfy.model_management.get_free_memory(device)
        after.append(CardAfter(device, on_card, size - on_card, tuple(kept), len(plan.bands), need, int(free)))
    return after


def _bytes_on(patcher: Any, device: torch.device) -> int:
    return sum(p.nbytes for p in patcher.model.parameters() if p.device == device)


def _at_home(found: Cards, module: Any) -> Any:
    """A MODEL in main memory, without content there, to be loaded on the first card. module: on the device meta."""
    import comfy.model_patcher

    _replace(module, lambda tensor: FakeTensor(found.mode, tensor, torch.device("cpu")))
    module.device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(module, found.devices[0], torch.device("cpu"))


def _replace(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put function(tensor) in the place of every parameter and buffer."""
    for layer in module.modules():
        for name, weight in layer._parameters.items():
            if weight is not None:
                layer._parameters[name] = torch.nn.Parameter(function(weight), requires_grad=False)
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = None if buffer is None else function(buffer)


def _other(name: str) -> Any:
    """A model of the right size, layer by layer."""
    import comfy.ops

    layers, size = _SIZES[name]
    width = 1024
    made = [comfy.ops.disable_weight_init.Linear(width, size // width, bias=False) for _ in range(layers)]
    module = torch.nn.Sequential(*made)
    for layer in made:
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
    return module


def _flux(dtype: torch.dtype) -> Any:
    """FLUX.1 with weights of a dtype, computing in bfloat16."""
    base = flux_model(dtype=torch.bfloat16, **FULL_SIZE).model
    if dtype != torch.bfloat16:
        for module in base.diffusion_model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        base.diffusion_model.dtype = dtype
        base.manual_cast_dtype = torch.bfloat16
    return base
