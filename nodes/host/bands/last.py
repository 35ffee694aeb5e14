"""The wrapper of a model's forward that goes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrapperExecutor

from ..forward_args import ForwardArgs


def last_wrapper(run: Callable[[Any, ForwardArgs], Any]) -> Callable[..., Any]:
    """A DIFFUSION_MODEL wrapper that calls `run(executor, arguments)` after all other wrappers: they must see the
    complete image. A closure: some hosts deep-copy the methods and objects in model_options."""

    def clear_bands(executor: Any, *args: Any, **kwargs: Any) -> Any:
        inner = executor.wrappers[executor.idx + 1 :]
        if inner:
            order = [*inner, clear_bands]
            last = WrapperExecutor.new_class_executor(executor.original, executor.class_obj, order)
            return last.execute(*args, **kwargs)
        return run(executor, ForwardArgs.of(executor.original, args, kwargs))

    return clear_bands
