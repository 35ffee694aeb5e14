"""Copies between devices: which streams they run on and who waits for them, on two fake cards that record it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clear_core.bands.transfer import Transfers

CARDS = [torch.device("cuda", 0), torch.device("cuda", 1)]


class Recorder:
    """Stands in for the streams and events of torch.cuda, and writes down what is asked of them."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.current = {device: Stream(self, f"main {device.index}") for device in CARDS}
        self.made = 0

    def stream(self, device: torch.device) -> Stream:
        self.made += 1
        return Stream(self, f"copy {device.index}", device)

    def current_stream(self, device: torch.device) -> Stream:
        return self.current[device]

    @contextmanager
    def inside(self, stream: Stream) -> Any:
        assert stream.device is not None
        before, self.current[stream.device] = self.current[stream.device], stream
        yield
        self.current[stream.device] = before

    def event(self) -> Event:
        return Event(self)


class Stream:
    def __init__(self, recorder: Recorder, name: str, device: torch.device | None = None) -> None:
        self._recorder, self.name, self.device = recorder, name, device

    def wait_stream(self, other: Stream) -> None:
        self._recorder.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: Event) -> None:
        self._recorder.log.append((self.name, "waits for event of", event.recorded))


class Event:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self.recorded = recorder, ""

    def record(self, stream: Stream) -> None:
        self.recorded = stream.name
        self._recorder.log.append((stream.name, "records"))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", recorder.stream)
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    monkeypatch.setattr(torch.cuda, "stream", recorder.inside)
    monkeypatch.setattr(torch.cuda, "current_stream", recorder.current_stream)

    def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
        recorder.log.append((f"tensor on {tensor.device.index}", "is used by", stream.name))

    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    to = torch.Tensor.to

    def copied(tensor: torch.Tensor, target: torch.device, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking
        current = recorder.current
        recorder.log.append(("copy", current[tensor.device].name, current[target].name))
        return to(tensor, target)

    monkeypatch.setattr(torch.Tensor, "to", copied)
    return recorder


def test_a_copy_runs_on_streams_of_its_own_and_only_its_user_waits(recorder: Recorder) -> None:
    transfers = Transfers()
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensor = torch.empty(4, device="cuda:0")
        arriving = transfers.start((tensor,), CARDS[1])
        assert recorder.log == [
            ("copy 0", "waits for", "main 0"),
            ("copy", "copy 0", "copy 1"),
            ("copy 1", "records"),
            ("tensor on 0", "is used by", "copy 0"),
        ]
        recorder.log.clear()
        (copied,) = arriving.take()
        assert copied.device == CARDS[1]
        assert recorder.log == [
            ("main 1", "waits for event of", "copy 1"),
            ("tensor on 1", "is used by", "main 1"),
        ]
        recorder.log.clear()
        arriving.take()
        assert recorder.log == [], "waited for once"


def test_streams_are_made_once_for_each_direction(recorder: Recorder) -> None:
    transfers = Transfers()
    with FakeTensorMode(allow_non_fake_inputs=True):
        one, other = (torch.empty(4, device=device) for device in CARDS)
        for _ in range(5):
            transfers.start((one,), CARDS[1])
            transfers.start((other,), CARDS[0])
    assert recorder.made == 4


def test_nothing_is_copied_on_one_device(recorder: Recorder) -> None:
    tensor = torch.empty(4)
    assert Transfers().start((tensor,), torch.device("cpu")).take()[0] is tensor
    assert recorder.log == []
