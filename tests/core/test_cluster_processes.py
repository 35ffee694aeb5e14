"""Ranks in processes of their own, over gloo: the same output, bytes that equal the formula, and what faults do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clear_core.cluster.c10d import C10dTransport, joined_store, new_store
from clear_core.cluster.transport import Router

from core.cluster_rank import PATIENCE
from core.cluster_ranks import TESTS, Rank, Ranks, asked, right, run


@pytest.fixture
def two() -> Iterator[Ranks]:
    yield from _started(2)


@pytest.fixture
def three() -> Iterator[Ranks]:
    yield from _started(3)


def _started(count: int) -> Iterator[Ranks]:
    ranks = [Rank() for _ in range(count)]
    yield Ranks(ranks, ["127.0.0.1"] * count, "127.0.0.1")
    for rank in ranks:
        rank.kill()


def test_every_variant_gives_what_one_process_does_and_bytes_equal_the_formula(three: Ranks, tmp_path: Path) -> None:
    three.join(three.all)
    for number, variant in enumerate(({}, {"radius": None}, {"down_factor": 2}, {"image": [40, 6], "bands": 12})):
        found, told = run(three.all, number, tmp_path, **variant)
        assert right(found, **variant)
        for each in told:
            assert each["sent"] == each["traffic"] > 0
    assert [rank.end() for rank in three.all] == [0, 0, 0]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["kill -9", "SIGSTOP"])
def test_the_others_go_on_without_a_rank_that_is_gone(three: Ranks, tmp_path: Path, fault: signal.Signals) -> None:
    """It is named, the survivors form a new group, and the forward is repeated with another plan."""
    first = three.join(three.all)
    long = {"tell": 0.02, "layers": 40}
    for number, rank in enumerate(three.all):
        rank.ask(**asked(0, 3, tmp_path / "none.pt", **long))
        assert number == 1 or rank.answer_with("layer")["layer"] == 0
    three.all[1].process.send_signal(fault)
    survivors = [three.all[0], three.all[2]]
    reasons = [rank.answer_with("failed") for rank in survivors]
    assert any(1 in each["lost"] for each in reasons)
    stopped = f"rank 1 is lost: nothing came from it for {PATIENCE:g} s"
    if fault == signal.SIGSTOP:
        assert any(stopped in each["failed"] for each in reasons), reasons
    three.join(survivors)
    found, _ = run(survivors, 1, tmp_path)
    assert right(found)
    if fault == signal.SIGSTOP:  # awake again, it finds itself alone, and joins the next group
        three.all[1].process.send_signal(signal.SIGCONT)
        assert "failed" in three.all[1].answer_with("failed")
        three.join(three.all)
        found, _ = run(three.all, 2, tmp_path)
        assert right(found)
        _closed(three.all, first)  # also of the group whose threads waited for it


def test_groups_leave_nothing_behind(two: Ranks, tmp_path: Path) -> None:
    """Gloo closes the files of a group some time after it has ended: those of twelve would be 60."""
    first = two.join(two.all)
    for number in range(12):
        run(two.all, number, tmp_path)
        two.join(two.all)
    _closed(two.all, first)


def _closed(ranks: Sequence[Rank], first: Sequence[int]) -> None:
    """Until each has no more files open than at first."""
    for rank, files in zip(ranks, first, strict=True):
        ends = time.monotonic() + 60
        while rank.files() > files:
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_a_rank_that_leaves_is_answered_and_ends() -> None:
    """However long its patience is, while the others stay."""
    store = new_store("127.0.0.1")
    stores = [store, joined_store("127.0.0.1", store.port)]
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(C10dTransport, stores[rank], "group", rank, 2, patience=300.0, interface="127.0.0.1")
            for rank in range(2)
        ]
        leaves, stays = (Router(each.result()) for each in made)
    leaving = threading.Thread(target=leaves.close, daemon=True)
    leaving.start()
    leaving.join(60)
    assert not leaving.is_alive()
    assert "it has closed" in str(stays.lost[0])
    stays.close()


def test_links_that_are_cut_and_slow() -> None:
    """Machines of their own: network namespaces, a link that goes down and comes back, one of 50 Mbit/s."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-m", "core.cluster_net"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(found[name] is True for name in found if name.startswith("equal")), found
    assert all(2 in each["lost"] for each in found["cut link"]["named"]), found
    assert all(sent == traffic > 10**5 for sent, traffic in found["bytes"])
    assert found["exit codes"] == [0, 0, 0]
