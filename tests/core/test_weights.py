"""Weight files: what is read, and what each bad file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clear_core.weights import (
    BlockId,
    Variant,
    WeightsError,
    attention_keys,
    parse_weights,
    read_weights,
    variant_from_name,
)


def contents(double: int = 2, single: int = 3, hidden: int = 4, factor: int = 1) -> dict[str, Tensor]:
    """A complete set of CLEAR weights of a small model."""
    tensors = {
        key: torch.randn((hidden, hidden) if key.endswith("weight") else (hidden,))
        for key in attention_keys(double, single)
    }
    if factor > 1:
        for prefix, count in (("", double), ("single_", single)):
            for i in range(count):
                key = f"{prefix}transformer_blocks.{i}.attn.processor.spatial_weight"
                tensors[key] = torch.full((1, 1, 1, factor, 1, factor, 1), i + 1.0)
    return tensors


def test_the_released_model_has_380_tensors() -> None:
    assert len(attention_keys(19, 38)) == 19 * 8 + 38 * 6


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("clear_local_16.safetensors", Variant(16, 1)),
        ("clear_local_8_down_4.safetensors", Variant(8, 4)),
        ("my_clear_local_32_v2.safetensors", Variant(32, 1)),
        ("flux.safetensors", None),
    ],
)
def test_the_name_tells_the_variant(name: str, variant: Variant | None) -> None:
    assert variant_from_name(name) == variant


def test_a_complete_file_is_read(tmp_path: Path) -> None:
    path, tensors = tmp_path / "clear_local_8_down_4.safetensors", contents(factor=4)
    save_file(tensors, path)
    weights = read_weights(path)
    assert weights.variant == Variant(8, 4)
    assert weights.blocks == (2, 3)
    assert set(weights.attention) == set(attention_keys(2, 3))
    assert all(torch.equal(weights.attention[key], tensors[key]) for key in weights.attention)
    assert len(weights.spatial) == 5
    assert torch.equal(weights.spatial[BlockId("single", 2)], torch.full((4, 4), 3.0))


def test_metadata_goes_before_the_name(tmp_path: Path) -> None:
    path = tmp_path / "clear_local_8.safetensors"
    save_file(contents(), path, metadata={"clear.radius": "12"})
    assert read_weights(path).variant == Variant(12, 1)


def test_a_name_that_tells_nothing_leaves_the_radius_open() -> None:
    assert parse_weights(contents(), {}, "mine.safetensors").variant == Variant(None, 1)
    assert parse_weights(contents(factor=3), {}, "mine.safetensors").variant == Variant(None, 3)


def test_missing_and_unexpected_keys_are_counted_and_the_first_are_named() -> None:
    tensors = contents(1, 1)
    for key in list(tensors)[:5]:
        del tensors[key]
    tensors["lm_head.weight"] = torch.zeros(2)
    with pytest.raises(WeightsError) as error:
        parse_weights(tensors, {}, "clear_local_8.safetensors")
    text = str(error.value)
    assert "1 unexpected (lm_head.weight)" in text
    assert "5 missing (transformer_blocks.0.attn.to_q.weight" in text
    assert "and 2 more" in text
    assert "download this one again" in text


def test_a_language_model_is_refused() -> None:
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": torch.zeros(2, 2) for i in range(40)}
    with pytest.raises(WeightsError, match=r"40 unexpected \(model.layers.0.self_attn.q_proj.weight"):
        parse_weights(tensors, {}, "llm.safetensors")


def test_an_absurd_block_index_does_not_make_an_absurd_list() -> None:
    with pytest.raises(WeightsError, match="1 unexpected"):
        parse_weights({"transformer_blocks.999999999.attn.to_q.weight": torch.zeros(2, 2)}, {}, "x.safetensors")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>Please log in</html>", "41 bytes"),
        (b"\xff" * 64, "64 bytes"),
    ],
)
def test_what_is_not_safetensors_says_so(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "clear_local_8.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=f"{words}.*cannot be read as safetensors.*download it again"):
        read_weights(path)


def test_a_file_cut_short_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clear_local_8.safetensors"
    save_file(contents(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="cut short or not a safetensors file"):
        read_weights(path)


def test_a_file_that_is_not_there_says_where(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no file .*gone\.safetensors"):
        read_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("transformer_blocks.0.attn.to_q.weight", torch.zeros(4, 4, dtype=torch.int8), "has dtype torch.int8"),
        ("transformer_blocks.0.attn.to_q.weight", torch.zeros(4), r"has shape \(4,\)"),
        ("transformer_blocks.0.attn.processor.spatial_weight", torch.zeros(4, 4), r"float \[1, 1, 1, f, 1, f, 1\]"),
    ],
)
def test_a_tensor_of_the_wrong_kind_is_named(key: str, tensor: Tensor, words: str) -> None:
    with pytest.raises(WeightsError, match=f"{key}.*{words}"):
        parse_weights({**contents(), key: tensor}, {}, "x.safetensors")


def test_pooling_weights_must_be_whole_and_alike() -> None:
    tensors = contents(factor=4)
    del tensors["single_transformer_blocks.1.attn.processor.spatial_weight"]
    with pytest.raises(WeightsError, match="1 missing .single block 1"):
        parse_weights(tensors, {}, "x.safetensors")
    tensors["single_transformer_blocks.1.attn.processor.spatial_weight"] = torch.ones(1, 1, 1, 2, 1, 2, 1)
    with pytest.raises(WeightsError, match=r"different factors: \[2, 4\]"):
        parse_weights(tensors, {}, "x.safetensors")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"clear.radius": "wide"}, "clear.radius = 'wide'"),
        ({"clear.radius": "0"}, "1 to 128 is allowed"),
        ({"clear.radius": "8", "clear.down_factor": "4"}, "says down-sampling factor 4"),
    ],
)
def test_metadata_that_cannot_be_is_refused(metadata: dict[str, str], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        parse_weights(contents(), metadata, "x.safetensors")
