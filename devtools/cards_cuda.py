"""What stands in for `torch.cuda` on a machine without GPUs: devices, streams and events that only keep count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch

Device = int | str | torch.device | None


class FakeStream:
    """A stream of a card, known by a number. Work on it is never queued, so there is nothing to wait for."""

    def __init__(self, cuda: FakeCuda, device: Device = None, priority: int = 0) -> None:
        self._cuda = cuda
        self.device = torch.device("cuda", cuda.index(device))
        self.priority = priority
        self.stream_id = self.cuda_stream = next(cuda.numbers)

    def wait_stream(self, stream: FakeStream) -> None: ...

    def wait_event(self, event: FakeEvent) -> None: ...

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = FakeEvent(self._cuda) if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self._cuda.on_synchronize(str(self.device))

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *problem: object) -> None: ...


class FakeEvent:
    """An event; the host waits in `synchronize`, a stream in `wait`."""

    def __init__(self, cuda: FakeCuda, *args: Any, **kwargs: Any) -> None:
        self._cuda = cuda
        self.device: torch.device | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        self.device = (stream or self._cuda.current_stream()).device

    def wait(self, stream: FakeStream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: FakeEvent) -> float:
        return 0.001

    def synchronize(self) -> None:
        self._cuda.on_synchronize(str(self.device))


class FakeCuda:
    """The functions of `torch.cuda` for some cards. As in PyTorch, each thread has a current device and streams."""

    def __init__(self, cards: int, total: int, used: Callable[[int], int]) -> None:
        """total: bytes of each card. used: bytes that live on the card of a number."""
        self.cards, self._total, self._used = cards, total, used
        self.numbers: Iterator[int] = count(1)
        self.on_synchronize: Callable[[str], None] = lambda device: None
        self._defaults = [FakeStream(self, number) for number in range(cards)]
        self._of_thread = threading.local()

    def index(self, device: Device = None) -> int:
        """A device's number. Raises RuntimeError, as PyTorch does, for one that is not there."""
        if device is None:
            return self.current_device()
        if not isinstance(device, int):
            given = torch.device(device)
            device = self.current_device() if given.index is None else given.index
        if not 0 <= device < self.cards:
            raise RuntimeError(f"CUDA error: invalid device ordinal ({device} of {self.cards})")
        return device

    def current_device(self) -> int:
        return getattr(self._of_thread, "device", 0)

    def set_device(self, device: Device) -> None:
        self._of_thread.device = self.index(device)

    @contextmanager
    def device(self, device: Device) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(before)

    def current_stream(self, device: Device = None) -> FakeStream:
        number = self.index(device)
        return self._streams().get(number, self._defaults[number])

    def default_stream(self, device: Device = None) -> FakeStream:
        return self._defaults[self.index(device)]

    @contextmanager
    def stream(self, stream: FakeStream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        number = self.index(stream.device)
        before = self.current_stream(number)
        with self.device(number):
            self._streams()[number] = stream
            try:
                yield
            finally:
                self._streams()[number] = before

    def _streams(self) -> dict[int, FakeStream]:
        return self._of_thread.__dict__.setdefault("streams", {})

    def set_stream(self, stream: FakeStream) -> None:
        self.set_device(stream.device)
        self._streams()[self.index(stream.device)] = stream

    def synchronize(self, device: Device = None) -> None:
        self.on_synchronize(f"cuda:{self.index(device)}")

    def mem_get_info(self, device: Device = None) -> tuple[int, int]:
        return self._total - self._used(self.index(device)), self._total

    def memory_stats(self, device: Device = None) -> dict[str, int]:
        used = self._used(self.index(device))
        return {"reserved_bytes.all.current": used, "active_bytes.all.current": used}

    def memory_allocated(self, device: Device = None) -> int:
        return self._used(self.index(device))

    def get_device_properties(self, device: Device = None) -> Any:
        """As of an H100."""
        return SimpleNamespace(
            name=f"Simulated card {self.index(device)}", major=9, minor=0, total_memory=self._total,
            multi_processor_count=132, gcnArchName="",
        )  # fmt: skip

    def functions(self) -> dict[str, Any]:
        """By their names in `torch.cuda`."""
        kept = (
            "current_device set_device device current_stream default_stream stream set_stream synchronize mem_get_info "
            "memory_stats memory_allocated get_device_properties"
        )
        return {
            **{name: getattr(self, name) for name in kept.split()},
            "Stream": lambda device=None, priority=0, **kwargs: FakeStream(self, device, priority),
            "Event": lambda *args, **kwargs: FakeEvent(self, *args, **kwargs),
            "is_initialized": lambda: True,
            "device_count": lambda: self.cards,
            "get_device_name": lambda device=None: "Simulated card",
            "get_device_capability": lambda device=None: (9, 0),
            "can_device_access_peer": lambda device, other: True,
            "memory_reserved": self.memory_allocated,
            "is_bf16_supported": lambda *args, **kwargs: True,
            "empty_cache": lambda: None,
            "ipc_collect": lambda: None,
        }
