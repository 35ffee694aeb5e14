"""The control messages: every one survives JSON as it is, and nothing else is taken for one."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import fields, make_dataclass, replace
from typing import Annotated, get_args, get_type_hints

import pytest

from clear_core.cluster.channel import Listener, Refused, Token, connect
from clear_core.cluster.frames import body_of, message_of
from clear_core.cluster.messages import (
    Address,
    Alive,
    Bye,
    Cancel,
    Card,
    Done,
    Failed,
    Forward,
    FromDriver,
    FromWorker,
    Group,
    Hello,
    Loaded,
    LoadModel,
    Measure,
    Message,
    Progress,
    Refusal,
    Rows,
    Welcome,
    decode,
    encode,
)
from clear_core.cluster.schema import MalformedError, Reader, Within

SHA = "0123456789abcdef" * 4
GRAPH = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux/größe.safetensors", "weight_dtype": "default"}},
    "12:3": {
        "class_type": "CLEARApply",
        "inputs": {"model": ["1", 0], "radius": 16, "seed": 2**64 - 1, "strength": -0.5, "on": True, "none": None},
        "_meta": {"title": 'A "title"\n'},
    },
}
HELLO = Hello(1, "0.2.0", "0.3.75", "2.9.0+cu128", (Card("NVIDIA H200", 150 * 2**30, 6.5e14), Card("é", 0, 0.0)))
LOAD = LoadModel(GRAPH, "12:3", 0, {"flux/größe.safetensors": SHA, "a b.c/d..e/clear local 8.safetensors": SHA})
GROUP = Group(3, "run-3/", 4, 3, Address("fe80::1%eth0", 29500))
FORWARD = Forward(
    run=3,
    forward=0,
    height=48,
    width=64,
    bands=(Rows(0, 16), Rows(16, 32), Rows(32, 48)),
    lanes=(0, 0, 1),
    radius=16,
    together=False,
    text_merge="exact",
    ranks=(0, 1),
    active=True,
    given=("x", "timestep", "context"),
)
MESSAGES: tuple[Message, ...] = (
    HELLO,
    Welcome(0),
    Refusal("another version of torch:\n2.8 and 2.9"),
    LOAD,
    replace(LOAD, files={}),
    Loaded(SHA, (), (24 * 2**30, 0)),
    Loaded(SHA, ("a.safetensors", "b/c.safetensors"), ()),
    Failed(None, "out of memory"),
    Failed(3, "x" * 4000),
    GROUP,
    FORWARD,
    replace(FORWARD, radius=None, together=True, text_merge="average"),
    Progress(2**53 - 1, 27, 2, (0, 56)),
    Done(3, 27),
    Measure(3, 8),
    Cancel(3),
    Alive(2**53 - 1),
    Bye(),
)


def changed(message: Message, path: str, value: object) -> dict[str, object]:
    """As JSON, with another value at a path such as "cards/0/flops"."""
    body = json.loads(body_of(encode(message)))
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    inside = body
    for part in way:
        inside = inside[part]
    inside[last] = value
    return body


def test_there_is_an_example_of_every_message() -> None:
    kinds = {*get_args(FromWorker), *get_args(FromDriver)}
    assert kinds == set(get_args(Message)) == {type(message) for message in MESSAGES}
    assert all(dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen for kind in kinds)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_json(message: Message) -> None:
    body = message_of(body_of(encode(message)))
    assert body["type"] == type(message).__name__ and len(body) == 1 + len(fields(message))
    found = decode(body)
    assert found == message and type(found) is type(message)
    assert decode(body, type(message), Bye) == message


def test_messages_pass_a_real_channel() -> None:
    token = Token("one and the same token for all machines")
    with (
        Listener("127.0.0.1", 0, token, print) as listener,
        connect(*listener.address, token, 20) as worker,
        listener.accept(20) as driver,
    ):
        for message in MESSAGES:
            worker.send(encode(message))
            assert decode(driver.receive(20)) == message


def test_only_what_is_expected_now_is_taken() -> None:
    found = decode(encode(HELLO), Hello)
    assert found.cards[0].memory_bytes == 150 * 2**30
    with pytest.raises(MalformedError, match=r"^type: must be Loaded or Failed, got 'Hello'$"):
        decode(encode(HELLO), Loaded, Failed)


def test_an_integer_does_for_a_float() -> None:
    found = decode(changed(HELLO, "cards/0/flops", 5), Hello)
    assert found.cards[0].flops == 5.0 and isinstance(found.cards[0].flops, float)


LONG, DEEP = "x" * 5_000_000, [[]]
for _ in range(30):
    DEEP = [DEEP]

WRONG: tuple[tuple[Message, str, object, str], ...] = (
    (HELLO, "version", None, "version: must be an integer, got null"),
    (HELLO, "version", True, "version: must be an integer, got true"),
    (HELLO, "version", 1.0, "version: must be an integer, got 1.0"),
    (HELLO, "version", "1", "version: must be an integer, got '1'"),
    (HELLO, "version", -1, "version: must be from 0 to 65536, got -1"),
    (HELLO, "version", 10**400, "version: must be from 0 to 65536, got an integer of many digits"),
    (HELLO, "pack_version", "", "pack_version: must have 1 to 200 characters, got 0"),
    (HELLO, "pack_version", LONG, "pack_version: must have 1 to 200 characters, got 5000000"),
    (HELLO, "pack_version", 2, "pack_version: must be text, got 2"),
    (HELLO, "pack_version", "\ud800", "pack_version: must be valid Unicode"),
    (HELLO, "cards", [], "cards: must have 1 to 64 entries, got 0"),
    (HELLO, "cards", {}, "cards: must be a list, got an object"),
    (HELLO, "cards", ["H200"], "cards[0]: must be an object, got 'H200'"),
    (HELLO, "cards/1/memory_bytes", 2**53, "cards[1].memory_bytes: must be from 0 to 9007199254740991, got 9007"),
    (HELLO, "cards/1/flops", float("nan"), "cards[1].flops: must be a finite number, got nan"),
    (HELLO, "cards/1/flops", float("inf"), "cards[1].flops: must be a finite number, got inf"),
    (HELLO, "cards/1/flops", 10**400, "cards[1].flops: must be a finite number, got an integer of many digits"),
    (HELLO, "cards/1/flops", False, "cards[1].flops: must be a finite number, got false"),
    (HELLO, "cards/1/flops", 1e21, "cards[1].flops: must be from 0 to 1e+20, got 1e+21"),
    (HELLO, "cards/1/speed", 1, "cards[1].speed: is not a field of this message"),
    (HELLO, "\n" * 1000, 1, "\\n" * 40 + ": is not a field of this message"),
    (HELLO, "type", "hello", "type: must be Hello or Loaded or "),
    (HELLO, "type", "__class__", "type: must be Hello or "),
    (HELLO, "type", ["Hello"], "got a list"),
    (HELLO, "type", "\n" * 1000, "got '" + "\\n" * 40 + "'..."),
    (Bye(), "reason", "", "reason: is not a field of this message"),
    (LOAD, "graph", {}, "graph: must have 1 to 10000 entries, got 0"),
    (LOAD, "graph", [], "graph: must be an object, got a list"),
    (LOAD, "graph/12:3", 1, "graph.12:3: must be an object, got 1"),
    (LOAD, "graph/12:3", {"inputs": {}}, "graph: node 1 must have a class_type and inputs: use the API format"),
    (LOAD, "graph/12:3/class_type", 1, "graph: node 1 must have a class_type and inputs"),
    (LOAD, "graph/12:3/inputs", [], "graph: node 1 must have a class_type and inputs"),
    (LOAD, "graph/12:3/inputs/x", DEEP, "must have at most 24 levels"),
    (LOAD, "graph/12:3/inputs/x", LONG, "graph.12:3.inputs.x: must have 0 to 4194304 characters, got 5000000"),
    (LOAD, "graph/12:3/inputs/x", [float("nan")], "graph.12:3.inputs.x[0]: must be a finite number, got nan"),
    (LOAD, "graph/12:3/inputs/x", {"\udc00": 1}, "graph.12:3.inputs.x, a name: must be valid Unicode"),
    (LOAD, "graph/12:3/inputs/x", 2**64, "graph.12:3.inputs.x: must be an integer of 64 bits, got an integer of many"),
    (LOAD, "graph/12:3/inputs/x", b"x", "graph.12:3.inputs.x: must be JSON, got bytes"),
    (LOAD, "node", "2", "node: must be one of the graph"),
    (LOAD, "output", 256, "output: must be from 0 to 255, got 256"),
    (LOAD, "files/a.b", SHA.upper(), "files.a.b: must be a SHA-256, 64 lower-case hexadecimal digits, got '01234"),
    (LOAD, "files/a.b", SHA + "\n", "files.a.b: must be a SHA-256"),
    *((LOAD, "files", {name: SHA}, "files, a name: must ") for name in (
        "", "/etc/passwd", "..", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a/.", "a\\b", "C:x", "a\0", "a\n",
        "a/... /b", "...", "a ", "a" * 1001,
    )),
    (Loaded(SHA, ("a",), ()), "missing/0", "../a", "missing[0]: must be a relative path"),
    (Failed(3, "x"), "reason", "x" * 4001, "reason: must have 1 to 4000 characters, got 4001"),
    (Failed(3, "x"), "run", "3", "run: must be an integer, got '3'"),
    (GROUP, "rank", 4, "rank: must be below the number of ranks, 4, got 4"),
    (GROUP, "ranks", 0, "ranks: must be from 1 to 65536, got 0"),
    (GROUP, "store", "10.0.0.1:29500", "store: must be an object, got '10.0.0.1:29500'"),
    (GROUP, "store/port", 0, "store.port: must be from 1 to 65535, got 0"),
    (FORWARD, "together", 1, "together: must be true or false, got 1"),
    (FORWARD, "text_merge", "mean", "text_merge: must be one of 'exact', 'average', got 'mean'"),
    (FORWARD, "text_merge", None, "text_merge: must be one of 'exact', 'average', got null"),
    (FORWARD, "radius", 0, "radius: must be from 1 to 65536, got 0"),
    (FORWARD, "bands/0/start", 1, "bands: must follow each other from row 0, none of them empty"),
    (FORWARD, "bands/1/start", 15, "bands: must follow each other"),
    (FORWARD, "bands/0/stop", 0, "bands: must follow each other"),
    (FORWARD, "bands/2/stop", 47, "bands: must cover the image's 48 rows, got 47"),
    (FORWARD, "lanes", [0, 0], "lanes: must be 3, one for each band, got 2"),
    (FORWARD, "lanes", [0, 2, 2], "lanes: must begin with 0 and leave none out"),
    (FORWARD, "lanes", [1, 1, 1], "lanes: must begin with 0 and leave none out"),
    (FORWARD, "lanes", [0, 1, 0], "lanes: must begin with 0 and leave none out"),
    (FORWARD, "ranks", [0], "ranks: must be 2, one for each lane, got 1"),
    (FORWARD, "active", 0, "active: must be true or false, got 0"),
    (FORWARD, "given", [], "given: must have 1 to 4096 entries, got 0"),
    (Alive(0), "asked", -1, "asked: must be from 0 to"),
)  # fmt: skip


@pytest.mark.parametrize(("message", "path", "value", "reason"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_a_wrong_value_is_named(message: Message, path: str, value: object, reason: str) -> None:
    with pytest.raises(MalformedError) as caught:
        decode(changed(message, path, value))
    said = str(caught.value)
    assert reason in said and said.startswith(caught.value.field)
    assert said.isprintable() and len(said) < 400


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_is_needed(message: Message) -> None:
    for name in ("type", *(entry.name for entry in fields(message))):
        body = encode(message)
        del body[name]
        with pytest.raises(MalformedError, match=f"^{name}: is missing$"):
            decode(body)


@pytest.mark.parametrize("body", [None, 1, "Bye", [], ["type"], {}, {1: 2}])
def test_what_is_no_message_at_all_is_refused(body: object) -> None:
    with pytest.raises(MalformedError):
        decode(body)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (lambda: Welcome(-1), "worker: must be from 0"),
        (lambda: Welcome(True), "worker: must be an integer, got true"),
        (lambda: replace(HELLO, cards=()), "cards: must have 1 to 64"),
        (lambda: replace(HELLO, cards=(Card("a", 1, float("inf")),)), r"cards\[0\].flops: must be a finite number"),
        (lambda: replace(LOAD, files={"..": SHA}), "files, a name"),
        (lambda: replace(LOAD, graph={**GRAPH, "2": {"class_type": "A", "inputs": {"x": DEEP * 2}}}), "levels"),
        (lambda: replace(LOAD, graph={**GRAPH, "2": {"class_type": "A", "inputs": {"x": {1: 2}}}}), "a name: must be"),
        (lambda: replace(LOAD, graph={**GRAPH, "2": {"class_type": "A", "inputs": {"x": {1, 2}}}}), "got set"),
        (lambda: replace(GROUP, rank=4), "rank: must be below"),
    ],
)
def test_what_the_other_side_would_not_take_is_not_sent(message: Callable[[], Message], reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        encode(message())


def test_a_graph_that_contains_itself_is_not_sent() -> None:
    inputs: dict[str, object] = {}
    inputs["x"] = inputs
    with pytest.raises(MalformedError, match="must have at most 40 levels"):
        encode(replace(LOAD, graph={"12:3": {"class_type": "A", "inputs": inputs}}))


def test_other_dataclasses_can_be_read_too() -> None:
    point = make_dataclass("Point", [("x", Annotated[int, Within(0, 9)]), ("y", bool)], frozen=True)
    reader = Reader([point])
    assert reader.read(point, {"x": 1, "y": False}) == point(1, False)
    with pytest.raises(MalformedError, match=r"^point\.x: must be from 0 to 9, got 10$"):
        reader.read(point, {"x": 10, "y": False}, "point")


# Broken at random.

JUNK = (
    None, True, [], {}, [0], [[]], {"a": 1}, {"start": 0, "stop": 1}, -1, 0, 1, 2, 2**16, 2**53, 2**64, 10**40, 0.5,
    1e300, float("inf"), float("nan"), "", "0", "Bye", "exact", "\0", "é", "\ud800", "../x", "9" * 5000, SHA, b"", (),
)  # fmt: skip


def places(value: object) -> list[tuple[object, object]]:
    """Every container inside a JSON value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[tuple[object, object]] = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])  # pyright: ignore
    return found


