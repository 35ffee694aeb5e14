"""The header that goes before tensors from one process to another: of a fixed size, checked, without pickle.

A header says what follows: whose copy of which layer and forward it is, and the dtypes and shapes of its tensors. Their
bytes come after it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from ..bands.schedule import Copy, CopyKind
from ..layout import Band

VERSION: Final = 1
HEADER_BYTES: Final = 512
MOST_TENSORS: Final = 8
MOST_BYTES: Final = 2**34
"""Of one message's tensors: a halo of 16384 x 16384 pixels has 0.4 GB."""

Kind = Literal["alive", "bye", "failed", "given", "copy", "output"]
"""alive: nothing else was to be sent. bye: nothing will be. failed: the sender cannot go on with the forward. given:
arguments of the forward. copy: of a lane to a lane. output: rows of the forward's result."""

_KINDS: tuple[Kind, ...] = get_args(Kind)
_COPIES: tuple[CopyKind, ...] = get_args(CopyKind)
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
_MAGIC: Final = b"CLAR"
_MOST_DIMENSIONS: Final = 6
# magic, version, kind, forward, layer, kind of copy, source, target, first row, last row, number, tensors
_HEAD = struct.Struct("<4sHHQiiiiiiiH")
_TENSOR = struct.Struct(f"<BB{_MOST_DIMENSIONS}q")


class WireError(ValueError):
    """Bytes that are no header, or one that is not allowed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tensor that follows a header."""

    dtype: torch.dtype
    sides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.sides) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """forward: number of the forward, which grows. layer, copy: of a "copy". number: tells messages of a kind apart.

    tensors: what follows.
    """

    kind: Kind
    forward: int = 0
    layer: int = 0
    copy: Copy | None = None
    number: int = 0
    tensors: tuple[Shape, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of the tensors that follow."""
        return sum(shape.nbytes for shape in self.tensors)

    def pack(self) -> bytes:
        """`HEADER_BYTES` bytes. Raises WireError for what a header cannot say."""
        if (self.copy is None) == (self.kind == "copy"):
            raise WireError(f"a header of kind {self.kind} with copy {self.copy}")
        kind, source, target, start, stop = -1, 0, 0, -1, -1
        if self.copy is not None:
            kind, source, target = _COPIES.index(self.copy.kind), self.copy.source, self.copy.target
            if self.copy.rows is not None:
                start, stop = self.copy.rows.start, self.copy.rows.stop
        if len(self.tensors) > MOST_TENSORS or self.nbytes > MOST_BYTES:
            raise WireError(f"{len(self.tensors)} tensors of {self.nbytes} bytes; {MOST_TENSORS} of {MOST_BYTES} fit")
        head = _HEAD.pack(
            _MAGIC, VERSION, _KINDS.index(self.kind), self.forward, self.layer, kind, source, target, start, stop,
            self.number, len(self.tensors),
        )  # fmt: skip
        return (head + b"".join(map(_pack_shape, self.tensors))).ljust(HEADER_BYTES, b"\0")


def unpack(data: bytes) -> Header:
    """A header from `HEADER_BYTES` bytes of anybody. Raises WireError."""
    if len(data) != HEADER_BYTES:
        raise WireError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
    magic, version, kind, forward, layer, copied, source, target, start, stop, number, count = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise WireError("not a message of CLEAR")
    if version != VERSION:
        raise WireError(f"version {version} of the messages; this is version {VERSION}: update both machines")
    if kind >= len(_KINDS) or count > MOST_TENSORS or (copied >= 0) != (_KINDS[kind] == "copy"):
        raise WireError(f"a message of kind {kind} with {count} tensors and a copy of kind {copied}")
    shapes = tuple(_unpack_shape(data, _HEAD.size + i * _TENSOR.size) for i in range(count))
    copy = None
    if copied >= 0:
        rows = None if start < 0 else _rows(start, stop)
        if copied >= len(_COPIES) or min(source, target) < 0 or (rows is None) == (_COPIES[copied] == "halo"):
            raise WireError(f"a copy of kind {copied} from {source} to {target} of the rows {start} to {stop}")
        copy = Copy(_COPIES[copied], source, target, rows)
    header = Header(_KINDS[kind], forward, layer, copy, number, shapes)
    if header.nbytes > MOST_BYTES:
        raise WireError(f"{header.nbytes} bytes of tensors; {MOST_BYTES} are allowed")
    return header


def shapes(tensors: Sequence[Tensor]) -> tuple[Shape, ...]:
    """Of tensors to be sent. Raises WireError for a dtype or a number of dimensions that cannot be."""
    for tensor in tensors:
        if tensor.dtype not in _DTYPES or tensor.dim() > _MOST_DIMENSIONS:
            raise WireError(f"a tensor of {tensor.dtype} with {tensor.dim()} dimensions cannot be sent")
    return tuple(Shape(tensor.dtype, tuple(tensor.shape)) for tensor in tensors)


def _rows(start: int, stop: int) -> Band:
    if stop <= start:
        raise WireError(f"rows {start} to {stop}")
    return Band(start, stop)


def _pack_shape(shape: Shape) -> bytes:
    sides = [*shape.sides, *[0] * (_MOST_DIMENSIONS - len(shape.sides))]
    return _TENSOR.pack(_DTYPES.index(shape.dtype), len(shape.sides), *sides)


def _unpack_shape(data: bytes, offset: int) -> Shape:
    dtype, dimensions, *sides = _TENSOR.unpack_from(data, offset)
    sides = sides[:dimensions]
    if dtype >= len(_DTYPES) or dimensions > _MOST_DIMENSIONS or any(not 0 <= side <= 2**31 for side in sides):
        raise WireError(f"a tensor of dtype {dtype} with sides {sides}")
    return Shape(_DTYPES[dtype], tuple(sides))
