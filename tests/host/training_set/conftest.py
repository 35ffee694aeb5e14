"""The host's own FLUX, autoencoder and text encoders, small, and CLEAR Training Set as a function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.models import flux_model

from host.training_set.made import IMAGES, SIZE, small_vae


@pytest.fixture(scope="session")
def clip(host: Any) -> Any:
    """FLUX's text encoders with the widths of the tiny FLUX, and the real tokenizers."""
    import comfy.sd
    from comfy.text_encoders.flux import FluxTokenizer, flux_clip

    class Target:
        clip, tokenizer, params = flux_clip(dtype_t5=torch.float32), FluxTokenizer, {}

    small = {
        "clip_l_model_config": {
            "hidden_size": 12,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        "t5xxl_model_config": {"d_ff": 32, "d_kv": 12, "d_model": 24, "num_heads": 2, "num_layers": 1},
    }
    made = comfy.sd.CLIP(Target, model_options={**small, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.cond_stage_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="session")
def vae(host: Any) -> Any:
    """FLUX's autoencoder, random, with few layers and channels."""
    return small_vae(16)


@pytest.fixture(scope="session")
def flux(host: Any) -> Any:
    return flux_model()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is encoded or sampled."""
    import comfy.sample
    import comfy.sd

    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, as_: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[as_] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(comfy.sd.CLIP, "encode_from_tokens_scheduled", "text")
    counted(comfy.sd.VAE, "encode", "image")
    counted(comfy.sample, "sample", "sampled")
    return counts


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's output folder."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def run(nodes_api: Any, clip: Any, vae: Any, output: Path, shown: Any) -> Callable[..., tuple[Any, str]]:
    """The node: the set and its report."""

    def execute(source: str = IMAGES, **inputs: Any) -> tuple[Any, str]:
        asked = {
            "name": "a set",
            "source": source,
            "clip": clip,
            "folder": "",
            "prompts": "",
            **SIZE,
            "steps": 2,
            "seed": 7,
        }
        with torch.inference_mode():
            return nodes_api.execute("CLEARTrainingSet", **{**asked, "vae": vae, **inputs})

    return execute


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made