def restructured(chance: random.Random, body: dict[str, object]) -> object:
    """One value replaced by junk or by another value of the message, removed, doubled, or under another name."""
    container, key = chance.choice(places(body))
    assert isinstance(container, (dict, list))
    junk = copy.deepcopy(chance.choice(JUNK))
    kind = chance.randrange(5)
    if kind == 0:
        container[key] = junk  # pyright: ignore
    elif kind == 1:
        other, place = chance.choice(places(body))
        container[key] = copy.deepcopy(other[place])  # pyright: ignore
    elif kind == 2:
        del container[key]  # pyright: ignore
    elif isinstance(container, list):
        container.insert(chance.randrange(len(container) + 1), copy.deepcopy(chance.choice((junk, *container))))
    elif kind == 3:
        container[chance.choice((*container, "x", "type", "", "\ud800", 7))] = container.pop(key)
    else:
        container[chance.choice(("x", "type", "run", "inputs", "2"))] = junk
    return body


def same(left: object, right: object) -> bool:
    """Equal, and of the same types inside: 1 is not 1.0 and not True."""
    return repr(left) == repr(right)


def test_messages_restructured_at_random_are_refused_or_sound() -> None:
    chance = random.Random(11)
    bodies = [encode(message) for message in MESSAGES]
    taken, named = 0, set[str]()
    for _ in range(3000):
        body: object = copy.deepcopy(chance.choice(bodies))
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            if isinstance(body, dict) and body:
                body = restructured(chance, body)
        try:
            found = decode(body)
        except MalformedError as error:
            named.add(error.field)
            said = str(error)
            if not (said.isprintable() and len(said) < 400):
                raise
            continue
        taken += 1
        sound(found)
    assert 150 < taken < 2500 and len(named) > 60


