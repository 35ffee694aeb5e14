"""Three ranks on machines of their own: Linux network namespaces joined by a bridge, whose links fail and slow down.

    unshare --user --map-root-user --net python -m core.cluster_net

Needs no root, and sees nothing of the machine's own network. Prints what was found as JSON.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from core.cluster_ranks import Rank, Ranks, asked, right, run

_BRIDGE, _NET = "10.99.0.1", "10.99.0"
_LONG = {"tell": 0.02, "layers": 60}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def plug(rank: Rank, number: int) -> str:
    """Give a process a link to the bridge; its address."""
    pid, address = str(rank.process.pid), f"{_NET}.{10 + number}"
    ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", pid)
    ip("link", "set", f"port{number}", "master", "bridge", "up")
    for arguments in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        subprocess.run(["nsenter", "--target", pid, "--net", "ip", *arguments], check=True)
    return address


def slowed(number: int, rate: str) -> None:
    """Both ways of a link."""
    limit = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "2s"]
    subprocess.run(["tc", "qdisc", "replace", "dev", f"port{number}", *limit], check=True)


def main() -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "bridge", "type", "bridge")
    ip("addr", "add", f"{_BRIDGE}/24", "dev", "bridge")
    ip("link", "set", "bridge", "up")
    machines = [Rank(["unshare", "--net"]) for _ in range(3)]
    time.sleep(1)  # until each has the network of its own
    ranks = Ranks(machines, [plug(rank, number) for number, rank in enumerate(machines)], _BRIDGE)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks.join(machines)
        found["equal over a network"] = right(run(machines, 0, folder)[0])

        for rank in machines:
            rank.ask(**asked(1, 3, folder / "none.pt", **_LONG))
        for rank in machines:
            rank.answer_with("layer")
        ip("link", "set", "port2", "down")
        cut = time.monotonic()
        told = [rank.answer_with("failed") for rank in machines[:2]]
        found["cut link"] = {"named": told, "seconds": round(time.monotonic() - cut, 2)}
        ranks.join(machines[:2])
        found["equal without it"] = right(run(machines[:2], 2, folder)[0])
        ip("link", "set", "port2", "up")
        machines[2].answer_with("failed")
        ranks.join(machines)
        found["equal with it again"] = right(run(machines, 3, folder)[0])

        slowed(1, "50mbit")
        wide = {"image": [64, 512], "bands": 6, "radius": 8}
        slow, told = run(machines, 4, folder, **wide)
        found["equal at 50 Mbit/s"] = right(slow, **wide)
        found["bytes"] = [[each["sent"], each["traffic"]] for each in told]
    found["exit codes"] = [rank.end() for rank in machines]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
