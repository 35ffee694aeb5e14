"""Work that can stop in the middle and go on later: a function in a thread of its own that takes turns.

A fiber runs only between `resume` and its next `pause`, while the thread that resumed it waits. So at most one of
the two runs at any time, and what they share needs no lock.

Threads, because the function that pauses is deep inside the host's own forward: a generator or coroutine can suspend
only its own frame, not its callers'. Greenlets could, but all greenlets of a thread share what PyTorch keeps for each
thread (grad and inference mode, dispatch modes, the current CUDA stream), which the host enters around its blocks.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Result = TypeVar("Result")


class FiberCancelled(BaseException):
    """Raised inside a fiber that is told to end. Not an Exception: nothing that it runs should handle it."""


class Fiber(Generic[Result]):
    """A function of one argument, the fiber itself, which it pauses."""

    def __init__(self, function: Callable[[Fiber[Result]], Result], device: torch.device, name: str) -> None:
        self._function = function
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._cancelled = False
        self._problem: BaseException | None = None
        self._result: list[Result] = []
        self._place: object = None
        run, enter = contextvars.copy_context().run, same_mode(device)
        self._thread = threading.Thread(target=lambda: run(self._run, enter), name=name, daemon=True)
        self._started = False

    @property
    def finished(self) -> bool:
        return bool(self._result)

    def take_result(self) -> Result:
        """What the function returned, once; the fiber keeps nothing of it."""
        return self._result.pop()

    @property
    def place(self) -> object:
        """Where it paused last: what it gave to `pause`."""
        return self._place

    def resume(self) -> None:
        """Let it run to its next pause or its end. Raises what it raised."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._turn.release()
        self._back.acquire()
        if self._problem is not None:
            raise self._problem

    def pause(self, place: object) -> None:
        """Called by the function: stop here until resumed."""
        self._place = place
        self._back.release()
        self._turn.acquire()
        if self._cancelled:
            raise FiberCancelled

    def cancel(self) -> None:
        """End it where it stands and wait until its thread is gone. Safe at any time, and twice."""
        if not self._started:
            return
        self._cancelled = True
        self._turn.release()
        self._thread.join()

    def _run(self, enter: Callable[[], AbstractContextManager[object]]) -> None:
        self._turn.acquire()
        try:
            if not self._cancelled:
                with enter():
                    self._result.append(self._function(self))
        except FiberCancelled:
            pass
        except BaseException as problem:
            self._problem = problem
        finally:
            del self._function  # and with it the tensors that it holds
            self._back.release()


def same_mode(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """PyTorch's thread-local modes as they are here, and the device's stream: to be entered in another thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    dispatch = list(_get_current_dispatch_mode_stack())
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def enter() -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        if not inference:
            stack.enter_context(torch.set_grad_enabled(grad))
        if stream is not None:
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(stream))
        for mode in dispatch:
            stack.enter_context(mode)
        return stack

    return enter
