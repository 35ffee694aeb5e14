"""Weight files: what is read, and what each bad file is told."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        ("clear_local_0.safetensors", None),
        ("clear_local_129.safetensors", None),
        ("clear_local_999999999.safetensors", None),
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
        ("transformer_blocks.0.attn.to_q.weight", torch.zeros(4), r"has shape \(4,\), beside .* must be \(4, 4\)"),
        ("transformer_blocks.0.attn.to_q.weight", torch.zeros(4, 5), r"has shape \(4, 5\), beside .* of 4 channels"),
        ("transformer_blocks.0.attn.to_q.bias", torch.zeros(()), r"has shape \(\)"),
        ("transformer_blocks.0.attn.processor.spatial_weight", torch.zeros(4, 4), r"float \[1, 1, 1, f, 1, f, 1\]"),
        (
            "transformer_blocks.0.attn.processor.spatial_weight",
            torch.zeros(1, 1, 1, 9, 1, 9, 1),
            "with f from 2 to 8",
        ),
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
        ({"clear.radius": "1" * 5000}, "= '1{40}'; a whole number from 1 to 128 is allowed"),
        ({"clear.radius": "\u0663"}, "1 to 128 is allowed"),
        ({"clear.radius": "8", "clear.down_factor": "4"}, "says down-sampling factor 4"),
    ],
)
def test_metadata_that_cannot_be_is_refused(metadata: dict[str, str], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        parse_weights(contents(), metadata, "x.safetensors")


# ---- files that lie ------------------------------------------------------------------------------------

Header = dict[str, Any]


def header_of(path: Path) -> tuple[Header, bytes]:
    """A safetensors file's header and data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file of this header, right or wrong. length: what it claims the header's to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "clear_local_8.safetensors"
    save_file(contents(), path)
    return path


FIRST, SECOND = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_k.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_offsets": [0, 2**60]}, "invalid offset|overflow|invalid shape"),
        ({"data_offsets": [-64, 0]}, "invalid value: integer `-64`"),
        ({"data_offsets": [64, 0]}, "invalid offset|invalid shape"),
        ({"data_offsets": [4, 68]}, "invalid offset"),
        ({"shape": [2**62, 2**62]}, "overflow"),
        ({"shape": [2**20, 2**20]}, "invalid shape"),
        ({"shape": [-4, -4]}, "invalid value: integer `-4`"),
        ({"dtype": "F128"}, "unknown variant `F128`"),
        ({"dtype": None}, "invalid type: null"),
    ],
)
def test_a_header_that_lies_about_a_tensor_is_refused(whole: Path, change: Header, words: str) -> None:
    header, data = header_of(whole)
    header[FIRST] |= change
    put(whole, header, data)
    with pytest.raises(WeightsError, match=f"cannot be read as safetensors: .*({words}).*download it again"):
        read_weights(whole)


def test_tensors_that_share_bytes_are_refused(whole: Path) -> None:
    header, data = header_of(whole)
    header[FIRST]["data_offsets"] = header[SECOND]["data_offsets"]
    put(whole, header, data)
    with pytest.raises(WeightsError, match="cannot be read as safetensors: .*invalid offset"):
        read_weights(whole)


@pytest.mark.parametrize("shape", [[0, 4], [0, 2**62, 2**62], [0, 2**64 - 1]])
def test_a_tensor_of_nothing_is_refused(whole: Path, shape: list[int]) -> None:
    header, data = header_of(whole)
    header["transformer_blocks.0.attn.to_q.extra"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    put(whole, header, data)
    with pytest.raises(WeightsError, match=r"to_q.extra has shape \[0, .*which holds nothing"):
        read_weights(whole)


@pytest.mark.parametrize("length", [9 * 2**20, 2**40, 2**64 - 1])
def test_a_header_of_absurd_length_is_refused_unread(whole: Path, length: int) -> None:
    header, data = header_of(whole)
    put(whole, header, data, length)
    with pytest.raises(WeightsError, match=f"its header claims {length:,} bytes; 8,388,608 are the most"):
        read_weights(whole)


def test_a_name_that_is_there_twice_is_refused(whole: Path) -> None:
    header, data = header_of(whole)
    # Readers take the last: the same bytes as another dtype.
    again = header[FIRST] | {"dtype": "BF16", "shape": [4, 8]}
    put(whole, json.dumps(header).encode()[:-1] + f', "{FIRST}": {json.dumps(again)}}}'.encode(), data)
    with pytest.raises(WeightsError, match=f"{FIRST} is in it twice"):
        read_weights(whole)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"null", b"{", b"\xff\xfe{}", b'{"a": NaN}'])
