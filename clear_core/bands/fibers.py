"""Work that can stop in the middle and go on later: a function on a stack of its own, a greenlet, that takes turns.

A fiber runs only between `resume` and its next `pause`, in the thread that resumes it. So what it shares with others
of its thread needs no lock, and a lane of many bands computes in one thread: cuBLAS keeps a workspace of up to 32 MiB
for each thread and stream.

Greenlets, because the function that pauses is deep inside the host's own forward: a generator or coroutine can suspend
only its own frame, not its callers'.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Generic, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Result = TypeVar("Result")

_CANCEL_TRIES = 100


class FiberCancelled(BaseException):
    """Raised inside a fiber that is told to end. Not an Exception: nothing that it runs should handle it."""


class FiberError(RuntimeError):
    """A fiber paused where it must not, or cannot run here."""


class Fiber(Generic[Result]):
    """A function of one argument, the fiber itself, which it pauses. All calls come from one thread."""

    def __init__(self, function: Callable[[Fiber[Result]], Result], name: str) -> None:
        self.name = name
        self._function: Callable[[Fiber[Result]], Result] | None = function
        self._context = contextvars.copy_context()
        self._stack: Any = None  # the greenlet
        self._resumer: ThreadModes | None = None
        self._own: ThreadModes | None = None
        self._problem: BaseException | None = None
        self._result: list[Result] = []
        self._place: object = None

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
        if self._stack is None:
            self._stack = _greenlets().greenlet(self._run)
            self._stack.gr_context = self._context
        self._resumer = ThreadModes()
        if self._own is not None:
            self._own.enter_from(self._resumer)
        self._stack.switch()
        if self._problem is not None:
            raise self._problem

    def pause(self, place: object) -> None:
        """Called by the function: stop here until resumed.

        Raises FiberError inside inference mode, a dispatch mode or a function mode that the function itself has
        entered: PyTorch keeps these for the thread, and the other fibers of the thread would run in them.
        """
        assert self._resumer is not None
        own = ThreadModes()
        foreign = own.fixed_difference(self._resumer)
        if foreign:
            raise FiberError(
                f"{self.name} cannot pause at {place}: another node runs FLUX's blocks in {foreign} of its own. "
                "Remove it, or use one band."
            )
        self._place, self._own = place, own
        self._resumer.enter_from(own)
        self._stack.parent.switch()

    def cancel(self) -> None:
        """End it where it stands. Safe at any time, and twice."""
        stack, self._function = self._stack, None
        for _ in range(_CANCEL_TRIES):  # more than once only where the function catches it and pauses again
            if stack is None or stack.dead:
                return
            self._resumer = ThreadModes()
            if self._own is not None:
                self._own.enter_from(self._resumer)
            stack.throw(FiberCancelled)
        raise FiberError(f"{self.name} does not end")

    def _run(self) -> None:
        function, self._function = self._function, None  # and with it the tensors that it holds
        try:
            assert function is not None
            self._result.append(function(self))
        except FiberCancelled:
            pass
        except BaseException as problem:
            self._problem = problem
        finally:
            del function
            assert self._resumer is not None
            self._resumer.enter_from(ThreadModes())
            self._resumer = self._own = None


def _greenlets() -> Any:
    """The package greenlet. ComfyUI's database brings it on most machines, but not on all."""
    try:
        import greenlet
    except ImportError as error:
        raise FiberError(
            "Several bands need the Python package greenlet, which is missing: run `pip install greenlet` in ComfyUI's "
            "environment and start ComfyUI again, or use one band."
        ) from error
    return greenlet


class ThreadModes:
    """What PyTorch keeps for this thread, as it is now; all fibers of the thread would share it."""

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.autocast = {device: _autocast(device) for device in ("cpu", "cuda")}
        self.inference = torch.is_inference_mode_enabled()
        self.dispatch = tuple(map(id, _get_current_dispatch_mode_stack()))
        self.functions: int = torch._C._len_torch_function_stack()
        self.stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def fixed_difference(self, other: ThreadModes) -> str:
        """The mode that only a with statement can enter and leave, and in which these differ; "" for none."""
        if self.inference != other.inference:
            return "an inference mode"
        if self.dispatch != other.dispatch:
            return "a dispatch mode"
        return "a function mode" if self.functions != other.functions else ""

    def enter_from(self, current: ThreadModes) -> None:
        """Set the modes of this thread, in which `current` are now, to these."""
        if self.grad != current.grad:
            torch._C._set_grad_enabled(self.grad)
        for device, (enabled, dtype) in self.autocast.items():
            if current.autocast[device] != (enabled, dtype):
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
                torch.clear_autocast_cache()
        if self.stream is not None and self.stream != current.stream:
            torch.cuda.set_stream(self.stream)


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def same_mode(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """PyTorch's thread-local modes as they are here, and the device's stream: to be entered in another thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = {kind: _autocast(kind) for kind in ("cpu", "cuda")}
    dispatch = list(_get_current_dispatch_mode_stack())
    stream = torch.cuda.current_stream(device) if device.type == "cuda" and torch.cuda.is_available() else None

    def enter() -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        if not inference:
            stack.enter_context(torch.set_grad_enabled(grad))
        for kind, (enabled, dtype) in autocast.items():
            if enabled:
                stack.enter_context(torch.autocast(kind, dtype))
        if stream is not None:
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(stream))
        for mode in dispatch:
            stack.enter_context(mode)
        return stack

    return enter
