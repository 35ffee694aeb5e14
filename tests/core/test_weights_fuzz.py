"""Small files of every kind, broken in every way: the reader gives a sound set of weights or a WeightsError.

Twenty seconds in the ordinary run; CLEAR_FUZZ_SECONDS sets how long the long one takes, an hour if it does not.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

from clear_core.weights import ClearWeights, WeightsError, attention_keys, read_weights

from core.test_weights import contents

LONG = float(os.environ.get("CLEAR_FUZZ_SECONDS", "3600"))
ROOM = 256 * 2**20  # bytes that a process may grow by while it reads files of a few kilobytes
NAMES = ("clear_local_8.safetensors", "clear_local_8_down_2.safetensors", "mine.safetensors")

WHOLE = tuple(
    save({key: tensor.to(dtype) for key, tensor in contents(2, 2, hidden=3, factor=factor).items()}, metadata)
    for dtype in (torch.float32, torch.bfloat16)
    for factor, metadata in ((1, None), (2, {"clear.radius": "8", "clear.down_factor": "2"}))
)

NUMBERS = (-1, 0, 1, 2, 3, 7, 8, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64 - 1, 2**64, 10**40, 0.5, 1e300, 1e999)
WORDS = ("", "F32", "BF16", "F16", "F8_E4M3", "F4", "I8", "BOOL", "f32", "\0", "é", "\ud800", "../x", "9" * 5000)
JUNK = (None, True, [], {}, [0], [0, 0], [-1, 5], [[]], {"a": 1}, *NUMBERS, *WORDS)
TEXT = ('"', "{", "}", "[", "]", ",", ":", "NaN", "-Infinity", "1e999", "\\ud800", "\0", "9" * 400, "[" * 200, " " * 9)

Mutation = Callable[[random.Random, bytes], bytes]


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header and data, as far as they are there."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def joined(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


def flip(chance: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 30))):
        if out:
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(chance: random.Random, data: bytes) -> bytes:
    start, stop = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return chance.choice((data[:stop], data[start:], data[:start] + data[stop:]))


def grow(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 7, 8, 100))) + data[at:]


def claim(chance: random.Random, data: bytes) -> bytes:
    """Another length of the header."""
    length = int.from_bytes(data[:8], "little")
    other = chance.choice((0, 1, 8, 2**20, 2**23, 2**23 + 1, 2**40, 2**63, 2**64 - 1, length + 1, max(0, length - 1)))
    return struct.pack("<Q", other % 2**64) + data[8:]


def splice(chance: random.Random, data: bytes) -> bytes:
    """Text put into the header, or over it."""
    header, rest = split(data)
    at = chance.randrange(len(header) + 1)
    text = chance.choice(TEXT).encode("utf-8", "surrogatepass")
    over = chance.choice((0, len(text)))
    return joined(header[:at] + text + header[at + over :], rest)


def edit(chance: random.Random, data: bytes) -> bytes:
    """One value of the header, or one name, replaced, removed, doubled or moved."""
    header, rest = split(data)
    try:
        parsed = json.loads(header)
        tensors = {name: dict(value) for name, value in parsed.items() if isinstance(value, dict)}
    except (ValueError, AttributeError, RecursionError):  # broken before
        return flip(chance, data)
    name = chance.choice([*tensors, "__metadata__"])
    entry = tensors.setdefault(name, {})
    field = chance.choice(["dtype", "shape", "data_offsets", *entry])
    kind = chance.randrange(7)
    if kind == 0:
        entry[field] = chance.choice(JUNK)
    elif kind == 1:
        entry.pop(field, None)
    elif kind == 2 and isinstance(entry.get(field), list) and entry[field]:
        entry[field] = list(entry[field])
        entry[field][chance.randrange(len(entry[field]))] = chance.choice(NUMBERS)
    elif kind == 3:
        tensors[chance.choice((*WORDS, name + ".0", name.replace("0", "00"), name.replace("0", "99")))] = entry
    elif kind == 4:
        del tensors[name]
    elif kind == 5:
        tensors[name] = chance.choice(list(tensors.values()))
    else:
        return joined(header.rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode(), rest)
    return joined(json.dumps(tensors).encode(), rest)


MUTATIONS: tuple[Mutation, ...] = (flip, cut, grow, claim, splice, edit, edit, edit)


def check(path: Path, data: bytes) -> bool:
    """Read the file: whether it was taken for weights. Anything but weights or a WeightsError fails."""
    path.write_bytes(data)
    said, weights = "", None
    try:
        weights = read_weights(path)
    except WeightsError as error:
        said = str(error)
    assert said.isprintable() and len(said) < 2000
    if weights is not None:
        sound(weights)
    path.unlink()
    return weights is not None


def sound(weights: ClearWeights) -> None:
    """What the rest of the pack relies on."""
    assert set(weights.attention) == set(attention_keys(*weights.blocks))
    assert len({tensor.shape[0] for tensor in weights.attention.values()}) == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights.attention.values())
    assert weights.variant.radius is None or 1 <= weights.variant.radius <= 128
    assert len(weights.spatial) in (0, sum(weights.blocks))
    assert {tuple(weight.shape) for weight in weights.spatial.values()} <= {(weights.variant.down_factor,) * 2}


def mutated(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = chance.choice(MUTATIONS)(chance, data)
    return data


def hunt(path: Path, *, examples: int, number: int | None = None) -> tuple[int, int]:
    """Try so many examples, the same for each number; how many were tried and how many were sound after all."""
    tried = sound_ones = 0

    @seed(number)
    @settings(max_examples=examples, derandomize=number is None, database=None)
    @given(chance=st.randoms(), whole=st.sampled_from(WHOLE), name=st.sampled_from(NAMES))
    def look(chance: random.Random, whole: bytes, name: str) -> None:
        nonlocal tried, sound_ones
        tried += 1
        sound_ones += check(path / name, mutated(chance, whole))

    before = peak()
    look()
    assert peak() - before < ROOM
    return tried, sound_ones


def peak() -> int:
    """The most memory this process has ever had, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("whole", WHOLE)
def test_the_files_are_sound_before_they_are_broken(tmp_path: Path, whole: bytes) -> None:
    assert check(tmp_path / "mine.safetensors", whole)


def test_broken_files_are_refused_in_words(tmp_path: Path) -> None:
    tried, sound_ones = hunt(tmp_path, examples=5000)
    assert tried >= 5000
    # Some mutations do no harm (a bit of a value, the order of names): both answers are put to the test.
    assert 0 < sound_ones < tried / 2


@pytest.mark.soak
def test_an_hour_of_broken_files(tmp_path: Path) -> None:
    end, number, tried, sound_ones = time.monotonic() + LONG, 0, 0, 0
    while time.monotonic() < end:
        number += 1
        more = hunt(tmp_path, examples=5000, number=number)
        tried, sound_ones = tried + more[0], sound_ones + more[1]
    print(f"{tried:,} files, of which {sound_ones:,} were sound")
