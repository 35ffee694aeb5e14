"""Headers of messages between processes: what was packed comes out, and nothing else gets in."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from clear_core.bands.schedule import Copy, CopyKind
from clear_core.cluster.wire import HEADER_BYTES, MOST_BYTES, Header, Kind, Shape, WireError, shapes, unpack
from clear_core.layout import Band

HALO = Header("copy", 7, 3, Copy("halo", 1, 0, Band(5, 9)), tensors=shapes([torch.zeros(1, 2, 3, 4)] * 2))


def copies() -> st.SearchStrategy[Copy]:
    lanes = st.integers(0, 1000)
    start = st.integers(0, 5000)
    halo = st.builds(
        lambda source, target, first, count: Copy("halo", source, target, Band(first, first + count)),
        lanes, lanes, start, st.integers(1, 5000),
    )  # fmt: skip
    kinds: list[CopyKind] = [kind for kind in get_args(CopyKind) if kind != "halo"]
    return st.one_of(halo, st.builds(Copy, st.sampled_from(kinds), lanes, lanes, st.none()))


def headers() -> st.SearchStrategy[Header]:
    sides = st.lists(st.integers(0, 40), max_size=6).map(tuple)
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64])
    tensors = st.lists(st.builds(Shape, dtypes, sides), max_size=8).map(tuple)
    kinds: list[Kind] = [kind for kind in get_args(Kind) if kind != "copy"]
    number = st.integers(0, 2**31 - 1)
    return st.one_of(
        st.builds(Header, st.just("copy"), number, number, copies(), number, tensors),
        st.builds(Header, st.sampled_from(kinds), st.integers(0, 2**63), number, st.none(), number, tensors),
    )


@given(header=headers())
def test_a_header_comes_out_as_it_went_in(header: Header) -> None:
    data = header.pack()
    assert len(data) == HEADER_BYTES
    assert unpack(data) == header


@given(data=st.binary(min_size=0, max_size=HEADER_BYTES + 1))
def test_bytes_of_anybody_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack(data)


@given(places=st.lists(st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255)), min_size=1, max_size=6))
@example(places=[(4, 9)])
def test_an_altered_header_is_refused_or_says_what_is_allowed(places: list[tuple[int, int]]) -> None:
    data = bytearray(HALO.pack())
    for place, value in places:
        data[place] = value
    try:
        header = unpack(bytes(data))
    except WireError:
        return
    assert header.nbytes <= MOST_BYTES
    assert unpack(header.pack()) == header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copy": None}, "kind copy with copy None"),
        ({"kind": "alive"}, "kind alive with copy"),
        ({"tensors": (Shape(torch.uint8, (2**31, 2**31)),)}, "tensors of 4611686018427387904 bytes"),
        ({"tensors": (Shape(torch.uint8, (1,)),) * 9}, "9 tensors"),
    ],
)
def test_what_a_header_cannot_say(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"kind": "copy", "copy": HALO.copy, **change}
    with pytest.raises(WireError, match=message):
        Header(**given).pack()


def test_another_version_says_what_to_do() -> None:
    data = bytearray(HALO.pack())
    data[4] = 99
    with pytest.raises(WireError, match="version 99 of the messages; this is version 1: update both machines"):
        unpack(bytes(data))


def test_what_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="complex64"):
        shapes([torch.zeros(1, dtype=torch.complex64)])
