"""Weights of a block prepared once for all bands of a lane.

Where a layer's weights are offloaded, paged, quantised or patched while they are in use, the host moves and casts them
in every call of the layer: with 64 bands, 65 times. A lane goes through the model block by block. So for the time of a
block, what the host has prepared for a layer is kept and given to every band; the next block's weights travel
meanwhile, on a stream of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.ops
import torch

Prepare = Callable[..., Any]
"""Like the host's `cast_bias_weight`: a layer's weight and bias, moved, cast, dequantised and patched."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What a layer asks for, without the input that it is for: a key. other: further settings, by name."""

    dtype: torch.dtype | None
    device: torch.device | None
    bias_dtype: torch.dtype | None
    other: tuple[tuple[str, Any], ...]

    @classmethod
    def of(
        cls,
        input: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        bias_dtype: torch.dtype | None = None,
        **other: Any,
    ) -> _Request:
        """The input's dtype and device stand in for those that are not named, as in the host."""
        if input is not None:
            dtype = dtype or _dtype(input)
            bias_dtype, device = bias_dtype or dtype, device or input.device
        return cls(dtype, device, bias_dtype, tuple(sorted(other.items())))

    def settings(self) -> dict[str, Any]:
        """The same by name."""
        return {"dtype": self.dtype, "device": self.device, "bias_dtype": self.bias_dtype, **dict(self.other)}


def _dtype(given: Any) -> torch.dtype:
    """An input's dtype; of a quantised one the dtype that it was made from, which hosts keep in different places."""
    details = getattr(given, "params", None)
    kept = getattr(given, "_layout_params", None)
    if isinstance(kept, dict) and "orig_dtype" in kept:
        return kept["orig_dtype"]
    return getattr(details, "orig_dtype", given.dtype)


@dataclass(slots=True, eq=False)
class _Prepared:
    """weight and bias as the host prepared them. release: called when no band needs them any more."""

    weight: Any
    bias: Any
    release: Callable[[], None] = lambda: None
    used: bool = False


@dataclass(slots=True, eq=False)
class _Block:
    """What one lane holds of one block.

    parameters: those that no layer casts, such as scales of norms. ready: the event after which what was prepared ahead
    may be used.
    """

    layers: dict[tuple[int, _Request], _Prepared] = field(default_factory=dict)
    parameters: dict[tuple[int, Any, Any], Any] = field(default_factory=dict)
    ready: Any = None

    def release(self) -> None:
        for prepared in self.layers.values():
            prepared.release()
        self.layers.clear()
        self.parameters.clear()


