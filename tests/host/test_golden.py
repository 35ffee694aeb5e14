"""The authors' own outputs: a model of the host's classes, patched through the nodes, reproduces them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file

from devtools.models import Golden, run_forward

from host.rounding import golden_timestep_embedding

FILES = sorted((Path(__file__).parents[1] / "data" / "golden").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("backend", "bands"),
    [("reference", 1), ("sdpa", 1), ("masked", 1), ("sdpa", 2)],
    ids=["reference", "sdpa", "masked", "sdpa in two bands"],
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_authors_output_is_reproduced(
    path: Path, backend: str, bands: int, tmp_path: Path, nodes_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy.ldm.flux.model.timestep_embedding", golden_timestep_embedding)
    golden = Golden.read(path)
    file = tmp_path / f"clear_local_{golden.radius}.safetensors"
    if golden.down_factor > 1:
        file = tmp_path / f"clear_local_{golden.radius}_down_{golden.down_factor}.safetensors"
    save_file(golden.part("clear."), file)

    patched = nodes_api.apply(
        golden.model(),
        nodes_api.weights(file),
        backend=backend,
        ntk_factor=golden.ntk_factor,
        proportional_attention=golden.proportional,
    )
    if bands > 1:
        patched = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=bands, text_merge="exact")[0]
    tensors = golden.tensors
    latent = rearrange(tensors["x"], "b (h w) (c p q) -> b c (h p) (w q)", h=golden.height, w=golden.width, p=2, q=2)
    out = run_forward(patched, latent, tensors["t"], tensors["context"], tensors["y"], tensors["guidance"])
    out = rearrange(out, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)

    error = (out - tensors["out"]).norm() / tensors["out"].norm()
    assert error < 1e-6  # 5.5e-7 on every version in docs/hosts.md
    assert torch.isfinite(out).all()


def test_there_are_golden_files() -> None:
    assert {path.stem for path in FILES} == {
        "down4_r4_ntk10_prop",
        "down4_r8",
        "local_r3",
        "local_r8_ntk10_prop",
    }
