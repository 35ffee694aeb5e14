"""The authors' own outputs: a model of the host's classes, patched through the nodes, reproduces them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import Golden

from host.comparing import error
from host.rounding import golden_timestep_embedding

Output = Callable[..., Tensor]
FILES = sorted((Path(__file__).parents[1] / "data" / "golden").glob("*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Golden:
    monkeypatch.setattr("comfy.ldm.flux.model.timestep_embedding", golden_timestep_embedding)
    return Golden.read(request.param)


@pytest.fixture
def output(golden: Golden, tmp_path: Path, nodes_api: Any) -> Output:
    """The output of the model of a golden file, patched through the nodes: of its tensors' shape, in float64."""
    file = tmp_path / f"clear_local_{golden.radius}.safetensors"
    if golden.down_factor > 1:
        file = tmp_path / f"clear_local_{golden.radius}_down_{golden.down_factor}.safetensors"
    save_file(golden.part("clear."), file)

    def run(backend: str, bands: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        model = golden.model()
        model.model.diffusion_model.to(dtype).dtype = dtype
        patched = nodes_api.apply(
            model,
            nodes_api.weights(file),
            backend=backend,
            ntk_factor=golden.ntk_factor,
            proportional_attention=golden.proportional,
        )
        if bands > 1:
            changes = {"devices": "cpu", "bands": bands, "text_merge": "exact"}
            patched = nodes_api.execute("CLEARMultiGPU", model=patched, **changes)[0]
        return golden.forward(patched, dtype).double()

    return run


@pytest.mark.parametrize(
    ("backend", "bands"),
    [("reference", 1), ("sdpa", 1), ("masked", 1), ("sdpa", 2)],
    ids=["reference", "sdpa", "masked", "sdpa in two bands"],
)
def test_the_authors_output_is_reproduced(golden: Golden, output: Output, backend: str, bands: int) -> None:
    """In float32, as the authors ran it: two roundings of the same numbers, each about 5e-7 from them."""
    assert error(output(backend, bands), golden.tensors["out"].double()) < 1e-6


@pytest.mark.parametrize("backend", ["reference", "sdpa", "masked"])
def test_in_float64_only_the_authors_own_rounding_is_left(
    golden: Golden, output: Output, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy.ldm.flux.math.apply_rope", _apply_rope)
    assert error(golden.tensors["out"].double(), output(backend, dtype=torch.float64)) < 5e-7


def _apply_rope(query: Tensor, key: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    """In any precision: newer versions of the host have kernels for this, without float64.

    query, key: [batch, heads, tokens, head_dim]. rotations: [batch, 1, tokens, head_dim / 2, 2, 2].
    """

    def rotated(tokens: Tensor) -> Tensor:
        pairs = tokens.unflatten(-1, (-1, 2))
        return torch.einsum("...ij,...j->...i", rotations.to(tokens), pairs).flatten(-2)

    return rotated(query), rotated(key)


def test_there_are_golden_files() -> None:
    assert {path.stem for path in FILES} == {
        "down4_r4_ntk10_prop",
        "down4_r8",
        "local_r3",
        "local_r8_ntk10_prop",
    }
