"""CLEAR weight files: the distilled attention layers, in diffusers names, as the authors released them.

    transformer_blocks.{i}.attn.{to_q,to_k,to_v,to_out.0}.{weight,bias}
    single_transformer_blocks.{i}.attn.{to_q,to_k,to_v}.{weight,bias}
    [single_]transformer_blocks.{i}.attn.processor.spatial_weight      in the down-sampled variants

FLUX.1 has 19 double and 38 single blocks. The text stream, the norms and the MLPs are not in the file:
they stay the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

RADIUS_KEY, DOWN_FACTOR_KEY = "clear.radius", "clear.down_factor"
"""Metadata a file may carry to say its variant whatever its name is."""

_NAME = re.compile(r"clear_local_(\d+)(?:_down_(\d+))?")
_DOUBLE = ("to_q", "to_k", "to_v", "to_out.0")
_SINGLE = ("to_q", "to_k", "to_v")
_SPATIAL = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.attn\.processor\.spatial_weight")
_BLOCK = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NAMED = 3  # keys named in an error; the rest are counted


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
    """

    name: str
    variant: Variant
    attention: Mapping[str, Tensor]
    spatial: Mapping[BlockId, Tensor]
    blocks: tuple[int, int]


def attention_keys(double: int, single: int) -> list[str]:
    """The projections a complete file has for a model of that many blocks."""
    keys = [f"transformer_blocks.{i}.attn.{name}" for i in range(double) for name in _DOUBLE]
    keys += [f"single_transformer_blocks.{i}.attn.{name}" for i in range(single) for name in _SINGLE]
    return [f"{key}.{end}" for key in keys for end in ("weight", "bias")]


def block_of_key(key: str) -> BlockId:
    """The block a tensor of a weights file belongs to."""
    found = _BLOCK.match(key)
    if found is None:
        raise ValueError(f"{key} names no transformer block")
    return BlockId("single" if found[1].startswith("single") else "double", int(found[2]))


def variant_from_name(name: str) -> Variant | None:
    """The variant a released file's name tells: clear_local_{r}[_down_{f}]; None for other names."""
    found = _NAME.search(name)
    return Variant(int(found[1]), int(found[2] or 1)) if found else None


def read_weights(path: Path | str) -> ClearWeights:
    """Read and check a CLEAR weights file.

    Raises WeightsError for anything that is not a readable, complete set of finite-size layers.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    return parse_weights(tensors, metadata, path.name)


def parse_weights(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> ClearWeights:
    """Check what a file holds and sort it; `read_weights` without the file."""
    spatial = {key: tensor for key, tensor in tensors.items() if _SPATIAL.fullmatch(key)}
    attention = {key: tensor for key, tensor in tensors.items() if key not in spatial}
    blocks = _count_blocks(attention)
    expected = attention_keys(*blocks)
    missing, unexpected = _difference(expected, attention), _difference(attention, expected)
    if not expected or missing or unexpected:
        raise WeightsError(
            f"{name} is not a complete set of CLEAR weights: of {len(tensors)} tensors, "
            f"{_listed(unexpected, 'unexpected')}; {_listed(missing, 'missing')}. "
            "Expected the attention layers of FLUX.1 in diffusers names, as in clear_local_16.safetensors; "
            "choose such a file, or download this one again."
        )
    for key, tensor in attention.items():
        if tensor.dtype not in _DTYPES:
            raise WeightsError(
                f"{name}: {key} has dtype {tensor.dtype}; CLEAR weights are float32, float16 or bfloat16"
            )
        if tensor.ndim != (2 if key.endswith(".weight") else 1):
            raise WeightsError(f"{name}: {key} has shape {tuple(tensor.shape)}, which no linear layer has")
    pooling = _pooling(spatial, blocks, name)
    variant = _variant(metadata, name, next(iter(pooling.values())).shape[0] if pooling else 1)
    return ClearWeights(name, variant, attention, pooling, blocks)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    # Imported here: reading is rare, and starting up should not pay for it.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"There is no file {path}. Put the CLEAR weights there, or choose another file.") from None
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise WeightsError(
            f"{path.name} ({size:,} bytes) cannot be read as safetensors: {error}. "
            "It is cut short or not a safetensors file; delete it and download it again."
        ) from error


def _count_blocks(keys: Iterable[str]) -> tuple[int, int]:
    """How many double and single blocks a file speaks of: the highest index of each, plus one."""
    counts = {"transformer_blocks": 0, "single_transformer_blocks": 0}
    for key in keys:
        found = _BLOCK.match(key)
        # An absurd index would make the list of missing keys absurd too; no FLUX has a thousand blocks.
        if found and len(found[2]) <= 3:
            counts[found[1]] = max(counts[found[1]], int(found[2]) + 1)
    return counts["transformer_blocks"], counts["single_transformer_blocks"]


def _pooling(spatial: Mapping[str, Tensor], blocks: tuple[int, int], name: str) -> dict[BlockId, Tensor]:
    """The pooling weights by block, each [f, f]; all of one size, and one for every block or none."""
    weights: dict[BlockId, Tensor] = {}
    for key, tensor in spatial.items():
        factor = tensor.shape[3] if tensor.ndim == 7 else 0
        if factor < 2 or tuple(tensor.shape) != (1, 1, 1, factor, 1, factor, 1) or tensor.dtype not in _DTYPES:
            raise WeightsError(
                f"{name}: {key} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                "a pooling weight is float [1, 1, 1, f, 1, f, 1] with f of 2 or more"
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
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 128):
        raise WeightsError(f"{name}: its metadata says {key} = {value!r}; a whole number from 1 to 128 is allowed")
    return int(value)


def _difference(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [key for key in keys if key not in known]


def _listed(keys: list[str], what: str) -> str:
    if not keys:
        return f"0 {what}"
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{len(keys)} {what} ({', '.join(keys[:_NAMED])}{more})"
