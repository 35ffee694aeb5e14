"""A machine on which the warp-specialised kernel's own source runs without a GPU, to check what no compiler checks.

Partitions of a program run as fibers that a scheduler interleaves at every barrier, copy and product. Copies complete
when the scheduler says so, products when they are waited for. Wrong synchronisation is an error at once:

    a deadlock; a barrier that more arrive at than it counts; a wait that finds its barrier a phase ahead
    a copy into a buffer that a product, a copy or a store still uses; a product of a buffer that is being written
    a product's result used before it was waited for; a result's copy that could begin before the stores before it

Layouts mean nothing here, and dtypes are as given: with float32 the result is exact to rounding.
"""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

SOURCE = Path(__file__).parents[2] / "clear_core" / "backends" / "triton" / "hopper_kernel.py"


class SynchronisationError(AssertionError):
    """The kernel would hang, or read what is not there yet or not any more."""


class Value(Tensor):
    """A tensor that also has what Gluon's tensors have; a scalar has no dimension."""

    @property
    def type(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SimpleNamespace(layout=None)


def value(of: Any, dtype: torch.dtype | None = None) -> Value:
    return torch.as_tensor(of, dtype=dtype).as_subclass(Value)


@dataclass(eq=False)
class Barrier:
    name: str
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    waits: dict[Partition, tuple[int, int]] = field(default_factory=dict)

    def arrive(self) -> None:
        self.pending -= 1
        if self.pending < 0:
            raise SynchronisationError(f"{self.name}: more arrivals than the {self.count} it counts")
        self.settle()

    def settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count

    def passes(self, parity: int) -> bool:
        return self.phase % 2 != parity

    def passed(self, partition: Partition, parity: int) -> None:
        """A wait of a partition is over: it must be for the phase that it was meant for, not for one two later."""
        times, first = self.waits.get(partition, (0, 1 - parity))
        self.waits[partition] = times + 1, first
        if self.phase != times + first:
            raise SynchronisationError(f"{self.name}: wait {times} finds phase {self.phase}, not {times + first}")


@dataclass(eq=False)
class Buffer:
    """One slot of an allocation in shared memory."""

    name: str
    data: Tensor
    reads: int = 0
    writing: bool = False
    unfenced: bool = False

    def check_write(self) -> None:
        if self.reads or self.writing:
            raise SynchronisationError(f"{self.name} is written while it is {'written' if self.writing else 'read'}")

    def check_read(self) -> None:
        if self.writing:
            raise SynchronisationError(f"{self.name} is read while it is written")


@dataclass(eq=False)
class View:
    """A buffer as the kernel sees it, reshaped."""

    buffer: Buffer
    data: Tensor
    machine: Machine

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def reshape(self, shape: Sequence[int]) -> View:
        return View(self.buffer, self.data.view(*shape), self.machine)

    def permute(self, order: Sequence[int]) -> View:
        return View(self.buffer, self.data.permute(*order), self.machine)

    def store(self, values: Tensor) -> None:
        self.machine.pause("store", self.buffer)
        self.buffer.check_write()
        self.buffer.unfenced = True
        self.data.copy_(values)


@dataclass
class Allocation:
    slots: list[Any]
    dtype: torch.dtype

    def index(self, slot: Any) -> Any:
        return self.slots[int(slot)]


@dataclass
class Pointer:
    data: Tensor
    offset: Any = 0

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.data, self.offset + offset)

    def to(self, dtype: torch.dtype) -> Pointer:
        ratio = dtype.itemsize // self.data.element_size()
        assert self.offset % ratio == 0
        return Pointer(self.data.view(dtype), self.offset // ratio)


class Descriptor:
    """What the kernel reads and writes through: Triton's own description of a tensor, made by the launch."""

    def __init__(self, host: Any) -> None:
        self.tensor = host.base.as_strided(host.shape, host.strides)
        self.block_shape = list(host.block_shape)
        self.dtype = host.base.dtype
        self.layout = None
        size = self.dtype.itemsize
        for extent in self.block_shape:
            size *= extent
        self.block_type = SimpleNamespace(nbytes=size)

    def _overlap(self, place: Sequence[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a block that lies within the tensor: there, and in the block."""
        starts = [int(start) for start in place]
        assert min(starts) >= 0
        stops = [
            max(start, min(start + block, size))
            for start, block, size in zip(starts, self.block_shape, self.tensor.shape, strict=True)
        ]
        there = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
        return there, tuple(slice(0, stop - start) for start, stop in zip(starts, stops, strict=True))

    def read(self, place: Sequence[Any]) -> Tensor:
        there, here = self._overlap(place)
        block = self.tensor.new_zeros(self.block_shape)
        block[here] = self.tensor[there]
        return block

    def write(self, place: Sequence[Any], block: Tensor) -> None:
        there, here = self._overlap(place)
        self.tensor[there] = block[here]


@dataclass(eq=False)
class Product:
    """A product that runs; its result is there once it was waited for."""

    result: Tensor
    buffers: list[Buffer]
    done: bool = False
    type: Any = field(default_factory=lambda: SimpleNamespace(layout=None))


@dataclass(eq=False)
class Partition:
    name: str
    products: list[Product] = field(default_factory=list)
    stores: list[Buffer] = field(default_factory=list)
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    waits_for: tuple[Barrier, int] | None = None


class Machine:
    """One streaming multiprocessor. choose: the index of what happens next, out of what can happen.

    source: of the kernel. After a program, `partitions` have the traces of what they did.
    """

    def __init__(self, choose: Callable[[list[str]], int], source: str = "") -> None:
        self._choose, self._source = choose, source or SOURCE.read_text(encoding="utf-8")
        self.barriers: list[Barrier] = []
        self.buffers: list[Buffer] = []
        self.program = self.programs = 0
        self.partitions: dict[greenlet, Partition] = {}
        self.copies: list[Callable[[], None]] = []

    def _run(self, kernel: Callable[..., None], program: int, programs: int, arguments: Sequence[Any]) -> None:
        self.program, self.programs = program, programs
        self.barriers, self.buffers, self.copies = [], [], []
        kernel(*arguments)

    @property
    def here(self) -> Partition:
        return self.partitions[getcurrent()]

    # Partitions

    def specialize(self, functions: Sequence[tuple[Callable[..., None], tuple[Any, ...]]], *_: Any) -> None:
        """Run the partitions to their end, one step of one of them or one copy at a time."""
        main = getcurrent()
        fibers = [greenlet(lambda run=run, args=args: run(*args), main) for run, args in functions]
        self.partitions = {fiber: Partition(f"partition {index}") for index, fiber in enumerate(fibers)}
        while True:
            able = [fiber for fiber in fibers if not fiber.dead and self._can_go_on(self.partitions[fiber])]
            if not able and not self.copies:
                break
            names = [self.partitions[fiber].name for fiber in able] + ["copy"] * len(self.copies)
            chosen = self._choose(names)
            if chosen < len(able):
                able[chosen].switch()
            else:
                self.copies.pop(chosen - len(able))()
        stuck = [self.partitions[fiber] for fiber in fibers if not fiber.dead]
        if stuck:
            waiting = "; ".join(f"{one.name} waits for {one.waits_for[0].name}" for one in stuck if one.waits_for)
            raise SynchronisationError(f"deadlock: {waiting}")
        for buffer in self.buffers:
            if buffer.reads or buffer.writing:
                raise SynchronisationError(f"{buffer.name} is in use when the program ends")

    def _can_go_on(self, partition: Partition) -> bool:
        return partition.waits_for is None or partition.waits_for[0].passes(partition.waits_for[1])

    def pause(self, *event: Any) -> None:
        """Let others go first. event: what the partition does next, for the trace."""
        self.here.trace.append(event)
        getcurrent().parent.switch()  # pyright: ignore[reportOptionalMemberAccess]

    # Barriers

    def wait(self, barrier: Barrier, parity: Any) -> None:
        self.here.waits_for = barrier, int(parity)
        self.pause("wait", barrier, int(parity))
        self.here.waits_for = None
        barrier.passed(self.here, int(parity))

    def arrive(self, barrier: Barrier) -> None:
        self.pause("arrive", barrier)
        barrier.arrive()

    def expect(self, barrier: Barrier, size: int) -> None:
        self.pause("expect", barrier, size)
        barrier.bytes += size
        barrier.arrive()

    # Copies

    def copy_in(self, source: Descriptor, place: Sequence[Any], barrier: Barrier, target: View) -> None:
        self.pause("copy", barrier, target.buffer, source.block_type.nbytes)
        target.buffer.check_write()
        target.buffer.writing = True
        target.data.fill_(torch.nan)  # whoever reads too early shall notice
        data = source.read(place)

        def complete() -> None:
            target.data.copy_(data)
            target.buffer.writing = False
            barrier.bytes -= source.block_type.nbytes
            barrier.settle()

        self.copies.append(complete)

    def copy_out(self, target: Descriptor, place: Sequence[Any], source: View) -> None:
        self.pause("read", source.buffer)
        source.buffer.check_read()
        if source.buffer.unfenced:
            raise SynchronisationError(f"{source.buffer.name} is copied without a fence after its store")
        source.buffer.reads += 1
        self.here.stores.append(source.buffer)
        target.write(place, source.data)

    def store_wait(self, pending: int) -> None:
        assert pending == 0
        self.pause("done", *self.here.stores)
        for buffer in self.here.stores:
            buffer.reads -= 1
        self.here.stores.clear()

    def fence(self) -> None:
        for buffer in self.buffers:
            buffer.unfenced = False

    # Products

    def product(self, a: Any, b: View, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async
        operands = [operand for operand in (a, b) if isinstance(operand, View)]
        self.pause("read", *(operand.buffer for operand in operands))
        for operand in operands:
            operand.buffer.check_read()
            operand.buffer.reads += 1
        left = a.data if isinstance(a, View) else _complete(a)
        result = left.float() @ b.data.float()
        if use_acc:
            result = result + _complete(acc)
        started = Product(value(result), [operand.buffer for operand in operands])
        self.here.products.append(started)
        return started

    def product_wait(self, running: int, results: Sequence[Product]) -> Any:
        products = self.here.products
        ended, self.here.products = products[: len(products) - running], products[len(products) - running :]
        self.pause("done", *(buffer for product in ended for buffer in product.buffers))
        for product in ended:
            product.done = True
            for buffer in product.buffers:
                buffer.reads -= 1
        found = tuple(_complete(result) for result in results)
        return found[0] if len(found) == 1 else found

    # Memory

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Allocation:
        if layout == "barrier":
            barriers = [Barrier(f"barrier {len(self.barriers) + index}") for index in range(shape[0])]
            self.barriers += barriers
            return Allocation(barriers, dtype)
        buffers = [
            Buffer(f"buffer {len(self.buffers) + index}", torch.full(shape[1:], torch.nan, dtype=dtype))
            for index in range(shape[0])
        ]
        self.buffers += buffers
        return Allocation([View(buffer, buffer.data, self) for buffer in buffers], dtype)

    def module(self) -> ModuleType:
        """`hopper_kernel`, its source run with this machine in place of Gluon."""
        hopper = SimpleNamespace(
            fence_async_shared=self.fence,
            mbarrier=SimpleNamespace(
                init=_init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=lambda: "barrier"
            ),
            tma=SimpleNamespace(async_load=self.copy_in, async_store=self.copy_out, store_wait=self.store_wait),
            warpgroup_mma=self.product,
            warpgroup_mma_wait=self.product_wait,
        )
        language = SimpleNamespace(
            constexpr=lambda of: of,
            int32=torch.int32,
            int64=torch.int64,
            float32=torch.float32,
            pointer_type=lambda of: of,
            static_range=range,
            program_id=lambda _: value(self.program, torch.int32),
            num_programs=lambda _: value(self.programs, torch.int32),
            load=_load,
            store=_store,
            arange=lambda start, stop, _layout: value(torch.arange(start, stop, dtype=torch.int32)),
            full=lambda shape, fill, dtype, _layout: value(torch.full(shape, fill, dtype=dtype)),
            where=lambda condition, a, b: value(torch.where(value(condition), a, b)),
            maximum=lambda a, b: torch.maximum(value(a), value(b)),
            minimum=torch.minimum,
            max=lambda of, axis: of.amax(axis),
            sum=lambda of, axis: of.sum(axis),
            exp2=torch.exp2,
            log2=torch.log2,
            cdiv=lambda a, b: -(-a // b),
            convert_layout=lambda of, _layout, assert_trivial=False: of,
            allocate_shared_memory=self.allocate,
            warp_specialize=self.specialize,
            SliceLayout=_no_layout,
            NVMMADistributedLayout=_no_layout,
            DotOperandLayout=_no_layout,
        )
        gluon = SimpleNamespace(language=language, jit=_jit)
        names = {
            "triton.experimental": SimpleNamespace(gluon=gluon),
            "triton.experimental.gluon": gluon,
            "triton.experimental.gluon.language": language,
            "triton.experimental.gluon.language.nvidia.hopper": hopper,
        }
        importlib.import_module(
            "clear_core.backends.triton.kernel"
        )  # with Triton, which stays when the patch is undone
        module = ModuleType("clear_core.backends.triton.hopper_kernel")
        module.__package__ = "clear_core.backends.triton"
        with mock.patch.dict(sys.modules, names):
            exec(compile(self._source, str(SOURCE), "exec"), vars(module))
        for name, constant in [*vars(module).items()]:
            setattr(module, name, getattr(constant, "value", constant))  # of the other kernel, which is Triton's
        kernel = module.hopper_kernel

        constants = {name for name, kind in kernel.__annotations__.items() if kind == "gl.constexpr"}

        def launch(grid: tuple[int, ...], arguments: Sequence[Any]) -> None:
            named = dict(zip(inspect.signature(kernel).parameters, arguments, strict=True))
            made = [of if name in constants else _argument(of) for name, of in named.items()]
            for program in range(grid[0]):
                self._run(kernel, program, grid[0], made)

        module.hopper_kernel = _Launcher(launch)  # pyright: ignore[reportAttributeAccessIssue]
        return module


@dataclass
class _Launcher:
    launch: Callable[[tuple[int, ...], Sequence[Any]], None]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **_: self.launch(grid, arguments)


def _argument(of: Any) -> Any:
    """An argument of the launch as the kernel sees it."""
    if isinstance(of, Tensor):
        assert of.is_contiguous() or of.stride(-1) == 1
        return Pointer(of.as_strided((of.untyped_storage().size() // of.element_size() - of.storage_offset(),), (1,)))
    if hasattr(of, "block_shape"):
        return Descriptor(of)
    return value(of)


def _jit(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda decorated: decorated


def _no_layout(*_: Any) -> None:
    return None


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.pending = count


def _load(pointer: Pointer) -> Value:
    return value(pointer.data[value(pointer.offset).long()])


def _store(pointer: Pointer, values: Tensor, mask: Tensor) -> None:
    pointer.data[value(pointer.offset).long()[mask]] = values[mask]


def _complete(of: Any) -> Any:
    if not isinstance(of, Product):
        return of
    if not of.done:
        raise SynchronisationError("a product's result is used before it was waited for")
    return of.result


# Schedules


def randomly(seed: int) -> Callable[[list[str]], int]:
    generator = random.Random(seed)
    return lambda names: generator.randrange(len(names))


def in_favour_of(*order: str) -> Callable[[list[str]], int]:
    """What is named first goes on as long as it can; what is not named comes last."""

    def choose(names: list[str]) -> int:
        ranks = [order.index(name) if name in order else len(order) for name in names]
        return ranks.index(min(ranks))

    return choose


def schedules() -> Iterator[tuple[str, Callable[[list[str]], int]]]:
    """Schedules that are extreme, then some at random."""
    yield "the producer first", in_favour_of("partition 2", "copy")
    yield "the left consumer first", in_favour_of("partition 0", "copy", "partition 2")
    yield "the right consumer first", in_favour_of("partition 1", "copy", "partition 2")
    yield "copies last", in_favour_of("partition 2", "partition 0", "partition 1")
    for seed in range(3):
        yield f"seed {seed}", randomly(seed)
