"""CLEAR weight files: the distilled attention layers, in diffusers names, as the authors released them.

    transformer_blocks.{i}.attn.{to_q,to_k,to_v,to_out.0}.{weight,bias}
    single_transformer_blocks.{i}.attn.{to_q,to_k,to_v}.{weight,bias}
    [single_]transformer_blocks.{i}.attn.processor.spatial_weight      in the down-sampled variants

FLUX.1 has 19 double and 38 single blocks. Files for FLUX.2, whose layers have none, lack the biases. The text stream,
the norms and the MLPs are not in the file: they stay the model's own.

Files are untrusted. The header is read and checked first: names, shapes and dtypes are known to be right before a
tensor is touched. The tensors stay memory-mapped, so memory does not grow with the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .file_stamp import FileStamp
from .flux import FAMILIES, FLUX_1, FLUX_2

RADIUS_KEY, DOWN_FACTOR_KEY, FAMILY_KEY = "clear.radius", "clear.down_factor", "clear.family"
"""Metadata a file may carry to say its variant whatever its name is, and the family of models that it is for."""

LARGEST_RADIUS, LARGEST_FACTOR = 128, 8

_NAME = re.compile(r"clear_local_([0-9]{1,3})(?:_down_([0-9]{1,3}))?(?![0-9])")
_DOUBLE = ("to_q", "to_k", "to_v", "to_out.0")
_SINGLE = ("to_q", "to_k", "to_v")
# Three digits: an absurd index would make the list of what is missing absurd too; no FLUX has a thousand blocks.
_INDEX = r"(0|[1-9][0-9]{0,2})"
_SPATIAL = re.compile(rf"((?:single_)?transformer_blocks)\.{_INDEX}\.attn\.processor\.spatial_weight")
_BLOCK = re.compile(rf"((?:single_)?transformer_blocks)\.{_INDEX}\.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NAMED = 3  # keys named in an error; the rest are counted
_LONGEST_KEY, _LONGEST_REASON = 100, 300  # characters that an error shows
_LARGEST_HEADER = 8 * 2**20  # bytes; a released file's has 60 thousand
# Safetensors' names of dtypes that occur in practice; others are refused as uint8 is.
_HEADER_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


class WeightsError(ValueError):
    """A file that is not a complete set of CLEAR weights. The text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Variant:
    """radius: of the window the weights were distilled for; None where the file does not say.
    down_factor: of the down-sampled keys and values, 1 for none."""

    radius: int | None
    down_factor: int


@dataclass(frozen=True, slots=True, order=True)
class BlockId:
    """One transformer block: `kind` is "double" or "single", as the host calls them."""

    kind: str
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class ClearWeights:
    """A file's contents, on the CPU.

    attention: diffusers key -> tensor, for every projection of every block.
    spatial: block -> pooling weight, float32 [f, f]; empty unless the variant is down-sampled.
    blocks: number of double and of single blocks.
    family: of models that they are for.
    stamp: of the file they were read from; None where there is none.
    """

    name: str
    variant: Variant
    attention: Mapping[str, Tensor]
    spatial: Mapping[BlockId, Tensor]
    blocks: tuple[int, int]
    stamp: FileStamp | None = None
    family: str = FLUX_1


def attention_keys(double: int, single: int, family: str = FLUX_1) -> list[str]:
    """The projections a complete file has for a model of that many blocks."""
    ends = ("weight",) if family == FLUX_2 else ("weight", "bias")
    keys = [f"transformer_blocks.{i}.attn.{name}" for i in range(double) for name in _DOUBLE]
    keys += [f"single_transformer_blocks.{i}.attn.{name}" for i in range(single) for name in _SINGLE]
    return [f"{key}.{end}" for key in keys for end in ends]


def block_of_key(key: str) -> BlockId:
    """The block a tensor of a weights file belongs to."""
    found = _BLOCK.match(key)
    if found is None:
        raise ValueError(f"{key} names no transformer block")
    return BlockId("single" if found[1].startswith("single") else "double", int(found[2]))


def variant_from_name(name: str) -> Variant | None:
    """The variant a released file's name tells: clear_local_{r}[_down_{f}]; None for other names."""
    found = _NAME.search(name)
    if found is None or not 1 <= int(found[1]) <= LARGEST_RADIUS:
        return None
    return Variant(int(found[1]), int(found[2] or 1))


