"""A forward in bands whose lanes are in several ranks: the same output, the same order, failures that reach all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clear_core.bands.exchange import Event
from clear_core.bands.plan import BandPlan
from clear_core.bands.remote import PeerError
from clear_core.bands.run import BandedForward
from clear_core.bands.schedule import Attend, Copy
from clear_core.cluster.local import LocalGroup
from clear_core.cluster.transport import ForwardLinks, Router
from clear_core.cluster.wire import Header
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import forwards

CPU = torch.device("cpu")
Result = tuple[list[Tensor], list[Event]] | BaseException


def alone(plan: BandPlan, down_factor: int = 1) -> Tensor:
    """The image tokens' output with all lanes in one process."""
    out = BandedForward(plan, [CPU] * plan.lane_count).run(forwards(plan, down_factor=down_factor))
    return torch.cat(out, dim=2)


def on_ranks(
    routers: list[Router], run: Callable[[ForwardLinks], Result], number: int, ranks: list[int]
) -> list[Result]:
    """What each rank's `run` returns or raises."""
    found: dict[int, Result] = {}

    def one(router: Router) -> None:
        links = router.forward(number, ranks)
        try:
            found[router.transport.rank] = run(links)
        except BaseException as problem:
            found[router.transport.rank] = problem
        finally:
            links.end()

    threads = [threading.Thread(target=one, args=(router,), daemon=True) for router in routers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return [found[rank] for rank in range(len(routers))]


def banded(plan: BandPlan, down_factor: int = 1) -> Callable[[ForwardLinks], Result]:
    def run(links: ForwardLinks) -> Result:
        trace: list[Event] = []
        forward = BandedForward(plan, [CPU] * plan.lane_count, trace=trace, links=links)
        return forward.run(forwards(plan, down_factor=down_factor)), trace

    return run


def group(size: int, before: Callable[[int, Header], None] = lambda rank, header: None) -> list[Router]:
    return [Router(transport) for transport in LocalGroup(size, before).transports]


def close(routers: list[Router]) -> None:
    for router in routers:
        router.close()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(4, 30),
    count=st.integers(2, 12),
    radius=st.one_of(st.none(), st.integers(1, 12)),
    shares=st.lists(st.floats(0.3, 3), min_size=2, max_size=4),
    down_factor=st.sampled_from([1, 1, 2]),
    data=st.data(),
)
def test_ranks_give_what_one_process_does_in_the_same_order(
    rows: int, count: int, radius: int | None, shares: list[float], down_factor: int, data: st.DataObject
) -> None:
    window = None if radius is None else Window(radius)
    plan = BandPlan.cut(Grid(2 * rows, 4), count, window, down_factor=down_factor, shares=shares)
    lanes = plan.lane_count
    cuts = sorted(data.draw(st.sets(st.integers(1, lanes - 1))) if lanes > 1 else [])
    ranks = [sum(cut <= lane for cut in cuts) for lane in range(lanes)]
    trace: list[Event] = []
    BandedForward(plan, [CPU] * lanes, trace=trace).run(forwards(plan, down_factor=down_factor))
    routers = group(ranks[-1] + 1)
    found = on_ranks(routers, banded(plan, down_factor), 0, ranks)
    close(routers)
    outputs: list[Tensor] = []
    traces: list[Event] = []
    for each in found:
        assert not isinstance(each, BaseException), each
        outputs += each[0]
        traces += each[1]
    assert torch.equal(torch.cat(outputs, dim=2), alone(plan, down_factor))
    for lane in range(lanes):
        assert [e for e in traces if e.lane == lane] == [e for e in trace if e.lane == lane]


