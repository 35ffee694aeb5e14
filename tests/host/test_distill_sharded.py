"""A base that is sharded over processes: what each holds, what travels, and what cannot be sharded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from devtools.models import clear_tensors, flux_model

from host.distill_launch import TORCHRUN, WORKER, finished
from host.distill_samples import training_set
from host.distill_worker import SCALED, linears, model_of

SINGLES, STEPS, BATCH = 8, 4, 2
# Of all blocks. The fingerprint and the LoRA's merge take one each; a sample takes one layer by layer, and three end to
# end: teacher, student, and the student's blocks again in the backward. Half of the steps are of each kind.
GATHERS = 1 + STEPS // 2 * (1 + 3) * BATCH // 2 + 1


class Bytes(NamedTuple):
    """Of one process. most: held at once of the blocks' linear layers in bfloat16, the others: of `Shards`."""

    most: int
    held: int
    whole: int
    largest: int
    received: int


def trained(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> list[Bytes]:
    out = launched(folder, "output=LoRA", *options, launcher=launcher)
    return [Bytes(*map(int, line.split()[2:])) for line in out.splitlines() if line.startswith("bytes")]


def launched(folder: Path, *options: str, launcher: tuple[str, ...], files: Path | None = None) -> str:
    """What the processes print. files: copied into their folder."""
    folder.mkdir()
    (folder / "set").mkdir()
    training_set(folder / "set")
    if files is not None:
        shutil.copytree(files, folder, dirs_exist_ok=True)
    return finished(*launcher, WORKER, folder, STEPS, BATCH, STEPS, f"singles={SINGLES}", *options)


@pytest.mark.parametrize("stored", ["bfloat16", SCALED])
def test_a_process_holds_its_part_and_one_block(tmp_path: Path, stored: str) -> None:
    """Counted; and it trains what a single process does that has all of the base."""
    (alone,) = trained(tmp_path / "one", f"stored={stored}")
    both = trained(tmp_path / "two", f"stored={stored}", "base=sharded", launcher=TORCHRUN)
    assert len(both) == 2
    transformer = model_of(SINGLES, stored).model.diffusion_model
    blocks = [*transformer.double_blocks, *transformer.single_blocks]
    whole = sum(tensor.nbytes for block in blocks for tensor in block.parameters())
    scales = sum(tensor.nbytes for block in blocks for tensor in block.parameters() if not tensor.ndim)
    for process in both:
        assert process.whole == whole
        assert process.held == (whole - scales) // 2 + scales
        assert process.largest == sum(tensor.nbytes for tensor in blocks[0].parameters())
        assert process.received == (whole - scales) // 2 * GATHERS
    if stored == "bfloat16":
        sizes = [sum(t.nbytes for layer in linears(block) for t in layer.parameters()) for block in blocks]
        assert alone.most == sum(sizes)
        assert [process.most for process in both] == [sum(sizes) // 2 + max(sizes)] * 2
    expected, got = (load_file(tmp_path / name / "mine.safetensors") for name in ("one", "two"))
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-5, atol=1e-6)


def test_weights_re_based_on_a_sharded_model(tmp_path: Path, nodes_api: Any) -> None:
    """All starts are compared, and the result is that of a single process that has all of the base."""
    options = ("output=weights", "stored=bfloat16", "start=clear.safetensors", "singles=2")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    save_file(clear_tensors(flux_model()), prepared / "clear.safetensors")
    said = []
    for name, extra, launcher in (("one", (), ()), ("two", ("base=sharded",), TORCHRUN)):
        out = launched(tmp_path / name, *options, *extra, launcher=launcher, files=prepared)
        said += [line for line in out.splitlines() if line.startswith("from")]
    assert len(set(said)) == 1 and len(said) == 3, said
    assert "own weights" in said[0] and "clear.safetensors re-based" in said[0]
    expected, got = (load_file(tmp_path / name / "mine.safetensors") for name in ("one", "two"))
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=(tmp_path / "group").as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def sharded(nodes_api: Any) -> Any:
    """Loads a MODEL as a sharded base."""

    def load(model: Any) -> Any:
        base = nodes_api.module("nodes.host.distill.base").base_of("sharded")
        base.load(model)
        return base

    return load


def test_weights_are_there_within_gathered_and_frozen(joined: None, sharded: Any) -> None:
    with torch.inference_mode():
        model = flux_model()
    before = {name: tensor.clone() for name, tensor in model.model.diffusion_model.named_parameters()}
    base = sharded(model)
    for kind in ("double_blocks", "single_blocks"):
        for index, block in enumerate(getattr(model.model.diffusion_model, kind)):
            with base.gathered(block):
                for name, tensor in block.named_parameters():
                    assert torch.equal(tensor, before[f"{kind}.{index}.{name}"])
                    assert not tensor.is_inference()
                    assert not tensor.requires_grad


def test_one_process_cannot_shard(sharded: Any) -> None:
    with pytest.raises(ValueError, match="needs several processes, and this is a single one. Start it by torchrun"):
        sharded(flux_model())


def test_an_old_torch_is_named(joined: None, sharded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_custom_all_gather")
    with pytest.raises(ValueError, match=r"is too old for it \(FSDPModule has no set_custom_all_gather\)\. Update"):
        sharded(flux_model())


def test_what_cannot_be_sharded_is_refused(joined: None, sharded: Any) -> None:
    patched = flux_model()
    weight = patched.model.diffusion_model.single_blocks[0].linear1.weight
    patched.add_patches({"diffusion_model.single_blocks.0.linear1.weight": ("diff", (torch.ones_like(weight),))})
    with pytest.raises(
        ValueError, match="the model has patches of 1 weights, such as a LoRA's. Save the patched model"
    ):
        sharded(patched)

    class Packed(torch.Tensor):
        """As the host's quantised weights are."""

    model = flux_model()
    layer = model.model.diffusion_model.single_blocks[1].linear2
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))
    with pytest.raises(ValueError, match=r"single_blocks\.1\.linear2\.weight is a Packed.* plain fp8, or set base"):
        sharded(model)
