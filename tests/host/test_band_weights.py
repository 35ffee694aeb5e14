"""Weights that are moved, cast, dequantised or patched in use: once for a block, however many bands there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from devtools.cards import cards
from devtools.cards_model import model_on, sample_on
from devtools.models import flux_model, inputs, run_forward

from host.comparing import error


class LayerOfItsOwn(torch.nn.Linear):
    """A layer as GGUF's: a method of its own dequantises the weight."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias, self.calls = layer.weight, layer.bias, 0

    def cast_bias_weight(self, input: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None) -> Any:
        self.calls += 1
        return self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.cast_bias_weight(input)
        return torch.nn.functional.linear(input, weight, bias)


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("bands", [3, 12])
def test_weights_of_another_dtype_are_cast_once(
    nodes_api: Any, in_bands: Callable[..., Any], casts: Counter[Any], bands: int, stored: torch.dtype
) -> None:
    model = flux_model()
    flux = model.model.diffusion_model
    layers = [module for module in flux.modules() if hasattr(module, "comfy_cast_weights")]
    for layer in layers:
        layer.comfy_cast_weights = True
        for name in ("weight", "bias"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                setattr(layer, name, torch.nn.Parameter(tensor.to(stored), requires_grad=False))
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **inputs(48, 18))
    used = {layer for layer, count in casts.items() if count}
    casts.clear()
    assert error(run_forward(in_bands(patched, bands), **inputs(48, 18)), expected) < 1e-6
    # One forward more runs as far as its positions.
    before_positions = {flux.img_in, flux.txt_in, *flux.time_in.modules(), *flux.vector_in.modules()}
    before_positions |= set(flux.guidance_in.modules())
    assert {layer: casts[layer] for layer in used - before_positions} == dict.fromkeys(used - before_positions, 1)
    assert all(casts[layer] <= 2 for layer in used)


def before_each_forward(model: Any, act: Callable[[Any], object]) -> None:
    """Call `act` with the transformer when a forward begins: the model has been loaded by then."""
    model.model.diffusion_model.register_forward_pre_hook(lambda flux, args: act(flux) and None)


def offload_before_the_first_forward(model: Any) -> None:
    """As on a card that is too small: weights stay in main memory, and are moved and patched in use."""
    done: list[bool] = []

    def offload(flux: Any) -> None:
        if not done:
            done.append(True)
            model.partially_unload(torch.device("cpu"), 10**12)

    before_each_forward(model, offload)


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_patches_of_offloaded_layers_are_computed_once(
    nodes_api: Any, in_bands: Callable[..., Any], casts: Counter[Any], devices: str
) -> None:
    expected = run_forward(nodes_api.apply(flux_model(), radius=3), **inputs(48, 18))
    model = flux_model()
    patched = nodes_api.apply(model, radius=3)
    offload_before_the_first_forward(patched)
    casts.clear()
    assert error(run_forward(in_bands(patched, 9, devices), **inputs(48, 18)), expected) < 1e-6
    lanes = len(devices.split(","))
    for block in [*model.model.diffusion_model.double_blocks, *model.model.diffusion_model.single_blocks]:
        used = [casts[layer] for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        assert used == [lanes] * len(used)


def test_layers_that_dequantise_by_a_method_of_their_own(nodes_api: Any, in_bands: Callable[..., Any]) -> None:
    model = flux_model()
    block = model.model.diffusion_model.single_blocks[0]
    own = block.linear2 = LayerOfItsOwn(block.linear2)
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **inputs(48, 18))
    own.calls = 0
    assert error(run_forward(in_bands(patched, 9), **inputs(48, 18)), expected) < 1e-6
    assert own.calls == 1
    assert "cast_bias_weight" not in vars(own)


def test_nothing_is_kept_after_a_forward_that_fails(
    nodes_api: Any, in_bands: Callable[..., Any], casts: Counter[Any]
) -> None:
    import comfy.ops

    before = comfy.ops.cast_bias_weight
    model = flux_model()
    patched = nodes_api.apply(model, radius=3)
    layer = model.model.diffusion_model.single_blocks[1].linear1
    functions: list[Callable[[Tensor], Tensor]] = []

    def fail(weight: Tensor) -> Tensor:
        raise KeyError("no such weight")

    functions.append(fail)
    before_each_forward(patched, lambda flux: setattr(layer, "weight_function", functions))
    banded = in_bands(patched, 5)
    with pytest.raises(KeyError, match="no such weight"):
        run_forward(banded, **inputs(48, 18))
    assert comfy.ops.cast_bias_weight is before
    functions.clear()
    expected = run_forward(patched, **inputs(48, 18))
    assert error(run_forward(banded, **inputs(48, 18)), expected) < 1e-6