def read_weights(path: Path | str) -> ClearWeights:
    """Read and check a CLEAR weights file.

    Raises WeightsError for anything that is not a readable, complete set of layers with finite values. Checking
    every value of a released file takes half a second on two CPU cores, less than reading it from disk.
    """
    path = Path(path)
    described, metadata = read_header(path)
    parse_weights(described, metadata, path.name)
    stamp = FileStamp.of(path)
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in described}
    _check_values(tensors, path.name)
    return replace(parse_weights(tensors, metadata, path.name), stamp=stamp)


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a safetensors file says it holds: tensors on the "meta" device, which have no values, and its metadata.

    For `parse_weights`. Raises WeightsError for a file that is not there, cannot be read or is malformed.
    """
    described: dict[str, Tensor] = {}
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            part = file.get_slice(key)
            shape, dtype = part.get_shape(), part.get_dtype()
            if 0 in shape:
                raise ValueError(f"{_shown(key)} has shape {shape}, which holds nothing")
            described[key] = torch.empty(shape, dtype=_HEADER_DTYPES.get(dtype, torch.uint8), device="meta")
        return described, dict(file.metadata() or {})


def parse_weights(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> ClearWeights:
    """Check what a file holds and sort it; `read_weights` without the file."""
    spatial = {key: tensor for key, tensor in tensors.items() if _SPATIAL.fullmatch(key)}
    attention = {key: tensor for key, tensor in tensors.items() if key not in spatial}
    blocks = _count_blocks(attention)
    family = metadata.get(FAMILY_KEY, FLUX_1)
    if family not in FAMILIES:
        raise WeightsError(
            f"{name} is for a model {_shown(family)!r}; this version knows {', '.join(FAMILIES)}. Update CLEAR, or "
            "choose another file."
        )
    expected = attention_keys(*blocks, family)
    missing, unexpected = _difference(expected, attention), _difference(attention, expected)
    if not expected or missing or unexpected:
        raise WeightsError(
            f"{name} is not a complete set of CLEAR weights: of {len(tensors)} tensors, "
            f"{_listed(unexpected, 'unexpected')}; {_listed(missing, 'missing')}. "
            f"Expected the attention layers of {family} in diffusers names, as in clear_local_16.safetensors; "
            "choose such a file, or download this one again."
        )
    hidden = max(tensor.shape[0] if tensor.ndim else 0 for tensor in attention.values())
    for key, tensor in attention.items():
        if tensor.dtype not in _DTYPES:
            raise WeightsError(
                f"{name}: {key} has dtype {tensor.dtype}; CLEAR weights are float32, float16 or bfloat16. "
                "Choose such a file, or download a released one."
            )
        want = (hidden,) * (2 if key.endswith(".weight") else 1)
        if tuple(tensor.shape) != want:
            raise WeightsError(
                f"{name}: {key} has shape {tuple(tensor.shape)}, beside others of {hidden} channels it must be {want}. "
                "Download the file again."
            )
    pooling = _pooling(spatial, blocks, name)
    variant = _variant(metadata, name, next(iter(pooling.values())).shape[0] if pooling else 1)
    return ClearWeights(name, variant, attention, pooling, blocks, family=family)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, for safetensors' own reader; whatever goes wrong with it in the meantime is a WeightsError."""
    # Imported here: reading is rare, and starting up should not pay for it.
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Put the CLEAR weights there, or choose another file.")
    size = 0
    try:
        size = path.stat().st_size
        header = _header_text(path)
        with safe_open(str(path), framework="pt", device="cpu") as file:
            _check_unique(header)
            yield file
    except (OSError, MemoryError, RuntimeError) as error:  # the last two, where the system has no room to map a file
        reason = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        raise WeightsError(
            f"{path} cannot be read: {reason or type(error).__name__}. "
            "See that ComfyUI may read it and that enough memory is free."
        ) from error
    except (SafetensorError, ValueError) as error:
        raise WeightsError(
            f"{path.name} ({size:,} bytes) cannot be read as safetensors: "
            f"{_shown(str(error), _LONGEST_REASON)}. "
            "It is cut short or not a safetensors file; delete it and download it again."
        ) from error


