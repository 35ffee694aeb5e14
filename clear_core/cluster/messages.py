"""What a driver and a worker tell each other, in this order.

    worker                          driver
    Hello                    ->
                             <-     Welcome, or Refusal and the end
                             <-     LoadModel
    Loaded, or Failed        ->
                             <-     Group: both join a process group of torch.distributed
                             <-     Measure, once, before the first Forward: answered by the process group
                             <-     Forward, once for each forward of the model in a run
    Progress ..., Done       ->            or Failed
                             <-     Cancel, at any time
    Alive                   <->     Alive: asked and answered at once, at any time
    Bye                     <->     Bye: an honest end, at any time

As JSON, a message is an object of its fields and `type`, the name of its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, TypeVar, get_args, overload

from .schema import Length, MalformedError, Matches, Reader, Tree, Within, shortened, to_json

Text = Annotated[str, Length(1, 200)]
"""A name or a version."""
Reason = Annotated[str, Length(1, 4000)]
Number = Annotated[int, Within(0, 2**53 - 1)]
Count = Annotated[int, Within(1, 2**16)]
Index = Annotated[int, Within(0, 2**16)]
Sha256 = Annotated[str, Matches("[0-9a-f]{64}", "a SHA-256, 64 lower-case hexadecimal digits")]
_PART = r"[^\\/:\x00-\x1f\x7f]*[^\\/:\x00-\x1f\x7f. ]"
FileName = Annotated[
    str,
    Length(1, 1000),
    # A worker looks for it below its own model folders, and must not be led out of them.
    Matches(
        f"{_PART}(/{_PART})*",
        "a relative path with / between its parts, which are not empty, have no \\ or : and end in no dot or space",
    ),
]
NodeId = Annotated[str, Length(1, 200)]
Graph = Annotated[Mapping[NodeId, Mapping[str, object]], Length(1, 10_000), Tree(deepest=24, longest=2**22)]


@dataclass(frozen=True, slots=True)
class Card:
    """One device. flops: measured, per second in the model's type; 0 where nobody has measured."""

    name: Text
    memory_bytes: Number
    flops: Annotated[float, Within(0, 1e20)]


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker wants to join. version: of these messages."""

    version: Index
    pack_version: Text
    host_version: Text
    torch_version: Text
    cards: Annotated[tuple[Card, ...], Length(1, 64)]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The worker has joined. worker: its number in the driver's messages, for as long as it stays."""

    worker: Index


@dataclass(frozen=True, slots=True)
class Refusal:
    """The worker cannot join: other versions, for example. The driver closes the channel."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Run the part of a graph that ends in a MODEL, and keep that.

    graph: in ComfyUI's API format. node, output: whose output is the MODEL, and which of them, from 0.
    files: the SHA-256 of every file that the graph reads, by its name below a folder of models.
    """

    graph: Graph
    node: NodeId
    output: Annotated[int, Within(0, 255)]
    files: Annotated[Mapping[FileName, Sha256], Length(0, 1000)]

    def __post_init__(self) -> None:
        if self.node not in self.graph:
            raise MalformedError("node", "must be one of the graph")
        for number, node in enumerate(self.graph.values()):
            if not isinstance(node.get("class_type"), str) or not isinstance(node.get("inputs"), dict):
                raise MalformedError("graph", f"node {number} must have a class_type and inputs: use the API format")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker has the MODEL, or could have it but for some files.

    patch_keys_digest: SHA-256 of the names of its weight patches and of its type, to compare with the driver's.
    missing: files that are not there or differ. memory: bytes of each card beside the MODEL's weights, 0 for one that
    has no memory of its own; () where the MODEL is not there.
    """

    patch_keys_digest: Sha256
    missing: Annotated[tuple[FileName, ...], Length(0, 1000)]
    memory: Annotated[tuple[Number, ...], Length(0, 64)]


@dataclass(frozen=True, slots=True)
class Failed:
    """What the worker was told to do did not work. run: the one that failed; None for a model."""

    run: Number | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Address:
    host: Annotated[str, Length(1, 255)]
    port: Annotated[int, Within(1, 65535)]


@dataclass(frozen=True, slots=True)
class Group:
    """Join a process group of torch.distributed, for the forwards of a run.

    prefix: of its keys in the store at `store`. ranks: how many there are; rank: the worker's, from 0.
    """

    run: Number
    prefix: Text
    ranks: Count
    rank: Index
    store: Address

    def __post_init__(self) -> None:
        if self.rank >= self.ranks:
            raise MalformedError("rank", f"must be below the number of ranks, {self.ranks}, got {self.rank}")


@dataclass(frozen=True, slots=True)
class Measure:
    """Give back what rank 0 sends by the process group (`clear_core.cluster.measure`). forward: a number of its own."""

    run: Number
    forward: Number


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` up to, not including, `stop` of the image's token grid."""

    start: Index
    stop: Index


