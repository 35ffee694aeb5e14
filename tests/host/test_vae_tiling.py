"""A VAE works on the whole image where its memory allows it, on the host's own VAE; in strips: test_vae_strips.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GIB = 2**30
SIDE = 64  # pixels


@pytest.fixture
def vae(host: Any) -> Any:
    """The host's, that passes pixels through; it takes 10 GiB to encode, 20 to decode, and tells how it was called."""
    import comfy.sd

    made: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    made.memory_used_encode = lambda shape, dtype: 10 * GIB * shape[2] / SIDE
    made.memory_used_decode = lambda shape, dtype: 20 * GIB * shape[2] / SIDE
    made.called = []

    def telling(name: str) -> Any:
        real = getattr(made, name)

        def told(*args: Any, **values: Any) -> Any:
            made.called.append(name)
            return real(*args, **values)

        return told

    for name in ("encode", "encode_tiled", "decode", "decode_tiled"):
        setattr(made, name, telling(name))
    return made


@pytest.fixture
def free(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the host says is free."""
    import comfy.model_management

    def set_free(gib: float) -> None:
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **values: int(gib * GIB))

    return set_free


@pytest.mark.parametrize(
    ("tiling", "gib", "called"),
    [
        ("auto", 30, ["encode", "decode"]),
        ("auto", 15, ["encode", "decode_tiled"]),
        ("auto", 10.4, ["encode_tiled", "decode_tiled"]),  # half a GiB stays free
        ("never", 1, ["encode", "decode"]),
        ("always", 30, ["encode_tiled", "decode_tiled"]),
    ],
)
def test_tiles_only_where_the_whole_does_not_fit(
    nodes_api: Any, vae: Any, free: Any, tiling: str, gib: float, called: list[str]
) -> None:
    passing = nodes_api.module("nodes.host.vae")
    pixels = torch.rand(1, SIDE, SIDE, 3)
    free(gib)
    with torch.inference_mode():  # as the host runs nodes
        latent, encoded = passing.vae_encode(vae, pixels, tiling)
        image, decoded = passing.vae_decode(vae, latent, tiling)
    assert vae.called == called
    ways = ["tiles" if "tiled" in name else "whole" for name in called]
    assert [plan.way for plan in (encoded, decoded)] == ways
    instead = [tiling == "auto" and way == "tiles" for way in ways]
    assert [
        plan.text.endswith("; not in strips: the VAE is or has a PixelspaceConversionVAE")
        for plan in (encoded, decoded)
    ] == instead
    assert (encoded.need, decoded.need, encoded.room) == (10 * GIB, 20 * GIB, int(gib * GIB))
    assert torch.allclose(image, pixels, atol=1e-6)


def test_it_says_why(nodes_api: Any) -> None:
    plan = nodes_api.module("nodes.host.vae").VaePlan.of
    whole, strips, tiled = (
        plan(tiling, need * GIB, 20 * GIB) for tiling, need in (("auto", 3), ("auto", 73), ("always", 73))
    )
    assert whole.text == "the whole image at once (3.0 GiB for the whole, 20.0 GiB free)"
    assert strips.text == "in strips (73.0 GiB for the whole, 20.0 GiB free)"
    assert tiled.text == "in tiles of 1024 px (73.0 GiB for the whole, 20.0 GiB free)"


def test_models_that_the_host_can_move_away_count_as_free(
    nodes_api: Any, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; on a CPU they stay where they are."""
    from types import SimpleNamespace

    import comfy.model_management

    own, other = object(), object()
    loaded = [
        SimpleNamespace(device=torch.device(kind), model=model, model_loaded_memory=lambda: 7 * GIB)
        for kind, model in (("cuda:0", own), ("cuda:0", other), ("cuda:1", other), ("cuda:0", None), ("cpu", other))
    ]
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", loaded)
    free(3)
    room = nodes_api.module("nodes.host.vae").room_on
    assert room(torch.device("cuda:0"), own) == 10 * GIB
    assert room(torch.device("cpu")) == 3 * GIB
