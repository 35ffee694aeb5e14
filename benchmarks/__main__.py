"""`python dev.py bench [--json PATH]`: tables in the terminal, and the same as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch

from clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS

from . import attention, cluster, memory, scaling, step, training, training_attention, tune
from .timing import device_name, matrix_rate

Item = TypeVar("Item")
PARTS = ("setup", "attention", "step", "small", "bands")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything as JSON")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each, the median counts")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PIXELS", help="only these image sizes, such as 2048")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too (always on a GPU); it must compile")
    parser.add_argument("--tune", action="store_true", help="instead: try configurations of the fused kernel (GPU)")
    parser.add_argument("--scaling", action="store_true", help="instead: traffic between devices, counted, and a model")
    parser.add_argument("--tflops", type=float, default=200.0, metavar="N", help="for --scaling: one device's rate")
    parser.add_argument("--gbps", type=float, default=25.0, metavar="N", help="for --scaling: one link's GB/s")
    parser.add_argument(
        "--cluster", action="store_true", help="instead: machines and networks, a model of the speed-up"
    )
    parser.add_argument(
        "--cluster-overlap", action="store_true", help="instead: two processes with a slow link, beside the model"
    )
    parser.add_argument(
        "--cluster-cancel", action="store_true", help="instead: two ComfyUIs, and how soon both stop at Cancel"
    )
    parser.add_argument("--memory", action="store_true", help="instead: peak memory by number of bands, computed")
    parser.add_argument(
        "--training", action="store_true", help="instead: attention in training; with --memory, its peak"
    )
    parser.add_argument("--fit", action="store_true", help="instead: what ComfyUI loads on 8 to 80 GB, for one size")
    parser.add_argument("--cards", action="store_true", help="instead: what each layer takes, on simulated cards")
    parser.add_argument("--launch", action="store_true", help="instead: the host's time for a launch, without a card")
    parser.add_argument(
        "--estimates", action="store_true", help="instead: steps predicted by Measure now beside steps that ran"
    )
    parser.add_argument(
        "--page", action="store_true", help="instead: the start of ComfyUI's page, with the pack and without"
    )
    parser.add_argument("--vae", action="store_true", help="instead: the autoencoder whole, in tiles and in strips")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="with --vae: what differs, amplified")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; 1 or more is needed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.tune and device.type != "cuda":
        parser.error("--tune needs a GPU")

    if options.scaling:
        found = scaling.rows(options.tflops, options.gbps)
        print(scaling.table(found, options.tflops, options.gbps))
        _write(options.json, {"rows": [row.as_dict() for row in found]})
        return 0
    if options.cluster:
        machines = cluster.rows(options.sizes or cluster.SIZES)
        print(cluster.table(machines))
        _write(options.json, _heading(arguments) | {"rows": [row.as_dict() for row in machines]})
        return 0
    if options.cluster_overlap:
        return _cluster_overlap(options, arguments)
    if options.cluster_cancel:
        return _cluster_cancel(options, arguments)
    if options.memory and options.training:
        return _training(options, arguments)
    if options.training:
        return _training_attention(options, arguments)
    if options.memory:
        return _memory(options, parser, arguments)
    if options.fit:
        return _fit(options, arguments)
    if options.cards:
        return _cards(options, arguments)
    if options.launch:
        return _launch(options, arguments)
    if options.estimates:
        return _estimates(options, device, arguments)
    if options.page:
        return _page(options, arguments)
    if options.vae:
        return _vae(options, arguments)
    every = attention.cases(device, flex=options.flex or device.type == "cuda")
    cases = [case for case in every if not options.sizes or case.side * PIXELS_PER_TOKEN in options.sizes]
    full = step.full_width(device)
    steps = {
        "step": (full, step.tasks(device)),
        "small": (step.SMALL, step.small_tasks()),
        "bands": (full, step.band_tasks(device)),
    }
    if not cases:
        parser.error(f"--sizes has none of {sorted({case.side * PIXELS_PER_TOKEN for case in every})}")

    name = device_name(device)
    content = _heading(arguments, name)
    print(f"On {name}; PyTorch {torch.__version__}, {platform.system()}; the median of {options.repeats}\n")
    if options.tune:
        content["tuning"] = [row.as_dict() for row in tune.run(device, options.repeats)]
        _write(options.json, content)
        return 0
    if "setup" in options.only:
        content["setup"] = {}
        for found in attention.set_up(device):
            print(f"{found.what}: {found.seconds * 1e3:.1f} ms")
            content["setup"][found.what] = found.seconds
        print()
    if "attention" in options.only:
        rate = matrix_rate(device, cases[0].dtype)
        content["matrix_tflops"] = rate / 1e12
        print(
            f"Attention of one layer, {cases[0].heads} heads of {attention.HEAD_DIM}, "
            f"{str(cases[0].dtype).removeprefix('torch.')}, {TEXT_TOKENS} text tokens. "
            f"Matrix products: {rate / 1e12:.3g} TFLOP/s, which is what the floor is made of.\n"
        )
        rows = _each(cases, lambda case: attention.measure(case, device, options.repeats, rate))
        print(attention.table(rows))
        _growth(rows)
        content["rows"] = [row.as_dict() for row in rows]
        _write(options.json, content)
    for part, (shape, tasks) in steps.items():
        wanted = [task for task in tasks if not options.sizes or task.side * PIXELS_PER_TOKEN in options.sizes]
        if part not in options.only or not wanted:
            continue
        print(f"\nOne sampling step of FLUX, {step.described(shape)}\n")
        bench = step.Bench(device, shape)
        results = _each(wanted, lambda task, bench=bench: bench.measure(task, options.repeats))
        print(step.table(results))
        content[part] = [result.as_dict() for result in results]
    _write(options.json, content)
    return 0


def _cluster_overlap(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import cluster_overlap  # the tests' processes and networks; nothing else here needs them

    name = device_name(torch.device("cpu"))
    print(
        f"A forward on two processes in network namespaces, on {name}; {cluster_overlap.described()}; the median of "
        f"{options.repeats}. The model has what the same processes measured: the steps alone, the link by messages.\n"
    )
    found = cluster_overlap.rows(options.repeats)
    print(cluster_overlap.table(found))
    _write(options.json, _heading(arguments, name) | {"rows": [row.as_dict() for row in found]})
    return 0


def _cluster_cancel(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import cluster_cancel  # starts servers: nothing else here does

    name = device_name(torch.device("cpu"))
    print(f"{options.repeats} prompts on two ComfyUIs, cancelled at random moments, on {name}:\n", flush=True)
    found = list(cluster_cancel.rows(options.repeats))
    print(cluster_cancel.table(found))
    _write(options.json, _heading(arguments, name) | {"rows": [row.as_dict() for row in found]})
    return 0


def _training_attention(options: argparse.Namespace, arguments: list[str]) -> int:
    print(
        f"The student's attention, forward and backward, {training_attention.HEADS} heads, float32, radius "
        f"{training_attention.RADIUS}, on {device_name(torch.device('cpu'))}; median of {options.repeats}."
    )
    rows = list(training_attention.rows(options.repeats))
    print(training_attention.table(rows))
    _write(options.json, _heading(arguments) | {"rows": [row.as_dict() for row in rows]})
    return 0


def _training(options: argparse.Namespace, arguments: list[str]) -> int:
    print(
        f"One step of distillation of FLUX.1, {training.PIXELS} x {training.PIXELS}, {training.TEXT} text tokens, "
        "batch 1: peak memory of a card with the base model.\nComputed from the sizes and lives of all tensors, not on "
        "a card."
    )
    rows = [training.measure(case) for case in training.CASES]
    print(training.table(rows, options.tflops))
    _write(options.json, _heading(arguments) | {"tflops": options.tflops, "rows": [row.as_dict() for row in rows]})
    return 0


def _memory(options: argparse.Namespace, parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    sizes = [size for size in memory.BANDS if not options.sizes or size in options.sizes]
    if not sizes:
        parser.error(f"--sizes has none of {sorted(memory.BANDS)}")
    print(
        f"Peak memory of one step of FLUX.1, bfloat16, {TEXT_TOKENS} text tokens, one device, radius {memory.RADIUS}: "
        "activations, followed and predicted;\nall that is needed beside the weights; the same with fp8 weights. "
        "Computed from the sizes and lives of all tensors, not on a card."
    )
    bench = memory.Bench()
    rows = _each(sizes, lambda size: memory.measure(size, bench))
    print("\n" + memory.table(rows))
    content = _heading(arguments) | {"rows": [row.as_dict() for row in rows]}
    _write(options.json, content)
    return 0


def _fit(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import fit  # simulated cards replace parts of PyTorch; nothing else here needs them

    size = (options.sizes or [8192])[0]
    found = list(fit.rows(size))
    print(
        f"FLUX.1, {size} x {size} pixels, bands 0, GiB; text encoders and autoencoder were in use before.\n"
        "ComfyUI's own model management on simulated cards, of each of which 0.5 GiB are in use; what a step needs is "
        "the memory model's. Not on a card.\n"
    )
    print(fit.table(found))
    content = _heading(arguments) | {"rows": [asdict(row) for row in found]}
    _write(options.json, content)
    return 0


def _cards(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import cards  # PyTorch's fake tensors take a while to import

    height, width = (side * PIXELS_PER_TOKEN for side in cards.TOKENS)
    print(
        f"What one forward takes, {width} x {height} px, radius {cards.RADIUS}, by layer. Counted on simulated cards, "
        "not measured; one thread calls the forward, others are counted."
    )
    content = _heading(arguments)
    rows: list[cards.Row] = []
    for case in cards.cases():
        rows += _each([case], cards.measure)
        content["rows"] = [row.as_dict() for row in rows]
        _write(options.json, content)
    print("\n" + cards.table(rows))
    return 0


def _launch(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import launch  # Triton, which not every machine has

    size = (options.sizes or [1024])[0]
    found = launch.stages(size)
    chip, triton = "".join(map(str, launch.CAPABILITY)), ".".join(map(str, launch.triton_version()))
    print(
        f"The host's time for one layer's attention, {size} x {size} px, radius {launch.RADIUS}, bfloat16, the fused "
        f"kernel for sm_{chip}.\nNothing ran on a card: Triton {triton} has a driver that launches nothing. The real "
        "driver's part and the text queries are\nnot in it.\n"
    )
    print(launch.table(found))
    content = _heading(arguments, device_name(torch.device("cpu"))) | {
        "triton": triton,
        "stages": [stage.as_dict() for stage in found],
    }
    _write(options.json, content)
    return 0


def _estimates(options: argparse.Namespace, device: torch.device, arguments: list[str]) -> int:
    from . import estimates  # the host; nothing else here needs it before it runs

    print(
        f"Steps predicted from a short measurement, beside the same steps run, on {device_name(device)}; the median of "
        f"{options.repeats}.\n{estimates.about(device)}\n"
    )
    content = _heading(arguments, device_name(device)) | {"load": estimates.load()}
    rows: list[estimates.Row] = []
    for shape, tasks in estimates.plan(device):
        rows += estimates.measure(device, shape, tasks, options.repeats)
        content["rows"] = [asdict(row) for row in rows]
        _write(options.json, content)
    print(estimates.table(rows))
    return 0


def _page(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import page  # the browser's driver; nothing else here needs it

    found = page.measure(options.repeats)
    print(
        f"ComfyUI's page in Chromium, {found.pages} fresh starts of each kind in turn, no CLEAR node in the graph: "
        f"{found.without:.2f} s without the pack, {found.with_pack:.2f} s with it; "
        f"the difference {found.difference * 1e3:+.0f} ms (median of pairs; half the distance of the quartiles "
        f"{found.spread * 1e3:.0f} ms). The pack's {found.requests} file(s), {found.bytes / 1e3:.0f} kB, "
        f"are fetched in {found.fetching * 1e3:.0f} ms, beside all others. The server imported it in "
        f"{found.importing:.1f} s."
    )
    content = _heading(arguments, device_name(torch.device("cpu"))) | {"page": found.as_dict()}
    _write(options.json, content)
    return 0


def _each(tasks: list[Item], run: Callable[[Item], Iterable[object]]) -> list:
    """Every task's rows, with a line of progress."""
    rows: list[object] = []
    for index, task in enumerate(tasks, 1):
        if sys.stderr.isatty():
            print(f"\r{index} of {len(tasks)} ...", end="", file=sys.stderr, flush=True)
        rows += run(task)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return rows


