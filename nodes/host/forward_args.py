"""The arguments of one call of the host's model or transformer, by name.

FLUX and Chroma take theirs in different orders, and other nodes' wrappers may pass them by position or by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from torch import Tensor

from .attention_call import Frame, frame_of


class ForwardArgs:
    """Bound once to the signature of the function that is wrapped. Never changed: `replaced` makes another one."""

    def __init__(self, bound: inspect.BoundArguments) -> None:
        self._bound = bound
        kinds = {parameter.kind: name for name, parameter in bound.signature.parameters.items()}
        self._rest = kinds.get(Parameter.VAR_KEYWORD)

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], order: Sequence[str] = ()
    ) -> ForwardArgs:
        """Arguments as a wrapper around a function gets them. Raises TypeError where they do not fit.

        order: names of the positional arguments, for a function that another pack replaced by one of `*args`.
        """
        signature = inspect.signature(function)
        if order and any(each.kind is Parameter.VAR_POSITIONAL for each in signature.parameters.values()):
            named = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in order]
            signature = inspect.Signature([*named, Parameter("rest", Parameter.VAR_KEYWORD)])
        return cls(signature.bind(*args, **kwargs))

    def get(self, name: str) -> Any:
        """An argument that a model may not have; None where it was not given."""
        given = self._bound.arguments
        return given[name] if name in given else given.get(self._rest or "", {}).get(name)

    @property
    def x(self) -> Tensor:
        """The noisy latent, [batch, channels, height, width]."""
        return self.get("x")

    @property
    def context(self) -> Tensor:
        """The encoded prompt, [batch, text tokens, channels]."""
        return self.get("context")

    @property
    def options(self) -> Mapping[str, Any]:
        """transformer_options."""
        return self.get("transformer_options") or {}

    @property
    def arguments(self) -> dict[str, Any]:
        """All that were given, by name."""
        given = dict(self._bound.arguments)
        rest = given.pop(self._rest or "", {})
        return {**given, **rest}

    def frame(self, flux: Any) -> Frame:
        """Raises ValueError for an empty latent."""
        return frame_of(flux, self.x, self.get("ref_latents"), self.options)

    def replaced(self, **changes: Any) -> ForwardArgs:
        """With some arguments changed; None takes away what the signature does not name."""
        given = dict(self._bound.arguments)
        rest = dict(given.get(self._rest or "", {}))
        for name, value in changes.items():
            if name in self._bound.signature.parameters:
                given[name] = value
            elif value is None:
                rest.pop(name, None)
            else:
                rest[name] = value
        if self._rest is not None:
            given[self._rest] = rest
        return ForwardArgs(inspect.BoundArguments(self._bound.signature, given))  # type: ignore[arg-type]

    def call(self, function: Callable[..., Any]) -> Any:
        """Call a function of the same signature, or a wrapper's executor."""
        return function(*self._bound.args, **self._bound.kwargs)
