"""Modules that ComfyUI imports and a FLUX step does not use, where they are not installed.

A machine with a card for ten minutes has PyTorch and little else, often without a network. ComfyUI's model code, which
`benchmarks.card` runs there, imports video, picture and text libraries for everything else that it does.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

NAMES = (
    "PIL",
    "aiohttp",
    "av",
    "kornia",
    "scipy",
    "spandrel",
    "tokenizers",
    "torchaudio",
    "torchvision",
    "tqdm",
    "transformers",
    "yaml",
)


class _Used(type):
    """Of classes that stand for what a module would have: any attribute, any subscript, no call."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(f"{cls.__qualname__}.{name}")

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __call__(cls, *arguments: object, **named: object) -> Any:
        raise ModuleNotFoundError(f"{cls.__qualname__} is used, and {cls.__qualname__.split('.')[0]} is not installed")


def _stand_in(name: str) -> Any:
    return _Used(name, (), {"__qualname__": name})


class _Module(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package: its submodules are looked for too

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.split(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_absent(names: Sequence[str] = NAMES) -> tuple[str, ...]:
    """Make the modules that are not installed importable: everything is in them, and calling it raises.

    Returns their names.
    """
    absent = tuple(name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None)
    sys.meta_path.append(_Finder(absent))
    return absent