def _header_text(path: Path) -> bytes:
    """The header as it stands. Raises ValueError for one too long for a weights file: parsed it would be far longer."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header claims {length:,} bytes; {_LARGEST_HEADER:,} are the most")
        return file.read(length)


def _check_unique(header: bytes) -> None:
    """Raises ValueError where a name stands twice in the header: readers disagree on which one counts."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{_shown(name)} is in it twice")
            found[name] = value
        return found

    json.loads(header.decode(), object_pairs_hook=unique)


def _check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    broken = [key for key, tensor in tensors.items() if not all(map(math.isfinite, torch.aminmax(tensor)))]
    if broken:
        raise WeightsError(
            f"{name} is damaged: NaN or infinite values in {_listed(broken, f'of {len(tensors)} tensors')}. "
            "Every image would be black. Download the file again."
        )


def _count_blocks(keys: Iterable[str]) -> tuple[int, int]:
    """Number of double and single blocks that a file names: the highest index of each, plus one."""
    counts = {"transformer_blocks": 0, "single_transformer_blocks": 0}
    for key in keys:
        found = _BLOCK.match(key)
        if found:
            counts[found[1]] = max(counts[found[1]], int(found[2]) + 1)
    return counts["transformer_blocks"], counts["single_transformer_blocks"]


def _pooling(spatial: Mapping[str, Tensor], blocks: tuple[int, int], name: str) -> dict[BlockId, Tensor]:
    """The pooling weights by block, each [f, f]; all of one size, and one for every block or none."""
    weights: dict[BlockId, Tensor] = {}
    for key, tensor in spatial.items():
        factor = tensor.shape[3] if tensor.ndim == 7 else 0
        well_formed = tuple(tensor.shape) == (1, 1, 1, factor, 1, factor, 1) and 2 <= factor <= LARGEST_FACTOR
        if not well_formed or tensor.dtype not in _DTYPES:
            raise WeightsError(
                f"{name}: {key} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                f"a pooling weight is float [1, 1, 1, f, 1, f, 1] with f from 2 to {LARGEST_FACTOR}"
            )
        weights[block_of_key(key)] = tensor.float().reshape(factor, factor)
    if not weights:
        return weights
    every = {BlockId("double", i) for i in range(blocks[0])} | {BlockId("single", i) for i in range(blocks[1])}
    missing = [f"{block.kind} block {block.index}" for block in sorted(every - set(weights))]
    unexpected = [f"{block.kind} block {block.index}" for block in sorted(set(weights) - every)]
    if missing or unexpected:
        raise WeightsError(
            f"{name}: the pooling weights do not match its blocks: "
            f"{_listed(missing, 'missing')}; {_listed(unexpected, 'unexpected')}. Download the file again."
        )
    factors = sorted({weight.shape[0] for weight in weights.values()})
    if len(factors) > 1:
        raise WeightsError(f"{name}: its pooling weights have different factors: {factors}")
    return weights


def _variant(metadata: Mapping[str, str], name: str, factor: int) -> Variant:
    """What the metadata says, else the name; the pooling weights that are there decide the factor."""
    from_name = variant_from_name(name)
    if RADIUS_KEY in metadata or DOWN_FACTOR_KEY in metadata:
        radius = _number(metadata, RADIUS_KEY, name)
        said = _number(metadata, DOWN_FACTOR_KEY, name) or 1
    elif from_name is not None:
        radius, said = from_name.radius, from_name.down_factor
    else:
        radius, said = None, factor
    if said != factor:
        raise WeightsError(
            f"{name} says down-sampling factor {said}, but its pooling weights are for {factor} "
            "(1: there are none). The file is incomplete or misnamed; download it again."
        )
    return Variant(radius, factor)


def _number(metadata: Mapping[str, str], key: str, name: str) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not (re.fullmatch("[0-9]{1,3}", value) and 1 <= int(value) <= LARGEST_RADIUS):
        raise WeightsError(
            f"{name}: its metadata says {key} = {value[:40]!r}; a whole number from 1 to {LARGEST_RADIUS} is allowed"
        )
    return int(value)


def _difference(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [key for key in keys if key not in known]


def _listed(keys: list[str], what: str) -> str:
    if not keys:
        return f"0 {what}"
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{len(keys)} {what} ({', '.join(map(_shown, keys[:_NAMED]))}{more})"


def _shown(text: str, longest: int = _LONGEST_KEY) -> str:
    """A part of an error that the file has a say in: whatever it holds, a line stays a line."""
    return text if text.isprintable() and len(text) <= longest else f"{text[:longest]!a}..."
