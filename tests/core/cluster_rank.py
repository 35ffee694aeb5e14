"""One rank of a forward in bands, a process of its own: told by lines of JSON what to do, and tells what came of it.

    python -m core.cluster_rank

The first line is `{"store": [address, port], "interface": address}`. `{"group": name, "rank": 0, "size": 2}` joins a
group; `{"forward": 1, "ranks": [0, 1], "image": [24, 4], ...}` runs a forward and writes this rank's rows to `out`; an
empty line ends it.

With `"hold": n` the forward stops where a band of this rank attends for the n-th time, from 0, and goes on after one
more line: `{}`, or `{"busy": seconds}` to compute that long before, or `{"leave": true}` to fail instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch

from clear_core.bands.plan import BandPlan
from clear_core.bands.remote import PeerError
from clear_core.bands.run import BandedForward
from clear_core.cluster.c10d import C10dTransport, joined_store
from clear_core.cluster.transport import Router
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import forwards

PATIENCE = 3.0
Command = Callable[[Router, C10dTransport, "dict[str, Any]"], None]


class Leaves(Exception):
    """The rank was told to fail."""


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def forward(router: Router, transport: C10dTransport, asked: dict[str, Any]) -> None:
    ranks = asked["ranks"]
    window = None if asked["radius"] is None else Window(asked["radius"])
    factor = asked.get("down_factor", 1)
    shares = [1.0] * len(ranks)
    plan = BandPlan.cut(Grid(*asked["image"]), asked["bands"], window, down_factor=factor, shares=shares)
    links = router.forward(asked["forward"], ranks)

    calls = count()

    def at_layer(lane: int, layer: int) -> None:
        if next(calls) == asked.get("hold"):
            tell(holds=layer)
            _obey(json.loads(sys.stdin.readline()))
        if asked.get("tell"):
            tell(layer=layer)
            time.sleep(asked["tell"])

    run = BandedForward(plan, [torch.device("cpu")] * len(ranks), links=links)
    before = dict(transport.sent)
    try:
        out = run.run(forwards(plan, asked.get("layers", 3), down_factor=factor, at_layer=at_layer))
    except (PeerError, Leaves) as error:
        tell(failed=str(error), lost=sorted(router.lost))
        return
    finally:
        links.end()
    torch.save(torch.cat(out, dim=2), asked["out"])
    sent = sum(transport.sent.values()) - sum(before.values())
    tell(done=asked["forward"], traffic=run.traffic.total, sent=sent)


def _obey(order: dict[str, Any]) -> None:
    if order.get("leave"):
        raise Leaves("it was told to")
    ends, matrix = time.monotonic() + order.get("busy", 0.0), torch.ones(256, 256)
    while time.monotonic() < ends:
        torch.mm(matrix, matrix)


def main(commands: Mapping[str, Command]) -> None:
    """commands: what to do for a line that has the name."""
    given = json.loads(sys.stdin.readline())
    store = joined_store(*given["store"])
    router: Router | None = None
    transport: C10dTransport | None = None
    tell(ready=True)
    for line in sys.stdin:
        if not line.strip():
            break
        asked = json.loads(line)
        if "close" in asked:
            assert router is not None
            router.close()
            router = transport = None
            tell(closed=True)
        elif "group" in asked:
            if router is not None:
                router.close()
            transport = C10dTransport(
                store,
                asked["group"],
                asked["rank"],
                asked["size"],
                patience=PATIENCE,
                interface=given["interface"],
            )
            router = Router(transport)
            tell(joined=asked["group"])
        else:
            assert router is not None and transport is not None
            next(do for name, do in commands.items() if name in asked)(router, transport, asked)
    if router is not None:
        router.close()


if __name__ == "__main__":
    main({"forward": forward})
