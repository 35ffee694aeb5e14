"""Functions that stop in the middle: turns, ends, errors, and what PyTorch keeps for each thread."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clear_core.bands.fibers import Fiber, FiberCancelled, FiberError


def test_a_fiber_runs_only_when_it_is_resumed() -> None:
    seen: list[object] = []

    def body(fiber: Fiber[str]) -> str:
        for place in ("one", "two"):
            seen.append(place)
            fiber.pause(place)
        return "done"

    fiber = Fiber(body, "test")
    assert seen == []
    fiber.resume()
    assert (seen, fiber.place, fiber.finished) == (["one"], "one", False)
    fiber.resume()
    assert (seen, fiber.place) == (["one", "two"], "two")
    fiber.resume()
    assert fiber.finished
    assert fiber.take_result() == "done"


def test_an_error_comes_out_where_the_fiber_was_resumed() -> None:
    problem = KeyboardInterrupt("as it is")

    def body(fiber: Fiber[None]) -> None:
        fiber.pause("here")
        raise problem

    fiber = Fiber(body, "test")
    fiber.resume()
    with pytest.raises(KeyboardInterrupt) as caught:
        fiber.resume()
    assert caught.value is problem


@pytest.mark.parametrize("resumed", [0, 1, 2])
def test_a_cancelled_fiber_unwinds(resumed: int) -> None:
    ended: list[type[BaseException]] = []

    def body(fiber: Fiber[None]) -> None:
        try:
            fiber.pause("here")
        except Exception:
            ended.append(Exception)
            raise
        except BaseException as end:
            ended.append(type(end))
            raise

    fiber = Fiber(body, "a fiber to cancel")
    for _ in range(resumed):
        fiber.resume()
    fiber.cancel()
    fiber.cancel()
    assert ended == ([FiberCancelled] if resumed == 1 else [])


def test_a_fiber_that_pauses_while_it_is_cancelled_still_ends() -> None:
    cleaned: list[str] = []

    def body(fiber: Fiber[None]) -> None:
        try:
            fiber.pause("here")
        finally:
            fiber.pause("on the way out")
            cleaned.append("yes")

    fiber = Fiber(body, "test")
    fiber.resume()
    fiber.cancel()
    assert cleaned == []
    assert not fiber.finished


def test_many_fibers_are_one_thread() -> None:
    threads: set[int] = set()

    def body(fiber: Fiber[None]) -> None:
        for turn in range(3):
            threads.add(threading.get_ident())
            fiber.pause(turn)

    fibers = [Fiber(body, f"test {number}") for number in range(64)]
    before = threading.active_count()
    for _ in range(4):
        for fiber in fibers:
            fiber.resume()
        assert threading.active_count() == before
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_fiber_is_in_the_mode_of_the_thread_that_resumes_it(mode: type) -> None:
    with mode():
        wanted = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        fiber = Fiber(lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), "test")
        fiber.resume()
    assert fiber.take_result() == wanted


def test_a_fiber_has_the_context_variables_of_its_maker() -> None:
    variable = contextvars.ContextVar("variable", default="no")
    variable.set("yes")

    def body(fiber: Fiber[list[str]]) -> list[str]:
        seen = [variable.get()]
        variable.set("mine")
        fiber.pause("here")
        return [*seen, variable.get()]

    fiber = Fiber(body, "test")
    variable.set("later")
    fiber.resume()
    assert variable.get() == "later"
    fiber.resume()
    assert fiber.take_result() == ["yes", "mine"]


def test_grad_mode_and_autocast_that_a_fiber_pauses_in_are_its_own() -> None:
    def body(fiber: Fiber[list[object]]) -> list[object]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            fiber.pause("inside")
            seen = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")]
        return [*seen, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]

    fiber = Fiber(body, "test")
    dtype = torch.get_autocast_dtype("cpu")
    with torch.enable_grad():
        fiber.resume()
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", torch.float16):
            fiber.resume()
            assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == (True, torch.float16)
        assert torch.is_grad_enabled()
    assert fiber.take_result() == [False, True, torch.bfloat16, True, False]
    assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == (False, dtype)


class _Ignored(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Unseen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "named"),
    [(torch.inference_mode, "inference mode"), (_Ignored, "dispatch mode"), (_Unseen, "function mode")],
)
def test_modes_that_other_fibers_would_run_in_are_refused(mode: Any, named: str) -> None:
    def body(fiber: Fiber[None]) -> None:
        with mode():
            fiber.pause("inside")

    fiber = Fiber(body, "clear-band-3")
    with pytest.raises(FiberError, match=f"clear-band-3 cannot pause at inside: .*{named}"):
        fiber.resume()
    assert not torch.is_inference_mode_enabled()