class BlockWeights:
    """Keeps prepared weights for the time of a block; remembers between forwards what each layer asks for."""

    def __init__(self) -> None:
        self._asked: WeakKeyDictionary[torch.nn.Module, list[_Request]] = WeakKeyDictionary()
        self._streams: dict[torch.device, Any] = {}

    @contextmanager
    def shared(self, lanes: Sequence[tuple[Any, torch.device]]) -> Iterator[_Lanes]:
        """For the time of a forward. lanes: each lane's transformer and device.

        Yields what enters a layer of a lane: see `clear_core.bands.run.AroundLayer`.
        """
        real, real_parameter = comfy.ops.cast_bias_weight, comfy.model_management.cast_to
        run = _Lanes(self, real, real_parameter, lanes)
        comfy.ops.cast_bias_weight, comfy.model_management.cast_to = run.cast, run.cast_parameter
        own = [module for module in run.layers.values() if callable(getattr(type(module), "cast_bias_weight", None))]
        try:
            for module in own:  # GGUF's layers have a method of that name
                module.cast_bias_weight = run.method(module)
            yield run
        finally:
            for module in own:
                module.__dict__.pop("cast_bias_weight", None)
            # If another pack has put itself on top meanwhile, ours stays below it and does nothing.
            if comfy.ops.cast_bias_weight == run.cast:
                comfy.ops.cast_bias_weight = real
            if comfy.model_management.cast_to == run.cast_parameter:
                comfy.model_management.cast_to = real_parameter
            run.release()

    def remember(self, module: torch.nn.Module, request: _Request) -> None:
        asked = self._asked.setdefault(module, [])
        if request not in asked:
            asked.append(request)

    def forget(self, module: torch.nn.Module, request: _Request) -> None:
        if request in self._asked.get(module, ()):
            self._asked[module].remove(request)

    def expected(self, block: torch.nn.Module) -> list[tuple[torch.nn.Module, _Request]]:
        """What the layers of a block have asked for in the last forward."""
        return [(layer, request) for layer in block.modules() for request in self._asked.get(layer, ())]

    def stream(self, device: torch.device) -> Any:
        """The stream on which a device's weights travel, kept: the allocator keeps memory for each stream."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


class _Lanes:
    """One forward: which block each lane's thread is in."""

    def __init__(
        self,
        owner: BlockWeights,
        real: Prepare,
        real_parameter: Callable[..., Any],
        lanes: Sequence[tuple[Any, torch.device]],
    ) -> None:
        self._owner, self._real, self._real_parameter = owner, real, real_parameter
        self._lanes = tuple(lanes)
        self._blocks = [[*flux.double_blocks, *flux.single_blocks] for flux, _ in self._lanes]
        self.layers = {id(module): module for flux, _ in self._lanes for module in flux.modules()}
        self._bare = {
            id(parameter)
            for module in self.layers.values()
            if not hasattr(module, "comfy_cast_weights")
            for parameter in module.parameters(recurse=False)
        }
        self._current: dict[int, _Block] = {}  # by thread
        self._ahead: dict[int, _Block] = {}  # by lane

    @contextmanager
    def __call__(self, lane: int, layer: int) -> Iterator[None]:
        """Around what a lane's workers do in one layer."""
        device = self._lanes[lane][1]
        block = self._ahead.pop(lane, None) or _Block()
        if block.ready is not None:
            torch.cuda.current_stream(device).wait_event(block.ready)
        self._current[threading.get_ident()] = block
        try:
            self._prepare_ahead(lane, layer + 1)
            yield
            for (module, request), prepared in block.layers.items():
                if not prepared.used:
                    self._owner.forget(self.layers[module], request)
        finally:
            del self._current[threading.get_ident()]
            block.release()

    def release(self) -> None:
        """Let go of what was prepared for layers that never came."""
        for block in self._ahead.values():
            block.release()
        self._ahead.clear()

    def cast(
        self,
        layer: Any,
        input: Any = None,
        dtype: Any = None,
        device: Any = None,
        bias_dtype: Any = None,
        offloadable: bool = False,
        **other: Any,
    ) -> Any:
        """Stands in for the host's `cast_bias_weight`. other: what newer hosts know."""
        block = self._current.get(threading.get_ident())
        if block is None or id(layer) not in self.layers:
            named = {"dtype": dtype, "device": device, "bias_dtype": bias_dtype, "offloadable": offloadable}
            return self._real(layer, input, **named, **other)
        request = _Request.of(input, dtype, device, bias_dtype, **other)
        prepared = block.layers.get((id(layer), request))
        if prepared is None:
            self._owner.remember(layer, request)
            prepared = block.layers[id(layer), request] = self._prepared(layer, request)
        prepared.used = True
        # In the place of the stream None: the host has nothing to wait for after the call.
        kept = prepared.weight, prepared.bias
        return (*kept, None) if offloadable else kept

    def cast_parameter(self, weight: Any, dtype: Any = None, device: Any = None, *more: Any, **settings: Any) -> Any:
        """Stands in for the host's `cast_to`, with which a norm moves and casts its scale in every call."""
        block = self._current.get(threading.get_ident())
        if block is None or more or settings or id(weight) not in self._bare:
            return self._real_parameter(weight, dtype, device, *more, **settings)
        key = id(weight), dtype, device
        if key not in block.parameters:
            block.parameters[key] = self._real_parameter(weight, dtype, device)
        return block.parameters[key]

    def method(self, module: Any) -> Prepare:
        """Stands in for the method `cast_bias_weight` of a layer of another pack."""
        method = type(module).cast_bias_weight

        def cast(*arguments: Any, **settings: Any) -> Any:
            block = self._current.get(threading.get_ident())
            if block is None:
                return method(module, *arguments, **settings)
            key = id(module), _Request.of(*arguments, **settings)
            if key not in block.layers:
                found = method(module, *arguments, **settings)
                if len(found) != 2:  # more than a weight and a bias: not ours to keep
                    return found
                block.layers[key] = _Prepared(*found)
            block.layers[key].used = True
            return block.layers[key].weight, block.layers[key].bias

        return cast

    def _prepared(self, layer: Any, request: _Request) -> _Prepared:
        """Have the host prepare a layer's weights."""
        settings = request.settings()
        if not hasattr(layer, "_v"):
            # Not in one of the host's buffers, which the next layer would overwrite.
            return _Prepared(*self._real(layer, **settings, offloadable=False)[:2])
        weight, bias, used = self._real(layer, **settings, offloadable=True)

        def unpin() -> None:
            comfy.ops.uncast_bias_weight(layer, weight, bias, used)

        if getattr(layer, "_v_signature", None) is not None:
            return _Prepared(weight, bias, unpin)  # in the card's pages, which stay while they are in use
        copies = weight.clone(), None if bias is None else bias.clone()
        unpin()
        return _Prepared(*copies)

    def _prepare_ahead(self, lane: int, layer: int) -> None:
        """Start to move the next block's weights, where they are not on the lane's device."""
        device = self._lanes[lane][1]
        if device.type == "cpu" or not 0 <= layer < len(self._blocks[lane]):
            return
        wanted = [
            (module, request)
            for module, request in self._owner.expected(self._blocks[lane][layer])
            if hasattr(module, "_v") or _lies_elsewhere(module, device)
        ]
        if not wanted:
            return
        ahead = self._ahead[lane] = _Block()
        with self._on_stream(device, ahead):
            for module, request in wanted:
                ahead.layers[id(module), request] = self._prepared(module, request)

    def _on_stream(self, device: torch.device, ahead: _Block) -> AbstractContextManager[object]:
        if not torch.cuda.is_available():
            return nullcontext()
        return self._on_cuda_stream(device, ahead)

    @contextmanager
    def _on_cuda_stream(self, device: torch.device, ahead: _Block) -> Iterator[None]:
        stream = self._owner.stream(device)
        # The memory of the block before the last is free once the lane's stream has come as far as this.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield
            ahead.ready = torch.cuda.Event()
            ahead.ready.record(stream)


def _lies_elsewhere(module: Any, device: torch.device) -> bool:
    return any(
        tensor is not None and tensor.device != device
        for tensor in (getattr(module, "weight", None), getattr(module, "bias", None))
    )