@dataclass(frozen=True, slots=True)
class Forward:
    """Run the model once, in bands of image rows (`clear_core.bands.plan`). Its tensors come by the process group.

    forward: its number, which grows. height, width: of the image, in tokens. bands: top to bottom. lanes: whose each
    band is. ranks: whose each lane is. radius: of the window, in tokens; None where bands need all others. together:
    every band publishes before the first attends. text_merge: as in `clear_core.bands.workers`. active: whether the
    window is on in this step. given: names of the tensors that rank 0 sends, in order: arguments of the forward.
    """

    run: Number
    forward: Number
    height: Count
    width: Count
    bands: Annotated[tuple[Rows, ...], Length(1, 4096)]
    lanes: Annotated[tuple[Index, ...], Length(1, 4096)]
    radius: Count | None
    together: bool
    text_merge: Literal["exact", "average"]
    ranks: Annotated[tuple[Index, ...], Length(1, 4096)]
    active: bool
    given: Annotated[tuple[Text, ...], Length(1, 4096)]

    def __post_init__(self) -> None:
        edges = [0, *(band.stop for band in self.bands)]
        if [band.start for band in self.bands] != edges[:-1] or any(a >= b for a, b in pairwise(edges)):
            raise MalformedError("bands", "must follow each other from row 0, none of them empty")
        if edges[-1] != self.height:
            raise MalformedError("bands", f"must cover the image's {self.height} rows, got {edges[-1]}")
        if len(self.lanes) != len(self.bands):
            raise MalformedError("lanes", f"must be {len(self.bands)}, one for each band, got {len(self.lanes)}")
        if self.lanes[0] != 0 or any(b - a not in (0, 1) for a, b in pairwise(self.lanes)):
            raise MalformedError("lanes", "must begin with 0 and leave none out")
        if len(self.ranks) != self.lanes[-1] + 1:
            raise MalformedError("ranks", f"must be {self.lanes[-1] + 1}, one for each lane, got {len(self.ranks)}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the worker is in a forward. first: its first band. blocks: that each of its bands has done."""

    run: Number
    forward: Number
    first: Index
    blocks: Annotated[tuple[Index, ...], Length(1, 4096)]


@dataclass(frozen=True, slots=True)
class Done:
    """The worker has done all of a forward, and has sent its part of the output."""

    run: Number
    forward: Number


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a run, if it is still going on. The worker keeps its model."""

    run: Number


@dataclass(frozen=True, slots=True)
class Alive:
    """Asks the other side for the same, or answers. asked: the number in the question."""

    asked: Number


@dataclass(frozen=True, slots=True)
class Bye:
    """Nothing follows: close the channel."""


FromWorker = Hello | Loaded | Failed | Progress | Done | Alive | Bye
FromDriver = Welcome | Refusal | LoadModel | Group | Measure | Forward | Cancel | Alive | Bye
Message = FromWorker | Welcome | Refusal | LoadModel | Group | Measure | Forward | Cancel

VERSION = 2
"""Of these messages: goes up when one of them changes."""

_READER = Reader(get_args(Message))

M = TypeVar("M", bound=Message)


def encode(message: Message) -> dict[str, object]:
    """What `Channel.send` takes. Raises MalformedError for values that the other side would not take."""
    fields = to_json(message)
    assert isinstance(fields, dict)
    body = {"type": type(message).__name__, **fields}
    decode(body)
    return body


@overload
def decode(body: object) -> Message: ...
@overload
def decode(body: object, *expected: type[M]) -> M: ...
def decode(body: object, *expected: type[Message]) -> Message:
    """The message in what `Channel.receive` gave. expected: kinds that may come now; none given: all.

    Raises MalformedError for everything else.
    """
    kinds = {kind.__name__: kind for kind in expected or get_args(Message)}
    if not isinstance(body, Mapping):
        raise MalformedError("message", f"must be an object, got {shortened(body)}")
    if "type" not in body:
        raise MalformedError("type", "is missing")
    name = body["type"]
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MalformedError("type", f"must be {' or '.join(kinds)}, got {shortened(name)}")
    return _READER.read(kind, {key: value for key, value in body.items() if key != "type"})
