"""Which pack's code runs where ComfyUI's own is expected: the class of a model, its forward, its blocks.

Packs replace these on the model itself, some of them only while a forward runs, so they are checked in each call.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from .node_text import pack_of

_FORWARDS = ("forward", "_forward", "forward_orig")
_HOST = ("comfy.", "comfy_extras.", "torch.")
_OURS = __name__.rpartition(".nodes.")[0]


def forward_owner(transformer: Any) -> str:
    """The pack whose forward a transformer has, as you find it in custom_nodes; "" where it is ComfyUI's.

    transformer: the host's module, also under torch.compile's wrapper.
    """
    return _owner(getattr(transformer, "_orig_mod", transformer), _FORWARDS)


def entry_owner(transformer: Any) -> str:
    """The pack whose `forward` is called for the model, where ComfyUI's calls the wrappers; "" for ComfyUI's."""
    return foreign([getattr(transformer, "_orig_mod", transformer).forward])


def block_owner(transformer: Any) -> str:
    """The pack whose code the first of a transformer's replaced blocks runs; "" where all are ComfyUI's."""
    model = getattr(transformer, "_orig_mod", transformer)
    blocks = (*model.double_blocks, *model.single_blocks)
    return next(filter(None, (_owner(getattr(block, "_orig_mod", block), ("forward",)) for block in blocks)), "")


def class_owner(kind: type) -> str:
    """The pack that a class comes from; "" for ComfyUI's own."""
    return "" if kind.__module__.startswith(_HOST) else pack_of(kind.__module__)


def foreign(functions: Iterable[Any]) -> str:
    """The packs that some functions come from, joined by "and", without ComfyUI's and this pack's own; "" for none."""
    packs = (pack_of(name) for name in map(_module_of, functions) if not name.startswith((*_HOST, _OURS)))
    return " and ".join(dict.fromkeys(packs))


def _owner(module: Any, methods: Iterable[str]) -> str:
    """Who wrote a module's class or one of its methods, where that is not the host."""
    functions = (getattr(module, name) for name in methods if hasattr(module, name))
    return class_owner(type(module)) or foreign(functions).partition(" and ")[0]


def _module_of(function: Any) -> str:
    """The module whose code a callable runs. A wrapper made with functools.wraps says that it is what it wraps."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        else:
            break
    name = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", None)
    name = str(name or type(function).__module__)
    inner = getattr(function, "__wrapped__", None)
    # torch.compile and the like wrap what is somebody else's.
    return _module_of(inner) if inner is not None and name.startswith("torch.") else name
