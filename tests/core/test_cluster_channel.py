"""The control channel over real sockets: what passes, and everything that must not."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from clear_core.cluster.channel import (
    MAX_MESSAGE,
    Channel,
    Disconnected,
    Listener,
    Refused,
    Token,
    TokenError,
    connect,
    read_token,
)
from clear_core.cluster.frames import Opener, Sealer, message_of
from clear_core.cluster.handshake import Keys
from clear_core.cluster.sockets import prepare

from core.relay import HANDSHAKE, Edit, Relay, Way

ROOT = Path(__file__).parents[2]
TOKEN = Token("correct horse battery staple, and some more")
OTHER = Token("incorrect horse battery staple, and some more")
HERE = "127.0.0.1"
SOON = 20.0  # seconds: a deadline for what happens at once, so that nothing hangs
LATE = 0.4  # seconds that a handshake may take, where the test waits for its end


class Lines(list[str]):
    """What a listener has refused, from its thread."""

    def wait(self, count: int) -> list[str]:
        eventually(lambda: len(self) >= count)
        return sorted(self)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "this did not happen"
        time.sleep(0.005)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def listener(lines: Lines) -> Iterator[Listener]:
    with Listener(HERE, 0, TOKEN, lines.append) as made:
        yield made


@pytest.fixture
def pair(listener: Listener) -> Iterator[tuple[Channel, Channel]]:
    """The listener's end and the connector's."""
    with connect(*listener.address, TOKEN, SOON) as worker, listener.accept(SOON) as driver:
        yield driver, worker


def through(relay: Relay, listener: Listener) -> tuple[Channel, Channel]:
    """The listener's end and the connector's, of a connection through a relay."""
    worker = connect(HERE, relay.port, TOKEN, SOON)
    return listener.accept(SOON), worker


def works(listener: Listener) -> None:
    """An honest worker gets in, and is heard."""
    with connect(*listener.address, TOKEN, SOON) as worker, listener.accept(SOON) as driver:
        worker.send({"type": "Hello"})
        assert driver.receive(SOON) == {"type": "Hello"}


# What passes.


def test_messages_arrive_whole_and_in_order_in_both_directions(pair: tuple[Channel, Channel]) -> None:
    driver, worker = pair
    messages = [{}, {"a": 1}, {"text": "\0 é 漢 \U0001f600", "n": [None, True, -1.5, 2**64 - 1, {"x": []}]}]
    for message in messages:
        driver.send(message)
        worker.send({"back": message})
    assert [worker.receive(SOON) for _ in messages] == messages
    assert [driver.receive(SOON) for _ in messages] == [{"back": message} for message in messages]


def test_the_largest_message_passes_and_a_larger_one_is_not_sent(pair: tuple[Channel, Channel]) -> None:
    driver, worker = pair
    largest = {"x": "a" * (MAX_MESSAGE - len('{"x":""}'))}
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(driver.send, largest)
        assert worker.receive(SOON) == largest
        sending.result(SOON)
    with pytest.raises(ValueError, match=r"has 16,777,217 bytes, at most 16,777,216 can be sent"):
        driver.send({"x": largest["x"] + "a"})
    driver.send({"next": 1})
    assert worker.receive(SOON) == {"next": 1}


@pytest.mark.parametrize("message", [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {"x": {(1, 2): 3}}])
def test_what_is_no_json_is_not_sent_and_breaks_nothing(
    message: dict[str, object], pair: tuple[Channel, Channel]
) -> None:
    driver, worker = pair
    with pytest.raises((ValueError, TypeError)):
        driver.send(message)
    driver.send({"next": 1})
    assert worker.receive(SOON) == {"next": 1}


def test_threads_send_whole_messages(pair: tuple[Channel, Channel]) -> None:
    driver, worker = pair

    def send(thread: int) -> None:
        for number in range(40):
            worker.send({"thread": thread, "number": number, "rest": "x" * 5000})

    with ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, thread) for thread in range(8)]
        found = [driver.receive(SOON) for _ in range(8 * 40)]
        for each in sending:
            each.result(SOON)
    for thread in range(8):
        assert [message["number"] for message in found if message["thread"] == thread] == list(range(40))


def test_a_timeout_in_the_middle_of_a_message_loses_nothing(listener: Listener) -> None:
    rest = threading.Event()

    def in_halves(number: int, frame: bytes) -> bytes:
        relay.send_up(frame[:60])
        assert rest.wait(SOON)
        return frame[60:]

    with Relay(listener.address, up=Way(edit=in_halves)) as relay:
        driver, worker = through(relay, listener)
        worker.send({"text": "x" * 100})
        for _ in range(3):
            with pytest.raises(TimeoutError, match=r"no message from 127\.0\.0\.1:\d+ in 0\.05 s"):
                driver.receive(0.05)
        assert not driver._opener.between_messages
        rest.set()
        assert driver.receive(SOON) == {"text": "x" * 100}
        driver.close()
        worker.close()


def test_bytes_may_come_one_by_one() -> None:
    frame = Sealer(b"k" * 32).seal(b'{"a":1}')
    opener = Opener(b"k" * 32)
    for number, byte in enumerate(frame):
        assert opener.take() is None and opener.between_messages == (number == 0)
        opener.feed(bytes([byte]))
    assert opener.take() == b'{"a":1}' and opener.between_messages


# Ends.


def test_the_other_side_learns_of_a_close(pair: tuple[Channel, Channel]) -> None:
    driver, worker = pair
    worker.send({"last": 1})
    worker.close()
    worker.close()
    assert driver.receive(SOON) == {"last": 1}
    with pytest.raises(Disconnected, match=r"^127\.0\.0\.1:\d+ closed the connection$"):
        driver.receive(SOON)
    for call in (lambda: driver.receive(SOON), lambda: driver.send({}), lambda: worker.send({})):
        with pytest.raises(Disconnected, match="the channel to .* is closed"):
            call()


def test_close_ends_other_threads_that_wait(pair: tuple[Channel, Channel]) -> None:
    driver, worker = pair
    full = {"x": "a" * (MAX_MESSAGE - 100)}

    def send_until_it_ends() -> None:
        while True:
            driver.send(full)  # nobody reads: the system's buffers fill up

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(driver.receive, None), pool.submit(send_until_it_ends)]
        time.sleep(0.1)
        driver.close()
        for each in waiting:
            with pytest.raises(Disconnected, match="the channel to .* is closed"):
                each.result(SOON)
    worker.close()


def test_a_side_that_never_reads_is_given_up() -> None:
    left, right = _connected()
    with Channel(left, Keys(b"a" * 32, b"b" * 32), "the worker", send_seconds=0.1) as channel, right:

        def send_on() -> None:
            for _ in range(100):
                channel.send({"x": "a" * 10**6})

        with pytest.raises(Disconnected, match=r"the worker has not read what was sent for 0\.1 s"):
            send_on()
        with pytest.raises(Disconnected, match="is closed"):
            channel.send({})


def test_a_reset_connection_is_lost() -> None:
    left, right = _connected()
    with Channel(left, Keys(b"a" * 32, b"b" * 32), "the worker") as channel:
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        right.close()
        with pytest.raises(Disconnected, match="the connection to the worker is lost"):
            channel.receive(SOON)


def _connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection; the first one prepared."""
    with socket.create_server((HERE, 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
    prepare(left)
    return left, right


# Changed on the way.


def flipped(frame: bytes, at: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


def at_second(change: Callable[[bytes], bytes]) -> Edit:
    return lambda number, frame: change(frame) if number == 1 else frame


class Swapped:
    """The second and third message change places."""

    def __init__(self) -> None:
        self.kept = b""

    def __call__(self, number: int, frame: bytes) -> bytes:
        if number == 1:
            self.kept = frame
            return b""
        return frame + self.kept if number == 2 else frame


WRONG = {
    "repeated": (at_second(lambda frame: frame + frame), 2, "message 1 came where number 2 was due"),
    "left out": (at_second(lambda frame: b""), 1, "message 2 came where number 1 was due: repeated, lost or moved"),
    "moved": (Swapped(), 1, "message 2 came where number 1 was due"),
    "sequence": (at_second(lambda frame: flipped(frame, 11)), 1, "message 0 came where number 1 was due"),
    "renumbered": (
        lambda number, frame: {1: b"", 2: frame[:11] + b"\1" + frame[12:]}.get(number, frame),
        1,
        "its HMAC is wrong",
    ),
    "hmac": (at_second(lambda frame: flipped(frame, 12)), 1, "a message was changed on its way: its HMAC is wrong"),
    "end of hmac": (at_second(lambda frame: flipped(frame, 43)), 1, "its HMAC is wrong"),
    "body": (at_second(lambda frame: flipped(frame, 44)), 1, "its HMAC is wrong"),
    "end of body": (at_second(lambda frame: flipped(frame, -1)), 1, "its HMAC is wrong"),
    "shorter": (at_second(lambda frame: flipped(frame, 3)), 1, "its HMAC is wrong"),
    "oversized": (at_second(lambda frame: flipped(frame, 0)), 1, "at most 16,777,216 are allowed"),
    "cut in the middle": (at_second(lambda frame: frame[:50] + frame[51:]), 1, "its HMAC is wrong"),
    "junk between": (at_second(lambda frame: b"\0" * 60 + frame), 1, "message 0 came where number 1 was due"),
}


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_message_changed_on_its_way_is_refused(kind: str, way: str, listener: Listener) -> None:
    edit, good, reason = WRONG[kind]
    with Relay(listener.address, **{way: Way(edit=edit)}) as relay:
        driver, worker = through(relay, listener)
        sender, receiver = (worker, driver) if way == "up" else (driver, worker)
        sent = [{"number": number, "text": "text"} for number in range(4)]
        for message in sent:
            sender.send(message)
        for message in sent[:good]:
            assert receiver.receive(SOON) == message
        with pytest.raises(Refused, match=rf"^127\.0\.0\.1:\d+: .*{reason}") as caught:
            receiver.receive(SOON)
        assert "\n" not in str(caught.value)
        with pytest.raises(Disconnected, match="is closed"):
            receiver.receive(SOON)
        with pytest.raises(Disconnected):  # it is told no more than that
            sender.receive(SOON)
        driver.close()
        worker.close()


@pytest.mark.parametrize("kept", [1, 12, 43, 44, 50])
def test_a_message_cut_off_is_no_message(kept: int, listener: Listener) -> None:
    def cut(number: int, frame: bytes) -> bytes | None:
        if number == 0:
            return frame
        relay.send_up(frame[:kept])
        return None

    with Relay(listener.address, up=Way(edit=cut)) as relay:
        driver, worker = through(relay, listener)
        worker.send({"a": 1})
        worker.send({"long": "x" * 100})
        assert driver.receive(SOON) == {"a": 1}
        with pytest.raises(Disconnected, match="closed the connection in the middle of a message"):
            driver.receive(SOON)
        worker.close()


def test_a_message_sent_back_to_its_sender_is_refused(listener: Listener) -> None:
    with Relay(listener.address) as relay:
        driver, worker = through(relay, listener)
        worker.send({"a": 1})
        assert driver.receive(SOON) == {"a": 1}
        relay.send_down(relay.up.frames[0])  # the worker's own first message, as the driver's first
        with pytest.raises(Refused, match="its HMAC is wrong"):
            worker.receive(SOON)
        driver.close()
        worker.close()


def test_a_message_of_another_connection_is_refused(listener: Listener) -> None:
    with Relay(listener.address) as first:
        driver, worker = through(first, listener)
        worker.send({"a": 1})
        assert driver.receive(SOON) == {"a": 1}
        driver.close()
        worker.close()
    with Relay(listener.address, up=Way(edit=lambda number, frame: first.up.frames[0])) as second:
        driver, worker = through(second, listener)
        worker.send({"a": 1})
        with pytest.raises(Refused, match="its HMAC is wrong"):
            driver.receive(SOON)
        worker.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[1]", "JSON that is not an object"),
        (b"1", "JSON that is not an object"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":-Infinity}', "not JSON"),
        (b'{"a":1,"a":2}', "not JSON"),
        (b'{"a":' + b"9" * 10**6 + b"}", "not JSON"),
        (b'{"a":"\xff"}', "not JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_object_is_refused_though_its_hmac_is_right(body: bytes, reason: str) -> None:
    left, right = _connected()
    keys = Keys(b"a" * 32, b"b" * 32)
    with Channel(left, keys, "the worker") as channel, right:
        sealer = Sealer(keys.receiving)
        right.sendall(sealer.seal(body) + sealer.seal(b'{"next":1}'))
        with pytest.raises(Refused, match=reason):
            channel.receive(SOON)
        with pytest.raises(Disconnected):
            channel.receive(SOON)


def test_bodies_broken_at_random_are_refused_or_objects() -> None:
    chance = random.Random(7)
    body = json.dumps({"a": [1, -2.5e3, None, True, "é\n", {"b": {}}], "c": "\U0001f600"}).encode()
    taken, reasons = 0, set[str]()
    for _ in range(4000):
        broken = bytearray(body)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(broken))
            if chance.random() < 0.3:
                del broken[at : at + chance.randrange(1, 5)]
                broken = broken or bytearray(b"{")
            else:
                broken[at] = chance.choice((chance.randrange(256), *b'{}[]",:0\\'))
        try:
            taken += isinstance(message_of(bytes(broken)), dict)
        except Refused as error:
            reasons.add(str(error))
    assert 100 < taken < 3900
    assert reasons == {"it sent a message that is not JSON"}


# Who gets in.


def test_another_token_is_refused_on_both_sides(listener: Listener, lines: Lines) -> None:
    with pytest.raises(Refused, match=r"^127\.0\.0\.1:\d+: it closed the connection: it has another token or another"):
        connect(*listener.address, OTHER, SOON)
    (line,) = lines.wait(1)
    assert re.fullmatch(r"127\.0\.0\.1:\d+: it has another token", line)
    works(listener)


def test_a_listener_without_the_token_is_refused() -> None:
    """It has let the worker in without a proof, and has none itself."""

    def pretend() -> None:
        client, _ = server.accept()
        with client:
            client.recv(44)
            client.sendall(b"CLEARctl\0\0\0\1" + b"n" * 32)
            client.recv(32)
            client.sendall(b"p" * 32)
            client.recv(1)

    with socket.create_server((HERE, 0)) as server, ThreadPoolExecutor() as pool:
        pretending = pool.submit(pretend)
        with pytest.raises(Refused, match="it has another token"):
            connect(*server.getsockname(), TOKEN, SOON)
        pretending.result(SOON)


def test_a_listener_that_repeats_what_it_hears_is_refused() -> None:
    def mirror() -> None:
        client, _ = server.accept()
        with client:
            while data := client.recv(100):
                client.sendall(data)

    with socket.create_server((HERE, 0)) as server, ThreadPoolExecutor() as pool:
        mirroring = pool.submit(mirror)
        with pytest.raises(Refused, match="it has another token"):
            connect(*server.getsockname(), TOKEN, SOON)
        mirroring.result(SOON)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak this protocol: another program"),
        (b"CLEARctl\0\0\0\2" + b"n" * 32, "it has version 2 of the protocol, this side version 1: install the same"),
        (b"", "it closed the connection"),
        (None, r"no handshake in 0\.4 s"),
    ],
)
def test_a_connector_says_what_is_wrong_with_the_other_side(answer: bytes | None, reason: str) -> None:
    done = threading.Event()

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(44)
            if answer is None:
                done.wait(SOON)
            else:
                client.sendall(answer)

    with socket.create_server((HERE, 0)) as server, ThreadPoolExecutor() as pool:
        serving = pool.submit(serve)
        with pytest.raises(Refused, match=reason) as caught:
            connect(*server.getsockname(), TOKEN, LATE if answer is None else SOON)
        done.set()
        serving.result(SOON)
    assert str(caught.value).isprintable()


def test_a_recorded_connection_is_of_no_use(listener: Listener, lines: Lines) -> None:
    with Relay(listener.address) as relay:
        driver, worker = through(relay, listener)
        worker.send({"a": 1})
        driver.send({"b": 1})
        assert driver.receive(SOON) == {"a": 1} and worker.receive(SOON) == {"b": 1}
        driver.close()
        worker.close()
    up, down = bytes(relay.up.passed), bytes(relay.down.passed)
    assert min(len(up), len(down)) > HANDSHAKE
    with socket.create_connection(listener.address) as again:
        again.sendall(up)
        assert len(_heard(again)) == 44  # a greeting with a new nonce, and nothing more
    assert lines.wait(1)[0].endswith(": it has another token")

    def replay() -> None:
        client, _ = server.accept()
        with client:
            client.sendall(down)
            _heard(client)

    with socket.create_server((HERE, 0)) as server, ThreadPoolExecutor() as pool:
        replaying = pool.submit(replay)
        with pytest.raises(Refused, match="it has another token"):
            connect(*server.getsockname(), TOKEN, SOON)
        replaying.result(SOON)
    works(listener)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize(("part", "at"), [(0, 0), (0, 11), (0, 12), (0, 43), (1, 0), (1, 31)])
def test_a_handshake_changed_on_its_way_fails(part: int, at: int, way: str, listener: Listener) -> None:
    def change(number: int, data: bytes) -> bytes:
        return flipped(data, at) if number == part else data

    with Relay(listener.address, **{way: Way(handshake=change)}) as relay, pytest.raises(Refused):
        connect(HERE, relay.port, TOKEN, SOON)
    if way == "down" and part == 1:  # the last step: the listener is content, and learns that it is alone
        with listener.accept(SOON) as driver, pytest.raises(Disconnected):
            driver.receive(SOON)
    works(listener)


def _heard(client: socket.socket) -> bytes:
    """All bytes until the other side closes, which it has to."""
    client.settimeout(SOON)
    data = b""
    with suppress(ConnectionError):
        while some := client.recv(4096):
            data += some
    return data


def _talk(listener: Listener, said: bytes) -> bytes:
    """What a stranger hears who says this."""
    with socket.create_connection(listener.address) as stranger:
        with suppress(ConnectionError):  # refused before it has said all
            stranger.sendall(said)
        return _heard(stranger)


GREETING = b"CLEARctl\0\0\0\1" + b"n" * 32
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))
FOREIGN, UNKNOWN = "it does not speak this protocol", "it has another token"
STRANGERS = {
    "http": (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", FOREIGN),
    "tls": (TLS, FOREIGN),
    "noise": (random.Random(1).randbytes(100_000), FOREIGN),
    "zeros": (b"\0" * 8, FOREIGN),
    "almost": (b"clearCTL" + GREETING[8:], FOREIGN),
    "older": (b"CLEARctl\0\0\0\0" + b"n" * 32, "it has version 0 of the protocol, this side version 1"),
    "newer": (b"CLEARctl\0\0\0\2" + b"n" * 32, "it has version 2 of the protocol, this side version 1"),
    "guess": (GREETING + b"p" * 32, UNKNOWN),
    "guess and go on": (GREETING + b"p" * 32 + b"{}" * 10_000, UNKNOWN),
}


@pytest.mark.parametrize(("said", "reason"), STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_refused_in_one_line_and_hears_nothing(
    said: bytes, reason: str, listener: Listener, lines: Lines
) -> None:
    heard = _talk(listener, said)
    assert len(heard) == (44 if said.startswith(GREETING) else 0)
    works(listener)
    (line,) = lines.wait(1)
    assert reason in line and line.isprintable()


@pytest.mark.parametrize("said", [b"", b"GET /", GREETING[:20], GREETING, GREETING + b"p" * 31], ids=len)
def test_one_who_leaves_in_the_middle_is_refused(said: bytes, listener: Listener, lines: Lines) -> None:
    with socket.create_connection(listener.address) as stranger:
        stranger.sendall(said)
    assert re.search("closed the connection during|was lost during", lines.wait(1)[0])
    works(listener)


@pytest.mark.parametrize("said", [b"", b"CLEARct", GREETING, GREETING + b"p" * 31], ids=len)
def test_one_who_waits_is_refused_at_the_deadline(said: bytes, lines: Lines) -> None:
    with (
        Listener(HERE, 0, TOKEN, lines.append, handshake_seconds=LATE) as listener,
        socket.create_connection(listener.address) as stranger,
    ):
        stranger.sendall(said)
        works(listener)
        assert re.fullmatch(r"127\.0\.0\.1:\d+: no handshake in 0\.4 s", lines.wait(1)[0])
        _heard(stranger)  # which ends
        works(listener)


def test_one_who_sends_a_byte_at_a_time_has_no_longer(lines: Lines) -> None:
    with (
        Listener(HERE, 0, TOKEN, lines.append, handshake_seconds=LATE) as listener,
        socket.create_connection(listener.address) as stranger,
    ):
        with suppress(ConnectionError):
            for byte in GREETING[:40] * 1000:
                stranger.sendall(bytes([byte]))
                time.sleep(0.02)
                if lines:
                    break
        assert lines.wait(1)[0].endswith("no handshake in 0.4 s")


@pytest.mark.parametrize(("most", "reason"), [(64, "no handshake in 0.4 s"), (4, "more than 4 handshakes at a time")])
def test_fifty_silent_strangers_keep_nobody_out(most: int, reason: str, lines: Lines) -> None:
    with (
        Listener(HERE, 0, TOKEN, lines.append, handshake_seconds=LATE, most_pending=most) as listener,
        ExitStack() as stack,
    ):
        for _ in range(50):
            stack.enter_context(socket.create_connection(listener.address))
        works(listener)
        found = lines.wait(50)
        works(listener)
        assert len(found) == len(lines) == len({line.split(": ")[0] for line in found}) == 50
        assert sum(line.endswith(reason) or reason in line for line in found) >= 46


def test_workers_come_in_among_a_crowd_of_strangers(listener: Listener, lines: Lines) -> None:
    chance = random.Random(3)
    known = [said for said, _ in STRANGERS.values()]
    sent = [chance.choice((chance.randbytes(chance.randrange(8, 200)), *known)) for _ in range(60)]

    def work(number: int) -> Channel:
        worker = connect(*listener.address, TOKEN, SOON)
        worker.send({"number": number})
        return worker

    with ThreadPoolExecutor(12) as pool:
        strangers = [pool.submit(_talk, listener, said) for said in sent]
        workers = [pool.submit(work, number) for number in range(10)]
        drivers = [listener.accept(SOON) for _ in workers]
        assert sorted(str(driver.receive(SOON)["number"]) for driver in drivers) == [str(n) for n in range(10)]
        for each in strangers:
            each.result(SOON)
    assert len(lines.wait(60)) == 60
    for end in (*drivers, *(worker.result(SOON) for worker in workers)):
        end.close()


def test_more_channels_than_anybody_accepts_are_refused(lines: Lines) -> None:
    with Listener(HERE, 0, TOKEN, lines.append, most_waiting=2) as listener:
        workers = [connect(*listener.address, TOKEN, SOON) for _ in range(2)]
        late = connect(*listener.address, TOKEN, SOON)  # its token is right: it is closed afterwards
        assert lines.wait(1)[0].endswith("2 others have connected and wait to be accepted")
        with pytest.raises(Disconnected):
            late.receive(SOON)
        for worker in workers:
            with listener.accept(SOON) as driver:
                worker.send({"a": 1})
                assert driver.receive(SOON) == {"a": 1}
            worker.close()


def test_a_report_that_fails_stops_nothing() -> None:
    calls: list[str] = []

    def fail(line: str) -> None:
        calls.append(line)
        raise RuntimeError("the log is full")

    with Listener(HERE, 0, TOKEN, fail) as listener:
        for count in (1, 2):
            _talk(listener, b"GET / HTTP/1.1\r\n\r\n")
            eventually(lambda count=count: len(calls) == count)
        works(listener)


# The listener.


def test_two_hundred_reconnects_leave_nothing_behind(listener: Listener, lines: Lines) -> None:
    process = psutil.Process()
    count: Callable[[], int] = process.num_handles if os.name == "nt" else process.num_fds

    def once(number: int) -> None:
        works(listener)
        if number % 10 == 0:
            with pytest.raises(Refused):
                connect(*listener.address, OTHER, SOON)
            _talk(listener, b"\0" * 100)
            lines.wait(2)
            lines.clear()

    once(0)
    before, threads = count(), threading.active_count()
    for number in range(200):
        once(number)
    eventually(lambda: count() <= before)
    assert threading.active_count() == threads


def test_a_closed_listener_closes_all_it_has(lines: Lines) -> None:
    threads = threading.active_count()
    listener = Listener(HERE, 0, TOKEN, lines.append)
    worker = connect(*listener.address, TOKEN, SOON)
    stranger = socket.create_connection(listener.address)
    eventually(lambda: len(listener._pending) == 1 and listener._ready.qsize() == 1)
    listener.close()
    listener.close()
    assert _heard(stranger) == b""
    with pytest.raises(Disconnected):
        worker.receive(SOON)
    for _ in range(2):
        with pytest.raises(Disconnected, match=r"the listener on 127\.0\.0\.1:\d+ is closed"):
            listener.accept(SOON)
    with pytest.raises(ConnectionRefusedError):
        connect(*listener.address, TOKEN, SOON)
    stranger.close()
    assert threading.active_count() == threads


def test_closing_ends_a_wait(lines: Lines) -> None:
    listener = Listener(HERE, 0, TOKEN, lines.append)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(listener.accept, None) for _ in range(2)]
        time.sleep(0.05)
        listener.close()
        for each in waiting:
            with pytest.raises(Disconnected):
                each.result(SOON)


def test_nobody_comes(listener: Listener) -> None:
    with pytest.raises(TimeoutError, match=r"nobody has connected to 127\.0\.0\.1:\d+ in 0\.05 s"):
        listener.accept(0.05)


@pytest.mark.parametrize(
    ("interface", "reason"),
    [
        ("", "the interface to listen on is empty: give the IP address"),
        ("localhost", "is 'localhost', which is no IP address"),
        ("0", "no IP address"),
        ("0.0", "no IP address"),
        (" 127.0.0.1", "no IP address"),
        ("::0", "means all network cards"),
        ("0:0:0:0:0:0:0:0", "means all network cards"),
        ("::ffff:0.0.0.0", "means all network cards"),
    ],
)
def test_one_interface_has_to_be_named(interface: str, reason: str, lines: Lines) -> None:
    with pytest.raises(ValueError, match=reason):
        Listener(interface, 0, TOKEN, lines.append)


def test_only_the_named_interface_is_listened_on(lines: Lines) -> None:
    if sys.platform == "linux":  # where all of 127.0.0.0/8 is this machine
        with Listener("127.0.0.2", 0, TOKEN, lines.append) as one:
            with pytest.raises(ConnectionRefusedError):
                connect(HERE, one.address[1], TOKEN, SOON)
            works(one)
    with Listener("0.0.0.0", 0, TOKEN, lines.append) as every:
        assert every.address[0] == "0.0.0.0"
        connect(HERE, every.address[1], TOKEN, SOON).close()
        every.accept(SOON).close()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int, lines: Lines) -> None:
    with pytest.raises(ValueError, match=f"the port to listen on is {port}"):
        Listener(HERE, port, TOKEN, lines.append)
    with pytest.raises(ValueError, match=f"the port is {port}"):
        connect(HERE, port, TOKEN, SOON)


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(ValueError, match="the host is empty"):
        connect("", 80, TOKEN, SOON)