def test_messages_broken_at_random_as_bytes_are_refused_or_sound() -> None:
    chance = random.Random(12)
    bodies = [body_of(encode(message)) for message in MESSAGES if len(repr(message)) < 3000]
    taken, refused, malformed = 0, 0, 0
    for _ in range(5000):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.choice((1, 1, 1, 3, 10))):
            at = chance.randrange(len(body))
            kind = chance.randrange(4)
            if kind == 0:
                body[at] = chance.randrange(256)
            elif kind == 1:
                body[at] = chance.choice(b'{}[]",:0129-.eNnt\\u ')
            elif kind == 2 and len(body) > 10:
                del body[at : at + chance.choice((1, 1, 2, 8))]
            else:
                body[at:at] = chance.choice((b"0", b"-", b"e9", b"\\ud800", b"null", b"[", b"]", b"{}", b'"', b"1e999"))
        try:
            found = decode(message_of(bytes(body)))
        except Refused:
            refused += 1
        except MalformedError:
            malformed += 1
        else:
            taken += 1
            sound(found)
    assert taken > 150 and malformed > 400 and refused > 1000


def sound(message: Message) -> None:
    """One of the messages, with the types that it declares, and the same after another trip."""
    assert type(message) in get_args(Message)
    assert same(decode(json.loads(body_of(encode(message)))), message)
    for name, hint in get_type_hints(type(message)).items():
        value = getattr(message, name)
        allowed = get_args(hint) or (hint,)
        if hint in (int, str, bool, float):
            assert type(value) is hint
        elif allowed[-1] is type(None):
            assert value is None or type(value) is allowed[0]