class Pages:
    """A host whose layers are paged (dynamic VRAM): pinned pages are in use, and one buffer serves all other layers."""

    def __init__(self) -> None:
        self.pinned: set[Any] = set()
        self.most = 0
        self._buffer = torch.empty(0)

    def cast(self, layer: Any, given: Any = None, offloadable: bool = False, **kwargs: Any) -> Any:
        assert offloadable, "nobody would unpin it"
        if layer._v_signature is not None:
            self.pinned.add(layer)
            self.most = max(self.most, len(self.pinned))
            return layer.weight, layer.bias, layer
        if self._buffer.numel() < layer.weight.numel():
            self._buffer = torch.empty(layer.weight.numel())
        weight = self._buffer[: layer.weight.numel()].view_as(layer.weight).copy_(layer.weight)
        return weight, layer.bias, layer

    def uncast(self, layer: Any, weight: Any, bias: Any, used: Any) -> None:
        self.pinned.discard(used)


@pytest.mark.parametrize("resident", [True, False])
def test_paged_weights_stay_pinned_for_their_block_and_no_longer(
    nodes_api: Any, in_bands: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, host: Any, resident: bool
) -> None:
    import comfy.ops

    model = flux_model()
    patched = nodes_api.apply(model, radius=3)
    expected = run_forward(patched, **inputs(48, 18))
    flux, pages = model.model.diffusion_model, Pages()
    linears = [layer for block in flux.single_blocks for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in linears:
        layer.comfy_cast_weights, layer._v, layer._v_signature = True, object(), 1 if resident else None
    real = comfy.ops.cast_bias_weight
    monkeypatch.setattr(
        comfy.ops,
        "cast_bias_weight",
        lambda layer, *args, **kwargs: (pages.cast if hasattr(layer, "_v") else real)(layer, *args, **kwargs),
    )
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", pages.uncast)
    assert error(run_forward(in_bands(patched, 9), **inputs(48, 18)), expected) < 1e-6
    assert not pages.pinned
    assert pages.most == (len(linears) // len(flux.single_blocks) if resident else 0)


class Uploads:
    """Counts copies of matrices from main memory to a card while blocks run, and notes which block they were for."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, ...]] = Counter()
        self._counts = False
        self._sources: list[Tensor] = []

    def begin(self) -> None:
        """From here on: what came before was loading."""
        self._counts = True

    def began(self, op: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._sources = [arg for arg in args if isinstance(arg, Tensor) and arg.device.type == "cpu"]

    def ended(self, op: Any, out: Any) -> None:
        copies = op.name().startswith(("aten::_to_copy", "aten::copy_"))
        if self._counts and copies and isinstance(out, Tensor) and out.device.type == "cuda":
            self.sizes.update(tuple(tensor.shape) for tensor in self._sources if tensor.ndim == 2)


def test_offloaded_weights_cross_once_in_each_step(host: Any, nodes_api: Any) -> None:
    steps, channels = 2, 128
    linear2 = channels, 5 * channels  # of each single block
    for bands in (2, 12):
        with cards(1) as found:
            model = nodes_api.apply(model_on(found.devices[0], hidden_size=channels), radius=3)
            offload_before_the_first_forward(model)
            (banded, *_) = nodes_api.execute(
                "CLEARMultiGPU", model=model, devices="cuda:0", bands=bands, text_merge="exact"
            )
            uploads = Uploads()
            flux = model.model.diffusion_model
            found.mode.observers.append(uploads)
            before_each_forward(model, lambda _, uploads=uploads: uploads.begin())
            seen: list[int] = []
            last = flux.single_blocks[-1]
            last.register_forward_pre_hook(lambda *_, seen=seen, up=uploads: seen.append(up.sizes[linear2]))
            sample_on(banded, 64, 18, steps=steps)
            blocks = len(flux.single_blocks)
            assert uploads.sizes[linear2] == steps * blocks
            # In the first step nobody knows yet what the last block will ask for; in the second it was there before.
            assert seen[0] == blocks - 1
            assert seen[len(seen) // steps] == blocks + blocks