def test_the_interior_attends_while_halos_are_held_back() -> None:
    """Halos arrive only once both ranks have attended all bands that need none."""
    plan = BandPlan.cut(Grid(48, 4), 12, Window(4), shares=(1.0, 1.0))
    inner = {band for band in range(12) if all(plan.lanes[other] == plan.lanes[band] for other in plan.needs[band])}
    assert len(inner) == 10
    attended: set[tuple[int, int]] = set()
    seen = threading.Condition()

    def hold(rank: int, header: Header) -> None:
        if header.copy is not None and header.copy.kind == "halo":
            with seen:
                assert seen.wait_for(lambda: {(header.layer, band) for band in inner} <= attended, timeout=60)

    class Trace(list[Event]):
        def append(self, event: Event) -> None:
            if isinstance(event.what, Attend):
                with seen:
                    attended.add((event.layer, event.what.band))
                    seen.notify_all()

    routers = group(2, hold)

    def run(links: ForwardLinks) -> Result:
        return BandedForward(plan, [CPU] * 2, trace=Trace(), links=links).run(forwards(plan)), []

    found = on_ranks(routers, run, 0, [0, 1])
    close(routers)
    outputs = [part for each in found if not isinstance(each, BaseException) for part in each[0]]
    assert torch.equal(torch.cat(outputs, dim=2), alone(plan))


def test_a_failure_on_one_rank_stops_all_and_the_next_forward_runs() -> None:
    plan = BandPlan.cut(Grid(24, 4), 6, Window(3), shares=(1.0, 1.0, 1.0))
    ranks = [0, 1, 2]
    routers = group(3)

    def failing(links: ForwardLinks) -> Result:
        def at_layer(lane: int, layer: int) -> None:
            if (lane, layer) == (1, 1):
                raise RuntimeError("out of memory")

        return BandedForward(plan, [CPU] * 3, links=links).run(forwards(plan, at_layer=at_layer)), []

    found = on_ranks(routers, failing, 0, ranks)
    assert isinstance(found[1], RuntimeError) and not isinstance(found[1], PeerError)
    for rank in (0, 2):
        assert isinstance(found[rank], PeerError) and str(found[rank]) == "rank 1: RuntimeError: out of memory"
    again = on_ranks(routers, banded(plan), 1, ranks)
    close(routers)
    outputs = [part for each in again if not isinstance(each, BaseException) for part in each[0]]
    assert torch.equal(torch.cat(outputs, dim=2), alone(plan))


def test_a_rank_that_is_gone_is_named_at_once() -> None:
    plan = BandPlan.cut(Grid(24, 4), 4, Window(3), shares=(1.0, 1.0))
    routers = group(2)
    routers[1].close()
    links = routers[0].forward(0, [0, 1])
    with pytest.raises(PeerError, match="rank 1 is lost: it has closed"):
        BandedForward(plan, [CPU] * 2, links=links).run(forwards(plan))
    with pytest.raises(PeerError, match="rank 1 is lost"):
        links.receive(1, "output", 0)
    routers[0].close()


def test_messages_around_a_forward_and_nothing_of_an_old_one() -> None:
    routers = group(2)
    one, other = (router.forward(3, [0, 1]) for router in routers)
    one.send(1, "given", 2, (torch.arange(3), torch.ones(2, 2, dtype=torch.bfloat16)))
    found = other.receive(0, "given", 2)
    assert [(x.dtype, x.tolist()) for x in found] == [(torch.int64, [0, 1, 2]), (torch.bfloat16, [[1, 1], [1, 1]])]
    one.send(1, "given", 0, (torch.zeros(1),))
    other.end()
    late = routers[0].forward(2, [0, 1])
    late.send(1, "given", 0, (torch.zeros(1),))
    new = routers[0].forward(4, [0, 1])
    new.send(1, "given", 0, (torch.full((1,), 4.0),))
    assert routers[1].forward(4, [0, 1]).receive(0, "given", 0)[0].item() == 4
    assert [*routers[1]._inboxes] == [4]
    close(routers)


def test_lanes_of_a_rank_lie_next_to_each_other() -> None:
    routers = group(2)
    with pytest.raises(ValueError, match="rank 0 needs lanes that lie next to each other"):
        routers[0].forward(0, [0, 1, 0])
    close(routers)


def test_copies_travel_under_their_own_headers() -> None:
    halo = Copy("halo", 0, 1, None)
    with pytest.raises(ValueError, match="rows"):
        LocalGroup(2).transports[0].post(1, Header("copy", 0, 0, halo), [])
