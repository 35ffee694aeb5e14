"""The predicted time of a forward on several machines, and which machines are chosen for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cluster
from clear_core.bands.exchange import Traffic
from clear_core.bands.memory import ModelShape
from clear_core.bands.plan import BandPlan, halo_bytes
from clear_core.bands.replay import Costs, Replay, Route
from clear_core.bands.schedule import Copy
from clear_core.bands.simulate import copy_bytes, simulate
from clear_core.cluster.choose import choose
from clear_core.cluster.machines import Link, Machine, Network
from clear_core.cluster.predict import DoesNotFit, Forward, forward_seconds, least_seconds, plan_of, predict
from clear_core.flux import LAYERS
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import HEAD_DIM, HEADS, traced

GIGABIT = 1e9 / 8
INSTANT = Link(float("inf"))
LARGE = Forward(Grid(512, 512), Window(16))
SMALL = Forward(Grid(96, 64), Window(4))


def machines(*speeds: float, memory: int | None = None) -> list[Machine]:
    """Named a, b, c ...; speeds: TFLOP/s."""
    return [Machine(name, speed * 1e12, 0.5, memory) for name, speed in zip("abcdefgh", speeds, strict=False)]


def alike(given: Sequence[Machine], link: Link) -> dict[tuple[str, str], Link]:
    return {(one.name, other.name): link for one, other in permutations(given, 2)}


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    radius=st.integers(1, 9),
    text=st.integers(1, 7),
)
def test_bytes_are_those_of_a_real_forward(rows: list[int], radius: int, text: int) -> None:
    shape = ModelShape(HEADS * HEAD_DIM, HEAD_DIM, element_size=4)
    forward = Forward(Grid(sum(rows), 3), Window(radius), text, shape)
    given = machines(*[1.0] * len(rows))
    found = predict(forward, given, alike(given, INSTANT), rows)
    trace, traffic = traced(found.plan, 1, text)
    halo, other = sum(sent.halo for sent in found.sent), sum(sent.text for sent in found.sent)
    assert (halo, other) == (traffic.halo, traffic.text)
    for lane, sent in enumerate(found.sent):
        sends = [event.what for event in trace if event.lane == lane and isinstance(event.what, Copy)]
        size = {"channels": HEADS * HEAD_DIM, "head_dim": HEAD_DIM, "size": 4}
        assert sent.total == sum(copy_bytes(found.plan, copy, text, **size) for copy in sends)


def test_halos_are_the_formulas() -> None:
    given = machines(100, 100, 100)
    found = predict(LARGE, given, alike(given, INSTANT))
    for sent, borders in zip(found.sent, (1, 2, 1), strict=True):
        assert sent.halo == halo_bytes(LARGE.image, LARGE.window, 3072, 2, borders)
    assert found.sent[1].halo == 188_743_680  # 189 MB at 8192 px
    assert LARGE.double + LARGE.single == LAYERS


def test_one_machine_has_no_network() -> None:
    found = predict(LARGE, machines(165), {})
    tokens, text, channels, rate = 512 * 512, 512, 3072, 165e12
    products = 2 * 12 * channels**2 * (tokens + text) / rate
    # The text over itself counts with its partial attention and with its merge.
    pairs = tokens * (Window(16).tokens + 2 * text) + 2 * text * text
    assert found.seconds == pytest.approx(LAYERS * (products + 4 * channels * pairs / (rate / 2)))
    assert found.seconds == found.computing
    assert (found.copying, found.overlap, found.sent) == (0, 1, (Traffic(),))


@pytest.mark.parametrize("speeds", [(100, 100), (100, 300), (50, 400, 150, 90)])
def test_without_delay_rates_add_up(speeds: tuple[float, ...]) -> None:
    given = machines(*speeds)
    found = predict(LARGE, given, alike(given, INSTANT))
    together = predict(LARGE, machines(sum(speeds)), {}).seconds
    # Every machine computes the text, 512 of 262144 tokens; rows are whole; a halo is waited for until it is published.
    assert together <= found.seconds <= 1.04 * together
    assert found.seconds >= least_seconds(LARGE, given, Network(given, alike(given, INSTANT)))


def test_a_machine_twice_as_fast_gets_about_twice_the_rows() -> None:
    given = machines(100, 200)
    first, second = choose(LARGE, given, alike(given, Link(100 * GIGABIT))).rows
    assert first + second == 512
    assert 1.9 < second / first < 2.1


def test_copies_are_waited_for_once_they_take_longer_than_the_work() -> None:
    given = machines(165, 165)
    found = {rate: predict(LARGE, given, alike(given, Link(rate * GIGABIT))) for rate in (1, 10, 100)}
    halo = found[1].sent[0].halo / GIGABIT * LAYERS
    assert found[1].seconds > halo
    assert found[1].overlap < 0.3
    assert found[100].overlap > 0.9
    assert found[100].seconds == pytest.approx(found[100].computing, rel=0.01)
    assert found[1].seconds > found[10].seconds > found[100].seconds >= found[100].computing


def test_latency_is_waited_for_in_every_layer() -> None:
    given = machines(165, 165)
    near, far = (predict(SMALL, given, alike(given, Link(float("inf"), latency))) for latency in (0.0, 0.5))
    # A partial and a merged share of the text one after the other, in each layer.
    assert far.seconds - near.seconds >= LAYERS * 2 * 0.5 * 0.99


def test_a_network_card_is_shared_by_its_links() -> None:
    plan = BandPlan.cut(Grid(12, 4), 3, Window(5), shares=(1.0, 1.0, 1.0))

    def seconds(card: float) -> float:
        """Until the middle lane has sent both halos, of 10 s on each link; its card takes `card` for each."""

        def copy(sent: Copy) -> Route:
            passes = (((sent.source, sent.target), 10.0), (("sends", sent.source), card))
            return Route(passes if sent.rows is not None else ())

        return simulate(plan, Costs(0.0, 0.0, 0.0, 0.0, copy), 1).seconds

    assert seconds(0.0) == 10
    assert seconds(5.0) == 10
    assert seconds(10.0) == 20
    given = [replace(machine, network=10 * GIGABIT) for machine in machines(800, 800, 800)]
    shared = predict(LARGE, given, alike(given, Link(100 * GIGABIT)))
    own = [replace(machine, network=None) for machine in given]
    assert shared.copying > 1.9 * predict(LARGE, own[:2], alike(own[:2], Link(10 * GIGABIT))).copying
    assert shared.seconds >= shared.copying


def test_copies_on_a_shared_card_are_served_in_order_of_time() -> None:
    """Lane 0 has nearly nothing to do; what it sends late does not delay what lane 1 has sent before."""
    plan = BandPlan.cut(Grid(3, 4), 3, None, shares=(1.0, 1.0, 1.0))
    costs = [Costs(time, 0.0, 0.0, 0.0, lambda copy: Route(((copy.target, 1.0),))) for time in (8.0, 1.0, 1.0)]
    events = simulate(plan, costs, 1).events
    ends = [timed.end for timed in events if timed.event.what == Copy("halo", 1, 2, plan.bands[1])]
    assert ends == [2.0]


@settings(max_examples=25, deadline=None)
@given(
    speeds=st.lists(st.floats(1, 50), min_size=1, max_size=4),
    rate=st.floats(0.05, 200),
    latency=st.floats(0, 1e-3),
    layers=st.tuples(st.integers(1, 12), st.integers(0, 12)),
)
def test_layers_added_up_take_what_replayed_ones_take(
    speeds: list[float], rate: float, latency: float, layers: tuple[int, int]
) -> None:
    given = machines(*speeds)
    forward = replace(SMALL, double=layers[0], single=layers[1])
    network = Network(given, alike(given, Link(rate * GIGABIT, latency)))
    found = predict(forward, given, alike(given, Link(rate * GIGABIT, latency)))

    class Every(Replay):
        def repeat(self, costs: Sequence[Costs], count: int) -> None:
            for _ in range(count):
                self.layer(costs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clear_core.cluster.predict.Replay", Every)
        replayed = forward_seconds(forward, found.plan, given, network)
    assert found.seconds == pytest.approx(replayed, rel=1e-9)


def test_few_layers_are_replayed_of_many() -> None:
    given = machines(100, 70, 130, 20)
    network = Network(given, alike(given, Link(10 * GIGABIT, 1e-4)))
    replayed = 0

    class Counting(Replay):
        def layer(self, costs: Sequence[Costs]) -> None:
            nonlocal replayed
            replayed += 1
            super().layer(costs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clear_core.cluster.predict.Replay", Counting)
        forward_seconds(LARGE, plan_of(LARGE, given, (160, 112, 208, 32)), given, network)
    assert replayed <= 10


def test_a_slow_link_is_left_out_with_its_reason() -> None:
    given = machines(165, 165, 165)
    links = {("a", "b"): Link(100 * GIGABIT), ("a", "c"): Link(GIGABIT), ("b", "c"): Link(GIGABIT)}
    choice = choose(LARGE, given, links)
    assert [machine.name for machine in choice.machines] == ["a", "b"]
    (left,) = choice.left_out
    assert left.machine.name == "c"
    with_it = predict(LARGE, given, links).seconds
    assert left.reason == f"1 Gbit/s to a: {with_it:.3g} s a step with it, {choice.seconds:.3g} s without"
    assert choice.alone is not None
    assert choice.seconds == pytest.approx(choice.alone / 2, rel=0.02)


def test_a_slow_card_is_left_out_with_its_rate() -> None:
    given = machines(165, 0.05)
    choice = choose(SMALL, given, alike(given, INSTANT))
    assert len(choice.machines) == 1
    assert choice.left_out[0].reason.startswith("0.05 TFLOP/s: ")


def test_halos_take_the_faster_links() -> None:
    given = machines(165, 165, 165)
    links = {("a", "b"): Link(25 * GIGABIT), ("a", "c"): Link(25 * GIGABIT), ("b", "c"): Link(2 * GIGABIT)}
    choice = choose(LARGE, given, links)
    assert [machine.name for machine in choice.machines] in (["b", "a", "c"], ["c", "a", "b"])
    assert choice.seconds < predict(LARGE, given, links).seconds
    assert not choice.left_out


def test_each_direction_of_a_link_has_its_own_rate() -> None:
    given = machines(165, 165)
    both = predict(LARGE, given, {("a", "b"): Link(GIGABIT)})
    back = predict(LARGE, given, {("a", "b"): Link(GIGABIT), ("b", "a"): Link(0.5 * GIGABIT)})
    assert back.copying == pytest.approx(2 * both.copying)
    assert back.seconds > 1.8 * both.seconds


@settings(max_examples=20, deadline=None)
@given(
    speeds=st.lists(st.floats(0.01, 500), min_size=1, max_size=6),
    rates=st.lists(st.floats(0.01, 400), min_size=15, max_size=15),
    height=st.integers(1, 70),
    radius=st.integers(1, 12),
)
def test_a_choice_is_never_slower_than_the_driver_alone(
    speeds: list[float], rates: list[float], height: int, radius: int
) -> None:
    given = machines(*speeds)
    forward = Forward(Grid(height, 32), Window(radius))
    pairs = [(one.name, other.name) for one, other in permutations(given, 2) if one.name < other.name]
    links = {pair: Link(rate * GIGABIT, 1e-4) for pair, rate in zip(pairs, rates, strict=False)}
    choice = choose(forward, given, links)
    assert choice.alone == predict(forward, given[:1], {}).seconds
    assert choice.seconds <= choice.alone
    assert given[0] in choice.machines
    assert min(choice.rows) >= 1
    assert sum(choice.rows) == height
    names = [each.name for each in choice.machines] + [left.machine.name for left in choice.left_out]
    assert sorted(names) == [machine.name for machine in given]
    assert all(left.reason and "\n" not in left.reason for left in choice.left_out)
    assert choice.seconds >= least_of_all(forward, given) * (1 - 1e-9)


def least_of_all(forward: Forward, given: Sequence[Machine]) -> float:
    """Of a machine as fast as all together."""
    return predict(forward, [replace(given[0], flops=sum(machine.flops for machine in given))], {}).seconds


@settings(max_examples=30, deadline=None)
@given(
    speeds=st.lists(st.floats(0.1, 500), min_size=2, max_size=5),
    rate=st.floats(0.05, 400),
    height=st.integers(5, 70),
    radius=st.integers(1, 30),
)
def test_nothing_is_faster_than_the_bound(speeds: list[float], rate: float, height: int, radius: int) -> None:
    given, forward = machines(*speeds), Forward(Grid(height, 32), Window(radius))
    links = alike(given, Link(rate * GIGABIT, 1e-4))
    least = least_seconds(forward, given, Network(given, links))
    assert predict(forward, given, links).seconds >= least * (1 - 1e-9)


def test_more_machines_than_rows() -> None:
    given = machines(100, 100, 100)
    forward = Forward(Grid(2, 4000), Window(2))
    choice = choose(forward, given, alike(given, INSTANT))
    assert choice.rows == (1, 1)
    assert "2 rows of tokens are too few for 3 machines" in choice.left_out[0].reason
    with pytest.raises(DoesNotFit, match="each needs one at least"):
        predict(forward, given, alike(given, INSTANT))


def test_memory_decides_the_bands_and_who_can_take_part() -> None:
    given = machines(165, 165, memory=24 * 2**30)
    links = alike(given, Link(100 * GIGABIT))
    roomy = predict(LARGE, given, links)
    tight = predict(LARGE, [replace(machine, memory=4 * 2**30) for machine in given], links)
    assert len(tight.plan.bands) > len(roomy.plan.bands)
    choice = choose(LARGE, [given[0], replace(given[1], memory=2**30)], links)
    assert len(choice.machines) == 1
    reason = choice.left_out[0].reason
    assert "GiB beside the weights on b, which has 1.0" in reason
    with pytest.raises(DoesNotFit, match="GiB beside the weights on a"):
        choose(LARGE, [replace(machine, memory=2**28) for machine in given], links)


def test_a_driver_without_the_memory_for_the_image_needs_others() -> None:
    alone = machines(165, memory=4 * 2**30)
    more = machines(165, 165, 165, memory=4 * 2**30)
    image = Forward(Grid(1024, 512), Window(16))
    with pytest.raises(DoesNotFit):
        choose(image, alone, {})
    choice = choose(image, more, alike(more, Link(100 * GIGABIT)))
    assert choice.alone is None
    assert len(choice.machines) > 1


def test_many_machines() -> None:
    given = machines(*[165] * 8)
    links = alike(given, Link(100 * GIGABIT))
    assert len(choose(LARGE, given, links).machines) == 8
    slow = {ends: Link(0.1 * GIGABIT) if {"g", "h"} & {*ends} else link for ends, link in links.items()}
    choice = choose(LARGE, given, slow)
    assert {machine.name for machine in choice.machines} == {*"abcdef"}
    assert [left.machine.name for left in choice.left_out] == ["g", "h"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Machine("a", 0.0, 0.5), "a needs a rate above 0 operations"),
        (lambda: Machine("a", 1e12, 1.5), "above 0 and up to 1"),
        (lambda: Machine("a", 1e12, 0.5, -1), "less than 0 bytes"),
        (lambda: Machine("a", 1e12, 0.5, None, 0.0), "a's network card needs a rate"),
        (lambda: Link(0.0), "a link needs a rate above 0"),
        (lambda: Link(1.0, -1.0), "latency must be 0 seconds or more"),
        (lambda: Network([Machine("a", 1e12, 0.5)] * 2, {}), "different names, got a, a"),
        (lambda: predict(SMALL, machines(1, 1), {}), "no link between a and b was given: measure it"),
        (lambda: predict(SMALL, machines(1, 1), {("a", "b"): INSTANT}, (96, 0)), "need 1 row or more each and 96"),
        (lambda: predict(SMALL, machines(1, 1), {("a", "b"): INSTANT}, (90, 5)), "need 1 row or more each and 96"),
        (lambda: choose(SMALL, [], {}), "no machine was given"),
        (lambda: simulate(BandPlan.cut(Grid(8, 8), 2, None), [], 1), "costs of 0 lanes were given for 1"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_bands_of_a_plan_follow_the_rows() -> None:
    plan = plan_of(LARGE, machines(1, 1, 1), (100, 400, 12))
    edges = [0, 100, 500, 512]
    for lane, (top, bottom) in enumerate(pairwise(edges)):
        bands = [plan.bands[band] for band in plan.bands_of(lane)]
        assert (bands[0].start, bands[-1].stop) == (top, bottom)
        assert min(map(len, bands)) >= 4


def test_the_table_of_the_docs_is_what_the_command_prints() -> None:
    """One line of each card, and the words above the table."""
    docs = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    told = cluster.table([cluster.row("RTX 4090", 8192, 2), cluster.row("H200", 16384, 2)])
    assert all(line in docs for line in told.splitlines())
