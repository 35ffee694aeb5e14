"""Training samples on disk: read as written, whole or named as broken."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clear_core.distill.samples import Sample, SampleError, TrainingSet, latent_shape, read_sample, write_sample


def sample(seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(2, 16, 4, 6, generator=generator)
    tokens = torch.randn(7, 24, generator=generator)
    return Sample(mean, std.abs(), {"cross_attn": tokens.bfloat16(), "pooled_output": tokens[0, :12]}, "Ein Hügel, 山")


def test_a_sample_is_read_as_it_was_written(tmp_path: Path) -> None:
    wrote = sample()
    write_sample(tmp_path / "a.safetensors", wrote, {"source": "a.png", "width": "48"})
    got = TrainingSet(tmp_path, (tmp_path / "a.safetensors",)).read(0)
    assert torch.equal(got.mean, wrote.mean) and torch.equal(got.std, wrote.std)
    assert got.mean.dtype == got.std.dtype == torch.float32
    assert got.conditioning.keys() == wrote.conditioning.keys()
    for name, tensor in wrote.conditioning.items():
        assert torch.equal(got.conditioning[name], tensor) and got.conditioning[name].dtype == tensor.dtype
    assert got.prompt == wrote.prompt


def test_names_and_metadata_of_a_file(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.safetensors", sample(), {"source": "a.png", "width": "48"})
    with safe_open(str(tmp_path / "a.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"latent.mean", "latent.std", "cond.cross_attn", "cond.pooled_output"}
        assert file.metadata() == {"source": "a.png", "width": "48", "prompt": "Ein Hügel, 山"}
    assert latent_shape(tmp_path / "a.safetensors") == (16, 4, 6)


def test_mean_and_std_may_share_memory_and_have_another_dtype(tmp_path: Path) -> None:
    """One tensor twice, and a view of a larger one: safetensors alone refuses the first and saves all of the second."""
    part = torch.ones(32, 4, 6, dtype=torch.float16)[:16]
    write_sample(tmp_path / "a.safetensors", dataclasses.replace(sample(), mean=part, std=part), {})
    assert torch.equal(read_sample(tmp_path / "a.safetensors").std, torch.ones(16, 4, 6))


def test_a_set_has_the_order_of_its_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in (1, 0, 2)]
    for seed, file in enumerate(files):
        write_sample(file, sample(seed), {})
    samples = TrainingSet(tmp_path, tuple(files))
    assert len(samples) == 3
    assert all(torch.equal(samples.read(n).mean, sample(n).mean) for n in range(3))
    with pytest.raises(IndexError):
        samples.read(3)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    write_sample(file, sample(1), {})

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:99])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_sample(file, sample(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(read_sample(file).mean, sample(1).mean)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"a\.safetensors is not there any more\. Set another name on CLEAR Training"):
        TrainingSet(tmp_path, (tmp_path / "a.safetensors",)).read(0)


@pytest.mark.parametrize("cut", [0, 5, 300, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "a.safetensors"
    write_sample(file, sample(), {})
    file.write_bytes(file.read_bytes()[:cut])
    for read in (read_sample, latent_shape):
        with pytest.raises(SampleError, match=r"a\.safetensors cannot be read \(.+\)\. Delete it, or set another name"):
            read(file)


@pytest.mark.parametrize(
    ("changed", "metadata", "said"),
    [
        ({"latent.std": None}, {"prompt": "a"}, r"lacks latent\.std\."),
        ({"cond.cross_attn": None}, {}, r"lacks cond\.cross_attn, the prompt in its metadata\."),
        ({"latent.std": torch.zeros(16, 4, 5)}, {"prompt": "a"}, r"has the shapes .*\(16, 4, 5\)"),
        (
            {"latent.mean": torch.zeros(4, 6), "latent.std": torch.zeros(4, 6)},
            {"prompt": "a"},
            r"the shapes .*\(4, 6\)",
        ),
        ({"latent.mean": torch.zeros(16, 4, 6).half()}, {"prompt": "a"}, r"latent\.mean is F16, not F32"),
    ],
)
def test_another_file_of_tensors_is_no_sample(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], metadata: dict[str, str], said: str
) -> None:
    whole = {
        "latent.mean": torch.zeros(16, 4, 6),
        "latent.std": torch.ones(16, 4, 6),
        "cond.cross_attn": torch.ones(7, 8),
    }
    tensors = {name: tensor for name, tensor in {**whole, **changed}.items() if tensor is not None}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata)
    for read in (read_sample, latent_shape):
        with pytest.raises(SampleError, match=rf"a\.safetensors is no training sample: .*{said}"):
            read(file)