def _vae(options: argparse.Namespace, arguments: list[str]) -> int:
    from . import vae_picture, vae_strips  # the host; nothing else here needs it before it runs

    def wanted(sizes: tuple[int, ...]) -> list[int]:
        return [size for size in sizes if not options.sizes or size in options.sizes]

    bench = vae_strips.Bench()
    name = device_name(torch.device("cpu"))
    print(f"FLUX's autoencoder, decoding in float32 on {name}; the median of {options.repeats}\n")
    content = _heading(arguments, name)
    if options.picture:
        content["differences"] = vae_picture.write(bench, options.picture)
        print(f"Differences at 512 px, of the picture's range: {content['differences']}")
    timed = [bench.time(size, options.repeats) for size in wanted(vae_strips.TIMED)]
    content["timed"] = [asdict(row) for row in timed]
    print("\n" + vae_strips.timed_table(timed))
    _write(options.json, content)
    print("\nMemory in bfloat16, GiB, computed from the sizes and lives of all tensors, not on a card\n")
    counted = [bench.count(size) for size in wanted(vae_strips.COUNTED)]
    content["counted"] = [asdict(row) for row in counted]
    print("\n" + vae_strips.counted_table(counted))
    _write(options.json, content)
    return 0


def _heading(arguments: list[str], device: str | None = None) -> dict[str, object]:
    """How figures came about. device: where they were measured, None for what is computed."""
    return {
        "date": date.today().isoformat(),
        "command": "python dev.py bench " + " ".join(arguments),
        **({} if device is None else {"device": device}),
        "torch": torch.__version__,
    }


def _write(path: Path | None, content: dict[str, object]) -> None:
    """After each part, so that a run that is stopped leaves what it has."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _growth(rows: list[attention.Row]) -> None:
    """How the time of a backend grows when the image's pixels grow fourfold: 4 is linear, 16 is dense."""
    times = {(row.backend, row.radius, row.down_factor, row.side): row.seconds for row in rows}
    print("\nTime for four times the pixels (4 is linear)")
    for (backend, radius, factor, side), seconds in times.items():
        larger = times.get((backend, radius, factor, side * 2))
        if larger is not None and not backend.startswith("dense"):
            print(
                f"  {backend}, radius {radius}, down {factor}: {side * PIXELS_PER_TOKEN} to "
                f"{2 * side * PIXELS_PER_TOKEN} px: {larger / seconds:.2f} x"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
