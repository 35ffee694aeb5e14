"""Copies of a model for further devices: made in main memory, loaded by the host, no native handle shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import clear_tensors, flux_model, inputs, run_forward, sample

CARD = torch.device("cuda:1")  # not in the machine that runs the tests: nothing may be put there


@pytest.fixture
def replicate(nodes_api: Any) -> Callable[..., Any]:
    return nodes_api.module("nodes.host.bands.replicate").replicate


@pytest.fixture
def two_devices(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Bands over two names of the CPU, which stand for two cards, each with its own weights."""
    two = [torch.device("cpu"), torch.device("cpu:0")]
    monkeypatch.setattr(nodes_api.module("nodes.host.bands.replicas"), "machine_devices", lambda home: two)
    share = nodes_api.module("nodes.options.lanes").DeviceShare
    settings = nodes_api.module("nodes.options.bands").BandSettings

    def apply(model: Any, bands: int = 4) -> Any:
        devices = tuple(share(str(device)) for device in two)
        apply_bands = nodes_api.module("nodes.host.bands.forward").apply_bands
        return apply_bands(model, settings(devices, bands, "exact"), node_id=None)

    return apply


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], dict[str, Any]]]:
    """Every call of the host's `load_models_gpu`: the models and how much memory was asked for."""
    import comfy.model_management

    found: list[tuple[list[Any], dict[str, Any]]] = []
    load = comfy.model_management.load_models_gpu

    def watched(models: Any, **options: Any) -> Any:
        found.append((list(models), options))
        return load(models, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    return found


def with_clear(nodes_api: Any, model: Any, folder: Path) -> Any:
    path = folder / "clear_local_3.safetensors"
    save_file(clear_tensors(model), path)
    return nodes_api.apply(model, nodes_api.weights(path))


def weights(model: Any) -> dict[str, Tensor]:
    return dict(model.model.named_parameters())


def test_nothing_is_on_the_card_before_the_host_makes_room(
    nodes_api: Any, replicate: Callable[..., Any], tmp_path: Path
) -> None:
    import comfy.model_management

    patched = with_clear(nodes_api, flux_model(), tmp_path)
    plain = {name: weight.clone() for name, weight in weights(patched).items()}
    run_forward(patched, **inputs(20, 16))  # loaded, with CLEAR's weights in place
    replica = replicate(patched, CARD)
    for name, weight in weights(replica).items():
        assert weight.device.type == "cpu"
        assert torch.equal(weight, plain[name])
        assert weight.data_ptr() != weights(patched)[name].data_ptr()
    assert replica.load_device == CARD
    assert replica.offload_device == torch.device("cpu")
    # The host counts all of it as still to be loaded, and nothing as there.
    loaded = comfy.model_management.LoadedModel(replica)
    assert loaded.model_memory_required(CARD) == replica.model_size() == patched.model_size()
    assert loaded.model_loaded_memory() == 0
    for name in ("backup", "object_patches_backup", "pinned", "backup_buffers", "hook_backup"):
        mine, theirs = getattr(replica, name, None), getattr(patched, name, None)
        assert mine is None or (mine is not theirs and not mine)


def test_the_host_is_told_what_each_replica_computes(
    nodes_api: Any, two_devices: Callable[..., Any], loads: list[Any]
) -> None:
    patched = nodes_api.apply(flux_model(), radius=3)
    sample(two_devices(patched), 64, 64)
    replica, options = loads[-1]
    memory, plan = nodes_api.module("clear_core.bands.memory"), nodes_api.module("clear_core.bands.plan").BandPlan
    grid, window = nodes_api.module("clear_core.layout").Grid, nodes_api.module("clear_core.window").Window
    cut = plan.cut(grid(32, 32), 4, window(3), shares=(1.0, 1.0))
    shape = memory.ModelShape(32, 16, element_size=4, prepared=0)
    need = memory.lane_bytes(cut, 1, 512, shape)
    reserve = nodes_api.module("nodes.host.bands.memory").RESERVE
    assert replica[0].load_device == torch.device("cpu:0")
    assert need <= options["minimum_memory_required"] <= need + reserve
    assert options["memory_required"] == 2 * options["minimum_memory_required"]


class Handle:
    """Stands for native memory of a host with dynamic VRAM: freed by its one owner."""

    def __deepcopy__(self, memo: object) -> Handle:
        raise AssertionError("a native handle was copied: two owners would free it")


def test_native_handles_are_never_copied(replicate: Callable[..., Any]) -> None:
    model = flux_model()
    expected = run_forward(model, **inputs(20, 16))
    base = model.model
    home = torch.device("cpu")
    names = [name for name in ("dynamic_pins", "dynamic_vbars") if not hasattr(base, name)]
    for name in names:
        setattr(base, name, {home: Handle()})
    layer = base.diffusion_model.double_blocks[0].img_attn.qkv
    staged = {
        "_v": (Handle(), 0, 1),
        "_v_block": (Handle(), 0, 1),
        "_pins": {"weights": Handle()},
        "_pin_state": {"weights": Handle()},
        "weight_lowvram_function": Handle(),
        "bias_lowvram_function": None,
        "_v_signature": 7,
    }
    for name, value in staged.items():
        setattr(layer, name, value)
    layer.weight_function = [Handle()]
    replica = replicate(model, CARD)
    copy = replica.model.diffusion_model.double_blocks[0].img_attn.qkv
    assert not [name for name in staged if hasattr(copy, name)]
    assert copy.weight_function == []
    for name in names:
        assert getattr(replica.model, name) == {}
    assert layer._v is staged["_v"]
    assert len(layer.weight_function) == 1
    layer.weight_function.clear()
    replica.load_device = home
    assert torch.equal(run_forward(replica, **inputs(20, 16)), expected)


class Packed(Tensor):
    """A weight as ComfyUI-GGUF keeps it: packed bytes under a logical shape; `data` would lose both."""

    logical: torch.Size
    patches: list[Any]

    @staticmethod
    def of(packed: Tensor, logical: torch.Size) -> Packed:
        new = packed.as_subclass(Packed)
        new.logical, new.patches = logical, []
        return new

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.logical

    def to(self, *args: Any, **kwargs: Any) -> Packed:
        new = super().to(*args, **kwargs).as_subclass(Packed)
        new.logical, new.patches = self.logical, list(self.patches)
        return new

    def detach(self, *args: Any, **kwargs: Any) -> Packed:
        return self


def test_tensors_of_other_packs_keep_their_type_and_shape(replicate: Callable[..., Any]) -> None:
    model = flux_model()
    layer = model.model.diffusion_model.single_blocks[0].linear1
    shape = layer.weight.shape
    packed = Packed.of(torch.arange(100, dtype=torch.uint8), shape)
    packed.patches = [("of the loaded model", "key")]
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    copy = replicate(model, CARD).model.diffusion_model.single_blocks[0].linear1.weight
    assert type(copy) is Packed
    assert isinstance(copy, torch.nn.Parameter)
    assert copy is not layer.weight
    assert copy.shape == shape
    assert copy.data_ptr() != packed.data_ptr()
    assert torch.equal(copy.as_subclass(Tensor), torch.arange(100, dtype=torch.uint8))
    assert copy.patches == []
    assert packed.patches == [("of the loaded model", "key")]


def test_the_hosts_own_copy_is_used_where_there_is_one(
    nodes_api: Any, replicate: Callable[..., Any], tmp_path: Path
) -> None:
    """Newer hosts load the file again; older ones know nothing of that."""
    import comfy.model_patcher

    made: list[Any] = []

    def load() -> Any:
        made.append(flux_model())
        return made[-1]

    model = flux_model()
    model.cached_patcher_init = (load, ())
    other = flux_model()
    patched = with_clear(nodes_api, model, tmp_path)
    patched.additional_models = {"companions": [other]}
    replica = replicate(patched, CARD)
    newer = hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu")
    assert len(made) == int(newer)
    assert replica.model is (made[0].model if newer else replica.model) is not patched.model
    assert replica.load_device == CARD
    assert replica.additional_models == {}
    assert patched.additional_models == {"companions": [other]}
    expected = run_forward(patched, **inputs(20, 16))
    replica.load_device = torch.device("cpu")
    assert torch.equal(run_forward(replica, **inputs(20, 16)), expected)


def test_a_replica_is_kept_when_only_the_patches_change(
    nodes_api: Any, two_devices: Callable[..., Any], loads: list[Any], tmp_path: Path
) -> None:
    patched = nodes_api.apply(flux_model(), radius=3)
    banded = two_devices(patched)
    sample(banded, 20, 16)
    first = loads[-1][0][0]
    stronger = banded.clone()
    key = "diffusion_model.single_blocks.0.linear1.weight"
    noise = torch.randn(weights(patched)[key].shape, generator=torch.Generator().manual_seed(2))
    stronger.add_patches({key: ("diff", (noise,))}, 0.5)
    alone = patched.clone()
    alone.add_patches({key: ("diff", (noise,))}, 0.5)
    expected, plain = sample(alone, 20, 16), sample(patched, 20, 16)
    out = sample(stronger, 20, 16)
    assert loads[-1][0][0] is first
    assert float((out - expected).norm() / expected.norm()) < 1e-6
    assert float((out - plain).norm() / plain.norm()) > 1e-3
    assert float((sample(banded, 20, 16) - plain).norm() / plain.norm()) < 1e-6


def test_a_card_that_keeps_models_keeps_a_replica_on_its_own(replicate: Callable[..., Any]) -> None:
    """--highvram: the host's place for unused models is the card. Its first card is not the place for a second's."""
    model = flux_model()
    model.load_device = model.offload_device = torch.device("cuda:0")
    assert replicate(model, CARD).offload_device == CARD
    model.load_device = model.offload_device = torch.device("cpu")
    assert replicate(model, CARD).offload_device == torch.device("cpu")


def test_bands_ask_the_loaded_model_how_much_is_free(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamic VRAM the host counts weights that it can page out, and so do the bands."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2 * 2**30)

    class Paging:
        def get_free_memory(self, device: torch.device) -> int:
            assert device == CARD
            return 9 * 2**30

    memory, lane = nodes_api.module("nodes.host.bands.memory"), nodes_api.module("nodes.host.bands.replicas").Lane
    assert memory.free_bytes([lane(CARD, None, 1.0, Paging())]) == 9 * 2**30 - memory.RESERVE
    assert memory.free_bytes([lane(CARD, None, 1.0, object())] * 2) == (2 * 2**30 - memory.RESERVE) // 2
    other = lane(torch.device("cuda:0"), None, 1.0)
    assert memory.free_bytes([other, lane(CARD, None, 1.0, Paging())]) == 2 * 2**30 - memory.RESERVE


def test_a_worker_tells_what_each_card_has_beside_the_weights(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 24 * 2**30)
    memory, lane = nodes_api.module("nodes.host.bands.memory"), nodes_api.module("nodes.host.bands.replicas").Lane

    class Model:
        size = 11 * 2**30

        def model_size(self) -> int:
            return self.size

    other = lane(torch.device("cuda:0"), None, 1.0)
    beside = 13 * 2**30 - memory.RESERVE
    assert memory.rooms(Model(), [other, lane(CARD, None, 1.0)]) == (beside, beside)
    assert memory.rooms(Model(), [other, other]) == (beside // 2,) * 2
    assert memory.rooms(Model(), [lane(torch.device("cpu"), None, 1.0)]) == (0,), "nothing is to be saved there"
    Model.size = 23 * 2**30
    assert memory.rooms(Model(), [other]) == (12 * 2**30,), "the host will offload weights"


def test_a_lora_in_bypass_mode_is_refused_on_a_second_device(nodes_api: Any, two_devices: Callable[..., Any]) -> None:
    """Its hooks hold the first device's layers: the second would compute without it."""
    from comfy.model_patcher import PatcherInjection

    patched = nodes_api.apply(flux_model(), radius=3)
    injection = PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)
    patched.set_injections("bypass_lora", [injection])
    with pytest.raises(ValueError, match=r"bypass mode works on cpu alone, not on cpu:0: load .* or set devices of"):
        sample(two_devices(patched), 20, 16)
    sample(nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=2, text_merge="exact")[0], 20, 16)
