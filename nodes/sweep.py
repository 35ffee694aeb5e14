"""CLEAR Sweep: a grid of CLEAR's settings, sampled at fixed seeds: contact sheet, times, scores, a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io, ui

from . import host
from .insight.picture import page_theme
from .insight.sweep_report import sheet, summary, table
from .options.sweep import SweepGrid, check_count, parse_grid, parse_seeds
from .schema import CACHED_PER_NODE_ID, CATEGORY, make
from .sweep_inputs import sweep_inputs

_NOT_CONNECTED = object()
_SHOWN = 12  # lines on the node


class CLEARSweep(io.ComfyNode):
    """Samples itself, as SamplerCustomAdvanced does. Takes lists as a whole: each of their items is one more image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARSweep",
            display_name="CLEAR Sweep",
            category=CATEGORY,
            description="Samples one prompt with many settings of CLEAR at fixed seeds, and shows the images on a "
            "labelled sheet with times and, against the dense image, PSNR and SSIM. Rows and images are saved as they "
            "are made: a run that was cancelled goes on where it stopped.",
            search_aliases=[
                *("clear", "sweep", "grid", "xy plot", "x/y plot", "contact sheet", "compare settings", "benchmark"),
                *("psnr", "ssim", "csv", "SamplerCustomAdvanced"),
            ],
            inputs=sweep_inputs(),
            outputs=[io.Image.Output(display_name="sheet"), io.String.Output(display_name="table")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=CACHED_PER_NODE_ID,
        )

    @classmethod
    def validate_inputs(
        cls,
        axes: Sequence[str | None] = (None,),
        seeds: Sequence[str | None] = (None,),
        filename_prefix: Sequence[str | None] = (None,),
        weights: Any = _NOT_CONNECTED,
    ) -> bool | str:
        # None: the value comes through a link and is not known yet; `execute` checks it.
        try:
            grid = None if axes[0] is None else _grid(axes[0], connected=weights is not _NOT_CONNECTED)
            known = (0,) if seeds[0] is None else parse_seeds(seeds[0])
            if grid is not None:
                check_count(grid, known)
            if filename_prefix[0] is not None:
                host.check_prefix(filename_prefix[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, axes: Sequence[str | None] = (None,), reuse: Sequence[bool] = (True,), **_: Any
    ) -> str | float:
        if not reuse[0]:
            return float("nan")  # never the same: every run samples anew
        try:
            grid = parse_grid(axes[0] or "")
        except ValueError:
            return ""
        # A file replaced under the same name is read again.
        return ", ".join(host.file_fingerprint(name) for name in grid.files)

    @classmethod
    def execute(
        cls,
        guider: Sequence[Any],
        sampler: Sequence[Any],
        sigmas: Sequence[Any],
        latent_image: Sequence[Any],
        vae: Sequence[Any],
        axes: Sequence[str],
        seeds: Sequence[str],
        filename_prefix: Sequence[str],
        dense: Sequence[bool],
        reuse: Sequence[bool],
        weights: Sequence[Any] = (None,),
    ) -> io.NodeOutput:
        grid = _grid(axes[0], connected=weights[0] is not None)
        node_id = cls.hidden.unique_id
        images = _images({"guider": guider, "sampler": sampler, "sigmas": sigmas, "vae": vae}, latent_image)
        metadata = host.image_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        job = host.SweepJob(grid, parse_seeds(seeds[0]), weights[0], dense[0], reuse[0], metadata)
        done, where = host.run_sweep(job, images, filename_prefix[0], cls.hidden.dynprompt, node_id)
        image = sheet(grid, done, page_theme(host.page_is_light()))
        text = _beginning([where, *summary(grid, done)])
        host.node_text_sender(node_id)(text)
        preview = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, table(grid, done), ui={**preview, "text": (text,)})


def _grid(axes: str, *, connected: bool) -> SweepGrid:
    """connected: whether weights are. Raises ValueError also for weights files that are not listed."""
    grid = parse_grid(axes)
    listed = host.weights_files()
    for name in grid.files:
        # Only what is listed: a workflow from anywhere reaches no other file by its name.
        if name not in listed:
            raise ValueError(
                f"axes has weights {name!r:.60}, and there is no such file in {host.download_folder()}. Choose among: "
                f"{', '.join(listed)}, none"
            )
    grid.check_weights(connected=connected)
    return grid


def _images(inputs: Mapping[str, Sequence[Any]], latents: Sequence[Any]) -> list[host.SweepGiven]:
    """Every image of every item of the lists; a shorter list repeats its last item, as ComfyUI does it."""
    count = max(len(latents), *map(len, inputs.values()))
    found = []
    for i in range(count):
        one = {name: values[min(i, len(values) - 1)] for name, values in inputs.items()}
        found += [host.SweepGiven(latent=latent, **one) for latent in host.singles(latents[min(i, len(latents) - 1)])]
    return found


def _beginning(lines: Sequence[str]) -> str:
    """What fits on the node."""
    more = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {more} more in table"] if more > 0 else [])])
