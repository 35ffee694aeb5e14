"""The simulated cards themselves: what they refuse, what they count, and that nothing of them is left behind."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from greenlet import greenlet
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from devtools.cards import cards
from devtools.cards_counts import AROUND, LOADING, Counts, counted
from devtools.cards_model import model_on, sample_on

KIB = 2**10


def test_the_cards_are_there_only_inside(host: Any) -> None:
    import comfy.model_management as management

    before = (torch.cuda.device_count(), torch.cuda.is_available(), management.get_torch_device())
    with cards(3, memory=2**30, home=1) as found:
        assert torch.cuda.device_count() == 3
        assert management.get_torch_device() == found.devices[1] == torch.device("cuda:1")
        assert management.get_total_memory(found.devices[2]) == 2**30
        assert torch.empty(2, device="cuda").device == torch.device("cuda:1")
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.cuda.set_device(3)
    assert (torch.cuda.device_count(), torch.cuda.is_available(), management.get_torch_device()) == before
    assert type(torch.empty(2)) is Tensor
    with pytest.raises(Exception, match=r"CUDA|cuda"):
        torch.empty(2, device="cuda:1")


def test_what_is_computed_on_the_cpu_alone_is_real(host: Any) -> None:
    with cards(1):
        own = torch.arange(4) * 2
        assert own.tolist() == [0, 2, 4, 6]
        there = own.to("cuda:0")
        assert isinstance(there, FakeTensor) and there.device == torch.device("cuda:0")
        back = there.cpu()
        assert isinstance(back, FakeTensor) and back.device == torch.device("cpu")


@pytest.mark.parametrize(
    "meet",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat((here, there)),
        lambda here, there: here @ there,
        lambda here, there: functional.scaled_dot_product_attention(*(x[None, None] for x in (here, there, here))),
        lambda here, there: here[:, there[0].long()],
        lambda here, there: here.add_(there.cpu()),
    ],
    ids=["add", "cat", "product", "attention", "index", "in place, of the CPU"],
)
def test_tensors_of_two_devices_are_refused(host: Any, meet: Callable[..., Tensor]) -> None:
    with cards(2) as found, counted(found):
        here, there = torch.zeros(4, 4, device="cuda:0"), torch.zeros(4, 4, device="cuda:1")
        with pytest.raises(RuntimeError, match=f"in {LOADING} met tensors of (cpu|cuda:0), cuda:[01]"):
            meet(here, there)
        # A number goes with the kernel, and a copy is what it takes.
        here.copy_(there)
        assert (here * there.to("cuda:0") + torch.tensor(2.0)).device == here.device


def test_a_card_is_full_when_it_is_full_and_free_again(host: Any) -> None:
    import comfy.model_management as management

    with cards(2, memory=64 * KIB) as found:
        first = torch.zeros(40 * KIB, dtype=torch.uint8, device="cuda:0")
        view = first[1:]
        assert management.get_free_memory(found.devices[0]) == 24 * KIB
        with pytest.raises(torch.OutOfMemoryError, match="cuda:0 has 65536 bytes, 40960 used, 40960 wanted"):
            torch.zeros_like(first)
        torch.zeros(40 * KIB, dtype=torch.uint8, device="cuda:1")
        del first
        assert management.get_free_memory(found.devices[0]) == 24 * KIB
        del view
        assert management.get_free_memory(found.devices[0]) == 64 * KIB


def test_what_is_counted(host: Any) -> None:
    def of(work: Callable[[], object]) -> Counts:
        with counted(found) as ledger:
            work()
        return ledger.layers[LOADING]

    with cards(2) as found:
        x, layer = torch.zeros(8, 8, device="cuda:0"), torch.nn.Linear(8, 8).to("cuda:0")
        own, pinned = torch.zeros(8, 8), torch.zeros(8, 8).pin_memory()
        up, size = ("cpu", "cuda:0"), 8 * 8 * 4
        for _ in range(2):  # PyTorch's mode remembers what an operation gave, and must not leave out its parts
            assert of(lambda: layer(x)).kernels == 1
            assert of(lambda: functional.scaled_dot_product_attention(*[x[None]] * 3)).kernels == 1
        assert of(lambda: x.view(-1)[:3].unsqueeze(0)) == Counts()
        assert of(lambda: x.half()) == Counts(kernels=1, casts=1)
        assert of(lambda: x.to("cuda:1")) == _copied(("cuda:0", "cuda:1"), size)
        assert of(lambda: own.to("cuda:0")) == _copied(up, size, waits=1)
        assert of(lambda: own.to("cuda:0", non_blocking=True)) == _copied(up, size, waits=1)
        assert of(lambda: pinned.to("cuda:0")) == _copied(up, size, waits=1)
        assert of(lambda: pinned.to("cuda:0", non_blocking=True)) == _copied(up, size)
        assert of(lambda: x.copy_(pinned, non_blocking=True)) == _copied(up, size)
        assert of(lambda: x.cpu()) == _copied(("cuda:0", "cpu"), size, waits=1)
        assert of(lambda: x[torch.tensor([1, 2])]) == _copied(up, 16, waits=1, kernels=1)
        assert of(lambda: x.sum().item()) == Counts(kernels=1, waits=1)
        assert of(lambda: bool((x > 0).any())) == Counts(kernels=2, waits=1)
        assert of(lambda: torch.cuda.synchronize(1)) == Counts(waits=1)
        assert of(lambda: own + own) == Counts()


def _copied(pair: tuple[str, str], size: int, kernels: int = 0, waits: int = 0) -> Counts:
    return Counts(kernels=kernels, waits=waits, copies=Counter({pair: 1}), copied_bytes=Counter({pair: size}))


def test_threads_and_workspaces_are_those_of_the_forward(host: Any, nodes_api: Any) -> None:
    with cards(1) as found, counted(found) as ledger:
        sample_on(nodes_api.apply(model_on(found.devices[0], depth=1, depth_single_blocks=1), radius=3), 24, 18)
    assert (ledger.threads, len(ledger.workspaces)) == (0, 1)
    assert set(ledger.layers) == {LOADING, AROUND, "double 0", "single 0"}


def test_threads_do_not_disturb_each_other(host: Any) -> None:
    """Each thread enters the mode itself, and works on a card of its own."""
    problems: list[BaseException] = []

    def work(device: torch.device) -> None:
        try:
            with found.mode:
                x = torch.zeros(8, 8, device=device)
                for _ in range(50):
                    x = functional.rms_norm(x @ x, (8,)).float() + torch.arange(8, device=device)
                    assert x.device == device
        except BaseException as problem:
            problems.append(problem)

    with cards(4) as found:
        threads = [threading.Thread(target=work, args=(device,)) for device in found.devices * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_greenlets_may_switch_inside_the_mode(host: Any) -> None:
    """The one that enters first also leaves first: the other's scope and the thread's stay as they are."""
    order: list[str] = []

    def work(name: str) -> None:
        with found.mode:
            x = torch.zeros(2, device="cuda:0")
            order.append(name)
            main.switch()
            assert isinstance(x + 1, FakeTensor)
            order.append(name)

    main = greenlet.getcurrent()
    with cards(1) as found:
        first, second = greenlet(work), greenlet(work)
        first.switch("a")
        second.switch("b")
        first.switch()
        assert isinstance(torch.zeros(2, device="cuda:0"), FakeTensor)
        second.switch()
        assert isinstance(torch.zeros(2, device="cuda:0"), FakeTensor)
    assert order == ["a", "b", "a", "b"]
    assert type(torch.zeros(2)) is Tensor
