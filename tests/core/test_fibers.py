"""Functions that stop in the middle: turns, ends, errors, and what PyTorch keeps for each thread."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch

from clear_core.bands.fibers import Fiber, FiberCancelled

CPU = torch.device("cpu")


def test_a_fiber_runs_only_when_it_is_resumed() -> None:
    seen: list[object] = []

    def body(fiber: Fiber[str]) -> str:
        for place in ("one", "two"):
            seen.append(place)
            fiber.pause(place)
        return "done"

    fiber = Fiber(body, CPU, "test")
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

    fiber = Fiber(body, CPU, "test")
    fiber.resume()
    with pytest.raises(KeyboardInterrupt) as caught:
        fiber.resume()
    assert caught.value is problem


@pytest.mark.parametrize("resumed", [0, 1, 2])
def test_a_cancelled_fiber_unwinds_and_leaves_no_thread(resumed: int) -> None:
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

    fiber = Fiber(body, CPU, "a fiber to cancel")
    for _ in range(resumed):
        fiber.resume()
    fiber.cancel()
    fiber.cancel()
    assert ended == ([FiberCancelled] if resumed == 1 else [])
    assert "a fiber to cancel" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_fiber_is_in_the_mode_of_the_thread_that_made_it(mode: type) -> None:
    variable = contextvars.ContextVar("variable", default="no")
    variable.set("yes")
    with mode():
        wanted = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        fiber = Fiber(lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), CPU, "test")
    fiber.resume()
    assert fiber.take_result() == wanted
    fiber = Fiber(lambda _: variable.get(), CPU, "test")
    fiber.resume()
    assert fiber.take_result() == "yes"
