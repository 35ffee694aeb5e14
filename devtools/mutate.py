"""Mutation test of the core's geometry: change one operator or number at a time; do the fast tests of the core notice?

    python -m devtools.mutate                          every mutant of the modules in MODULES
    python -m devtools.mutate --every 5 pattern        each fifth of those of clear_core/pattern.py
    python -m devtools.mutate --list softmax           only name them

Run with the environment's Python and the paths that `dev.py` sets. Each mutant runs in a fork of a process that has
imported PyTorch and pytest already: Linux and macOS only. Prints the survivors and the score.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("test_attention.py", "test_numerics.py")
MODULES = {
    "pattern": ("test_window.py", *BACKENDS),
    "softmax": ("test_softmax.py", *BACKENDS),
    "bands/plan": ("test_band_plan.py",),
    "backends/sdpa/tiles": ("test_sdpa_tiles.py", *BACKENDS),
    "backends/triton/tile_plan": ("test_triton_tile_plan.py",),
}
"""Below clear_core, and the tests in tests/core that are to notice a change there."""
SLOW = "not every_backend_is_the_reference and not no_nan"
LIMIT = 120  # seconds for one mutant; a loop without end is a mutant found

_SWAPPED: dict[type[ast.AST], tuple[type[Any], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.FloorDiv),
    ast.FloorDiv: (ast.Mult,),
    ast.Div: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
_RENAMED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed, in each way there is."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in _SWAPPED.get(type(operator), ()):
                changed = copy.deepcopy(node)
                changed.ops[i] = other()
                yield changed
    elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        for other in _SWAPPED.get(type(node.op), ()):
            changed = copy.deepcopy(node)
            changed.op = other()
            yield changed
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield changed
    elif isinstance(node, (ast.Name, ast.Attribute, ast.keyword)):
        field = {ast.Name: "id", ast.Attribute: "attr", ast.keyword: "arg"}[type(node)]
        if other := _RENAMED.get(getattr(node, field) or ""):
            changed = copy.deepcopy(node)
            setattr(changed, field, other)
            yield changed
    elif isinstance(node, (ast.Raise, ast.Continue)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def mutants(tree: ast.Module) -> list[tuple[str, ast.Module]]:
    """Every mutant of a module: where and what, and its syntax tree."""
    found = []
    for path, node in _reached(tree, ()):
        for changed in changes(node):
            mutant = copy.deepcopy(tree)
            parent: Any = mutant
            for step in path[:-1]:
                parent = parent[step] if isinstance(step, int) else getattr(parent, step)
            for part in ast.walk(changed):
                ast.copy_location(part, node) if not hasattr(part, "lineno") else None
            if isinstance(path[-1], int):
                parent[path[-1]] = changed
            else:
                setattr(parent, path[-1], changed)
            before, after = ast.unparse(node).splitlines()[0], ast.unparse(changed).splitlines()[0]
            where = getattr(node, "lineno", 0)
            found.append((f"{where}: {before}  ->  {after}", ast.fix_missing_locations(mutant)))
    return found


def _reached(node: ast.AST, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], ast.AST]]:
    """Nodes that do something when the module is used: no annotations, decorators, texts."""
    yield path, node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params") or isinstance(node, ast.JoinedStr):
            continue
        for index, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(part, ast.AST):
                yield from _reached(part, (*path, name) if index is None else (*path, name, index))


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives out one module as the mutant has it."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self._name, self._file, self._tree = name, file, tree

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self._file))

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._file), "exec"), module.__dict__)


class _NoShrinking:
    """A failing example is enough; Hypothesis need not look for the smallest."""

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutate", settings.get_profile("clear"), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutate")


def survives(tests: tuple[str, ...], finder: _Mutated | None = None) -> bool:
    """Whether these tests pass, in a fork."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            import pytest

            if finder is not None:
                sys.meta_path.insert(0, finder)
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib"]
            files = [ROOT / "tests" / "core" / test for test in tests]
            arguments += [str(file) for file in files if file.exists()]
            code = pytest.main([*arguments, "-k", SLOW], plugins=[_NoShrinking()])
        finally:
            os._exit(int(code))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="below clear_core, without .py")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    # Once, before the forks.
    import comfy.cli_args  # noqa: F401
    import hypothesis.strategies  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for name in options.modules or MODULES:
        file = ROOT / "clear_core" / f"{name}.py"
        every = mutants(ast.parse(file.read_text(encoding="utf-8")))
        chosen = every[:: options.every]
        if options.list:
            print("\n".join(what for what, _ in chosen))
            continue
        tests, module = MODULES[name], f"clear_core.{name.replace('/', '.')}"
        if not survives(tests):
            sys.exit(f"{' '.join(tests)}: the tests fail without a mutant")
        finders = [_Mutated(module, file, tree) for _, tree in chosen]
        with ThreadPoolExecutor(options.jobs) as pool:
            lived = list(pool.map(partial(survives, tests), finders))
        for (what, _), alive in zip(chosen, lived, strict=True):
            if alive:
                print(f"survived: {name}.py:{what}", flush=True)
        killed = len(chosen) - sum(lived)
        share = f"{killed / len(chosen):.1%}"
        print(f"{name}: {killed} of {len(chosen)} found ({share}); {len(every)} mutants in all", flush=True)


if __name__ == "__main__":
    main()
