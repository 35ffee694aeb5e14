"""CLEAR Factors on the small FLUX: which radius it recommends for a held-out prompt, and why.

PYTHONPATH=.dev/host:. PYTHONSAFEPATH=1 .dev/venv/bin/python -m devtools.factors [--prompt N] [--picture FILE] ...

The latent is what the model itself samples for the prompt. Prints the node's table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .inprocess import pack_module
from .small_flux import files, gallery, scenes, text
from .small_flux.command import host_with_text, run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="devtools.factors", description=__doc__)
    parser.add_argument("--prompt", type=int, default=0, metavar="N", help="of the held-out prompts, from 0")
    parser.add_argument("--least-mass", type=float, default=0.9)
    parser.add_argument("--largest-error", type=float, default=0.1)
    parser.add_argument("--radius", type=int, default=0, help="that the table judges; 0: the recommended one")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--picture", type=Path, default=None, metavar="FILE", help="where the figure goes, a PNG")
    options = parser.parse_args(arguments)
    descriptions = scenes.split()[1]
    if not 0 <= options.prompt < len(descriptions):
        parser.error(f"--prompt is {options.prompt}; 0 to {len(descriptions) - 1} is allowed")
    clip_l = host_with_text(None)
    inputs = pack_module("nodes.options.factors").FactorsInputs(
        least_mass=options.least_mass,
        largest_error=options.largest_error,
        radius=options.radius,
        queries=options.queries,
    )
    try:
        request = inputs.request()
    except ValueError as error:
        parser.error(str(error))
    prompt = descriptions[options.prompt].prompt
    texts = text.encode(text.load_clip(clip_l), [prompt])
    model, _ = files.load()
    context, pooled = texts.features(torch.tensor([0]))
    study = pack_module("nodes.host").measure_factors(
        model,
        [[context, {"pooled_output": pooled, "guidance": 3.5}]],
        {"samples": gallery.latents(model, texts, [0])},
        request,
        seed=0,
    )
    print(f"\nPrompt: {prompt}\n\n{study.report()}")
    if options.picture is not None:
        pack_module("nodes.insight.factors_figure").factors_page(study).save(options.picture)
    return 0


if __name__ == "__main__":
    run(main)
