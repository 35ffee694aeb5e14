"""A distillation of the tiny FLUX in a process of its own, alone or under torchrun.

Arguments: FOLDER STEPS BATCH SAVE_EVERY [OPTIMIZER LEARNING_RATE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from devtools.inprocess import import_host, pack_module
from devtools.models import flux_model


def main(folder: Path, steps: int, batch: int, save_every: int, optimizer: str, rate: float) -> None:
    import_host()
    torch.set_num_threads(1)
    settings = pack_module("clear_core.distill.settings").Settings(
        radius=2, steps=steps, batch=batch, learning_rate=rate, seed=3, method="both", optimizer=optimizer
    )
    job = pack_module("nodes.host.distill.job").Job("mine", settings, save_every, folder=folder)
    files = tuple(sorted((folder / "set").glob("*.safetensors")))
    samples = pack_module("clear_core.distill.samples").TrainingSet(folder / "set", files)
    with pack_module("clear_core.distill.processes").joined() as processes:

        def say(session: object, trained: object, point: object) -> None:
            print(f"rank {processes.rank} {point}", flush=True)

        job.run(flux_model(), samples, None, say, processes=processes)


if __name__ == "__main__":
    optimizer, rate = sys.argv[5:] or ("AdamW", "1e-3")
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), optimizer, float(rate))
