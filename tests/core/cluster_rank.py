"""One rank of a forward in bands, a process of its own: told by lines of JSON what to do, and tells what came of it.

    python -m core.cluster_rank

The first line is `{"store": [address, port], "interface": address}`. `{"group": name, "rank": 0, "size": 2}` joins a
group; `{"forward": 1, "ranks": [0, 1], "image": [24, 4], ...}` runs a forward and writes this rank's rows to `out`; an
empty line ends it.
"""

from __future__ import annotations

import json
import sys
import time
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


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def forward(router: Router, transport: C10dTransport, asked: dict[str, Any]) -> None:
    ranks = asked["ranks"]
    window = None if asked["radius"] is None else Window(asked["radius"])
    factor = asked.get("down_factor", 1)
    shares = [1.0] * len(ranks)
    plan = BandPlan.cut(Grid(*asked["image"]), asked["bands"], window, down_factor=factor, shares=shares)
    links = router.forward(asked["forward"], ranks)

    def at_layer(lane: int, layer: int) -> None:
        if asked.get("tell"):
            tell(layer=layer)
            time.sleep(asked["tell"])

    run = BandedForward(plan, [torch.device("cpu")] * len(ranks), links=links)
    before = dict(transport.sent)
    try:
        out = run.run(forwards(plan, asked.get("layers", 3), down_factor=factor, at_layer=at_layer))
    except PeerError as error:
        tell(failed=str(error), lost=sorted(router.lost))
        return
    finally:
        links.end()
    torch.save(torch.cat(out, dim=2), asked["out"])
    sent = sum(transport.sent.values()) - sum(before.values())
    tell(done=asked["forward"], traffic=run.traffic.total, sent=sent)


def main() -> None:
    given = json.loads(sys.stdin.readline())
    store = joined_store(*given["store"])
    router: Router | None = None
    transport: C10dTransport | None = None
    tell(ready=True)
    for line in sys.stdin:
        if not line.strip():
            break
        asked = json.loads(line)
        if "group" in asked:
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
            forward(router, transport, asked)
    if router is not None:
        router.close()


if __name__ == "__main__":
    main()