def test_a_header_that_is_no_json_object_is_refused(whole: Path, text: bytes) -> None:
    put(whole, text, b"")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_weights(whole)


def test_an_empty_header_is_no_set_of_weights(whole: Path) -> None:
    put(whole, {}, b"")
    with pytest.raises(WeightsError, match="of 0 tensors"):
        read_weights(whole)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float8_e4m3fn, "torch.float8_e4m3fn"),
        (torch.float8_e5m2, "torch.float8_e5m2"),
        (torch.int8, "torch.int8"),
        (torch.bool, "torch.bool"),
        (torch.float64, "torch.float64"),
    ],
)
def test_a_dtype_that_is_not_theirs_is_named(whole: Path, dtype: torch.dtype, said: str) -> None:
    save_file({**contents(), FIRST: torch.zeros(4, 4).to(dtype)}, whole)
    with pytest.raises(WeightsError, match=f"{FIRST} has dtype {said}; .*download a released one"):
        read_weights(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_reported_with_their_keys(whole: Path, dtype: torch.dtype, value: float) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in contents(factor=2).items()}
    pooling = "single_transformer_blocks.1.attn.processor.spatial_weight"
    tensors[FIRST][2, 3] = tensors[pooling][0, 0, 0, 1] = value
    save_file(tensors, whole.with_name("clear_local_8_down_2.safetensors"))
    with pytest.raises(WeightsError) as error:
        read_weights(whole.with_name("clear_local_8_down_2.safetensors"))
    assert "is damaged: NaN or infinite values in 2 of 39 tensors (" in str(error.value)
    assert FIRST in str(error.value) and pooling in str(error.value)


def test_57_blocks_with_one_missing(whole: Path) -> None:
    tensors = contents(19, 38, hidden=2)
    save_file({key: tensor for key, tensor in tensors.items() if ".11." not in key}, whole)
    with pytest.raises(WeightsError, match=r"0 unexpected; 14 missing \(transformer_blocks.11.attn.to_q.weight"):
        read_weights(whole)


@pytest.mark.parametrize("index", ["00", "\u0660", "0x0", "-0", "1" * 5000])
def test_a_layer_under_a_second_name_is_unexpected(index: str) -> None:
    for name in ("to_q.weight", "processor.spatial_weight"):
        key = f"transformer_blocks.{index}.attn.{name}"
        with pytest.raises(WeightsError, match="1 unexpected"):
            parse_weights({**contents(), key: torch.zeros(4, 4)}, {}, "x.safetensors")


def test_names_are_shown_on_one_line_of_bearable_length() -> None:
    with pytest.raises(WeightsError) as error:
        parse_weights({"\x1b[31m\n" + "a" * 10**6: torch.zeros(1)}, {}, "x.safetensors")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_what_is_not_a_plain_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no file"):
        read_weights(tmp_path)


_READ = """
import sys
sys.path.insert(0, sys.argv[1])
import psutil, torch
from pathlib import Path
from clear_core.weights import WeightsError, read_weights
torch.aminmax(torch.zeros(4))
import safetensors
process = psutil.Process()
if sys.argv[3] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (process.memory_info().vms + 2**30,) * 2)
before = process.memory_info().rss
try:
    read_weights(Path(sys.argv[2]))
except WeightsError as error:
    print(error)
print(process.memory_info().rss - before)
"""


def read_elsewhere(path: Path, limit: str = "") -> tuple[str, int]:
    """What a process of its own is told of a file, and by how many bytes its memory grew. limit: a gibibyte more."""
    command = [sys.executable, "-c", _READ, str(Path(__file__).parents[2]), str(path), limit]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said, grown = run.stdout.splitlines()
    return said, int(grown)


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    """3.5 GB that take no room on a disk: a sound header, and nothing behind it. One tensor is not what it must be."""
    header: Header = {}
    end = 0
    for key in attention_keys(1, 1):
        shape = [2**14] * 2 if key.endswith("weight") else [3]
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    path = tmp_path / "clear_local_8.safetensors"
    put(path, header, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    return path


def test_what_is_wrong_is_found_before_the_tensors_are_read(hollow: Path) -> None:
    said, grown = read_elsewhere(hollow)
    assert "bias has shape (3,), beside others of 16384 channels it must be (16384,)" in said
    assert grown < 64 * 2**20


if sys.platform == "linux":  # elsewhere a process cannot be kept short of addresses

    def test_a_file_that_memory_has_no_room_for_says_so(hollow: Path) -> None:
        said, _ = read_elsewhere(hollow, "limit")
        assert " cannot be read: " in said and "allocate memory" in said
        assert said.endswith("See that ComfyUI may read it and that enough memory is free.")
