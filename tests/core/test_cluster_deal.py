"""How rows are dealt to machines that have joined, and what is measured of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from clear_core.cluster.deal import Offer, by_prediction, equally
from clear_core.cluster.local import LocalGroup
from clear_core.cluster.machines import Link
from clear_core.cluster.measure import answer_link, matrix_rate, time_link
from clear_core.cluster.predict import Forward
from clear_core.cluster.transport import ForwardLinks, Router
from clear_core.layout import Grid
from clear_core.window import Window

WORK = Forward(Grid(256, 256), Window(16))  # 4096 pixels
CARD = 165e12
FAST, SLOW = Link(10e9 / 8, 50e-6), Link(50e6 / 8, 1e-3)


def test_a_machine_alike_gets_as_many_rows_and_one_of_half_the_rate_half() -> None:
    dealt = by_prediction(WORK, [CARD], [1.0], [Offer("one", (CARD,), FAST)])
    assert dealt.left_out == {} and dealt.shares[0] == pytest.approx((1.0,), abs=0.05)
    assert dealt.seconds is not None and dealt.alone is not None
    assert dealt.alone / 2 <= dealt.seconds < 0.7 * dealt.alone
    half = by_prediction(WORK, [CARD], [1.0], [Offer("one", (CARD / 2,), FAST)])
    assert half.shares[0] == pytest.approx((0.5,), abs=0.05)


def test_cards_of_a_machine_share_its_rows_by_their_rates() -> None:
    dealt = by_prediction(WORK, [CARD, CARD], [1.0, 1.0], [Offer("two", (CARD, CARD / 2), FAST)])
    first, second = dealt.shares[0]
    assert first == pytest.approx(2 * second) and first == pytest.approx(1.0, abs=0.05)


def test_a_machine_behind_a_slow_link_is_left_out_and_told_why() -> None:
    """Two of the same name are told apart."""
    dealt = by_prediction(WORK, [CARD], [1.0], [Offer("pc", (CARD,), SLOW), Offer("pc", (CARD,), FAST)])
    assert dealt.shares[0] == () and len(dealt.shares[1]) == 1
    assert list(dealt.left_out) == [0]
    assert "0.05 Gbit/s" in dealt.left_out[0] and "s a step with it" in dealt.left_out[0]
    alone = by_prediction(WORK, [CARD], [1.0], [Offer("pc", (CARD,), SLOW)])
    assert alone.shares == ((),) and alone.seconds == alone.alone


def test_a_machine_with_too_little_memory_is_left_out_and_told_why() -> None:
    small, enough = Offer("pc", (CARD,), FAST, 64 * 2**20), Offer("pc", (CARD,), FAST, 64 * 2**30)
    dealt = by_prediction(WORK, [CARD], [1.0], [small, enough])
    assert dealt.shares[0] == () and len(dealt.shares[1]) == 1
    assert "GiB beside the weights on pc, worker 1, which has 0.1" in dealt.left_out[0]


def test_all_of_them_take_part_where_that_is_asked() -> None:
    assert equally([Offer("pc", (CARD, CARD), SLOW)]).shares == ((1.0, 1.0),)


def timed(answer: Callable[[ForwardLinks, int], None]) -> Link:
    """A link between two ranks. answer: the other one's side of it, called with its links and the rank that asks."""
    routers = [Router(transport) for transport in LocalGroup(2).transports]
    here, there = (router.forward(0, (0, 1)) for router in routers)
    answering = threading.Thread(target=answer, args=(there, 0), daemon=True)
    answering.start()
    link = time_link(here, 1)
    answering.join(30)
    assert not answering.is_alive()
    for router in routers:
        router.close()
    return link


def test_a_link_and_a_device_are_measured() -> None:
    link = timed(answer_link)
    assert link.bytes_per_second > 0 and link.latency_seconds >= 0
    assert matrix_rate(torch.device("cpu")) > 0


def test_a_link_whose_small_messages_wait_longest_has_a_rate_all_the_same() -> None:
    """The other machine is busy while they come, and idle when the large one does."""

    def answer(links: ForwardLinks, rank: int) -> None:
        for index in range(3):
            given = links.receive(rank, "given", index)
            time.sleep(0.2)
            links.send(rank, "output", index, given)
        links.receive(rank, "given", 3)
        links.send(rank, "output", 4, links.receive(rank, "given", 4))

    link = timed(answer)
    assert link.latency_seconds >= 0.1
    assert link.bytes_per_second < 1e13  # 4 MiB in a microsecond would be less