# The token.


def test_a_token_is_read_without_what_editors_add(tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_bytes(b"\xef\xbb\xbf  " + "é".encode() * 32 + b" \r\n")
    assert read_token(path) == Token("é" * 32)
    assert "é" not in repr(read_token(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the token has 0 characters and needs 32 at least. Make one with: python -c"),
        (b" " * 100, "the token has 0 characters"),
        (b"a" * 31 + b"\n" * 10, "the token has 31 characters"),
        ("a".encode("utf-16") * 40, "is not UTF-8 text: save it as UTF-8"),
        (b"a" * 100_000, "has more than 64 KiB: it is no file with a token"),
        (None, "cannot read the token's file .*token.txt: "),
    ],
)
def test_a_file_without_a_token_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenError, match=reason):
        read_token(path)


def test_the_advice_makes_a_token(tmp_path: Path) -> None:
    with pytest.raises(TokenError) as caught:
        read_token(tmp_path / "none")
    (command,) = re.findall(r'python -c "(.*)"', str(caught.value))
    made = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert len(Token(made).text) >= 32


def test_the_control_channel_imports_neither_torch_nor_a_host() -> None:
    script = """
import importlib, sys
for name in ("channel", "connection", "frames", "handshake", "listener", "messages", "schema", "sockets"):
    importlib.import_module(f"clear_core.cluster.{name}")
print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["__main__", "clear_core"]
