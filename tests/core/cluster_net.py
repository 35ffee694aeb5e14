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

BRIDGE, _NET = "10.99.0.1", "10.99.0"
_LONG = {"tell": 0.02, "layers": 60}


class Net:
    """A bridge, and the link of each process to it. Processes need a network namespace of their own."""

    def __init__(self) -> None:
        self._plugged = 0
        self._ports: dict[int, str] = {}  # of a process
        _run("ip", "link", "set", "lo", "up")
        # Its own address: without one it takes that of a port, and is another machine to all once that port goes.
        _run("ip", "link", "add", "bridge", "address", "02:00:00:00:00:01", "type", "bridge")
        _run("ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge")
        _run("ip", "link", "set", "bridge", "up")

    def plug(self, rank: Rank) -> str:
        """Give a process a link; its address."""
        pid, number = rank.process.pid, self._plugged
        self._plugged += 1  # the link of a process that has died goes some time after it
        port, address = f"port{number}", f"{_NET}.{10 + number}"
        while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.01)
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _run("ip", "link", "set", port, "master", "bridge", "up")
        _inside(rank, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        _inside(rank, "ip", "link", "set", "eth0", "up")
        self._ports[pid] = port
        return address

    def cut(self, rank: Rank) -> None:
        _run("ip", "link", "set", self._ports[rank.process.pid], "down")

    def join(self, rank: Rank) -> None:
        """Undo `cut`."""
        _run("ip", "link", "set", self._ports[rank.process.pid], "up")

    def slow(self, rank: Rank, rate: str, burst: str = "64kb") -> None:
        """A link carries this rate at most, each way. Its queues are short, as a switch's are: 20 ms."""
        limit = ["root", "tbf", "rate", rate, "burst", burst, "latency", "20ms"]
        _run("tc", "qdisc", "replace", "dev", self._ports[rank.process.pid], *limit)
        _inside(rank, "tc", "qdisc", "replace", "dev", "eth0", *limit)

    def quicken(self, rank: Rank) -> None:
        """Undo `slow`."""
        _run("tc", "qdisc", "del", "dev", self._ports[rank.process.pid], "root")
        _inside(rank, "tc", "qdisc", "del", "dev", "eth0", "root")


def machine(module: str = "core.cluster_rank") -> Rank:
    """A process with a network namespace of its own."""
    return Rank(["unshare", "--net"], module)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _inside(rank: Rank, *command: str) -> None:
    _run("nsenter", "--target", str(rank.process.pid), "--net", *command)


def main() -> None:
    net = Net()
    machines = [machine() for _ in range(3)]
    ranks = Ranks(machines, [net.plug(rank) for rank in machines], BRIDGE)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks.join(machines)
        found["equal over a network"] = right(run(machines, 0, folder)[0])

        for rank in machines:
            rank.ask(**asked(1, 3, folder / "none.pt", **_LONG))
        for rank in machines:
            rank.answer_with("layer")
        net.cut(machines[2])
        cut = time.monotonic()
        told = [rank.answer_with("failed") for rank in machines[:2]]
        found["cut link"] = {"named": told, "seconds": round(time.monotonic() - cut, 2)}
        ranks.join(machines[:2])
        found["equal without it"] = right(run(machines[:2], 2, folder)[0])
        net.join(machines[2])
        machines[2].answer_with("failed")
        ranks.join(machines)
        found["equal with it again"] = right(run(machines, 3, folder)[0])

        net.slow(machines[1], "50mbit")
        wide = {"image": [64, 512], "bands": 6, "radius": 8}
        slow, told = run(machines, 4, folder, **wide)
        found["equal at 50 Mbit/s"] = right(slow, **wide)
        found["bytes"] = [[each["sent"], each["traffic"]] for each in told]
    found["exit codes"] = [rank.end() for rank in machines]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
