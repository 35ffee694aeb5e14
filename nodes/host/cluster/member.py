"""A worker that has joined, as its driver knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....clear_core.cluster import messages as said
from ....clear_core.cluster.channel import Channel
from ....clear_core.cluster.machines import Link

TRIES = 3
"""Of a group, before a worker that does not join it is left out."""


@dataclass(frozen=True, slots=True)
class ModelJob:
    """What a worker needs for a MODEL. digest: of the driver's own, which the worker's must equal."""

    graph: Mapping[str, Mapping[str, Any]]
    node: str
    output: int
    files: Mapping[str, Path]
    digest: str


@dataclass(frozen=True, slots=True)
class Dealt:
    """A worker's part of the last forward: rows of the image's `of`. left_out: why it has none where so chosen."""

    rows: int = 0
    of: int = 0
    left_out: str = ""


@dataclass(eq=False)
class Member:
    """A worker that has joined. loaded: the job that it has; answered: the last question that it has answered.

    problem: why it takes no part, "" where it does. link: to this process, measured in the first group. memory: of each
    card, bytes beside the weights of the job that it has; None where nothing is to be saved.
    """

    number: int
    channel: Channel
    hello: said.Hello
    link: Link | None = None
    loaded: ModelJob | None = None
    loading: ModelJob | None = None
    answered: int = -1
    problem: str = ""
    gone: bool = False
    untried: int = TRIES
    dealt: Dealt = Dealt()
    memory: tuple[int | None, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.channel.peer} ({self.hello.cards[0].name})"
