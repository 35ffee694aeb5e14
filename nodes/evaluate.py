"""CLEAR Evaluate Folders: FID, IS, LPIPS, CLIP-I, CLIP-T, DINO, PSNR, SSIM and MS-SSIM of folders of images."""

from __future__ import annotations

import time

from comfy_api.latest import io

from ..clear_core.evaluation.table import as_csv, lines, markdown
from . import host
from .options.evaluation import ALL_METRICS, check_save_as, listed_folders, listed_metrics
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEAREvaluate(io.ComfyNode):
    """Compares images on disk; what was measured of them is kept there, too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEAREvaluate",
            display_name="CLEAR Evaluate Folders",
            category=CATEGORY,
            description="Measures how close folders of images are to the images of an original, such as CLEAR's to "
            "those with full attention: FID, LPIPS, CLIP-I, DINO, CLIP-T, IS, PSNR, SSIM, MS-SSIM, each with a "
            "confidence interval. A run that was cancelled goes on where it stopped.",
            search_aliases=["clear", "evaluate", "metrics", "fid", "inception score", "lpips", "clip score", "dino"],
            inputs=_inputs(),
            outputs=[io.String.Output(display_name="table"), io.String.Output(display_name="csv")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=CACHED_PER_NODE_ID,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        original: str | None = None,
        folders: str | None = None,
        prompts: str | None = None,
        metrics: str | None = None,
        save_as: str | None = None,
    ) -> bool | str:
        # A value that comes through a link is None here, not known yet; `execute` checks it.
        try:
            if original is not None:
                host.evaluated_folder("original", original)
            for folder in listed_folders(folders) if folders is not None else ():
                host.evaluated_folder("folders", folder)
            if prompts is not None:
                host.prompts_file(prompts)
            if metrics is not None:
                listed_metrics(metrics)
            if save_as is not None:
                check_save_as(save_as)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        # Images, prompts and the networks' files may have changed; what is unchanged is not measured again.
        return time.time()

    @classmethod
    def execute(
        cls, original: str, folders: str, prompts: str, metrics: str, download: bool, save_as: str
    ) -> io.NodeOutput:
        check_save_as(save_as)
        say = host.node_text_sender(cls.hidden.unique_id)
        watch = host.NodeWatch(say)
        found = host.evaluate_folders(
            host.evaluated_folder("original", original),
            [host.evaluated_folder("folders", folder) for folder in listed_folders(folders)],
            listed_metrics(metrics),
            host.prompts_file(prompts),
            host.NetworkFiles(watch, download),
            watch,
        )
        table = markdown(found)
        if save_as:
            table += f"\n- saved as {host.saved(found, save_as)[0]}, and as .csv and .json beside it"
        say(lines(found))
        return io.NodeOutput(table, as_csv(found), ui={"text": (table,)})


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    return [
        make(
            io.String.Input,
            "original",
            default="",
            tooltip="The folder with the images to compare with, such as those made with full attention: its path on "
            "the machine of ComfyUI, or below ComfyUI's output folder.",
        ),
        make(
            io.String.Input,
            "folders",
            default="",
            multiline=True,
            tooltip="The folders to evaluate, one a line. Images belong together where their names are the same, "
            "extensions aside.",
        ),
        make(
            io.String.Input,
            "prompts",
            default="",
            tooltip="For CLIP-T: a file with the images' prompts, .json, .csv or .txt; its path, or below ComfyUI's "
            "input folder. Empty: CLIP-T is not measured.",
        ),
        make(
            io.String.Input,
            "metrics",
            default=ALL_METRICS,
            tooltip="What to measure, between commas. SSIM and MS-SSIM take longest, FID and IS need many images.",
        ),
        make(
            io.Boolean.Input,
            "download",
            default=False,
            tooltip="Download networks that are missing in models/clear_metrics, 3.3 GB together, verified by SHA-256. "
            "Off: a metric without its network says which file is missing.",
        ),
        make(
            io.String.Input,
            "save_as",
            default="",
            tooltip="Also writes the table as NAME.md, NAME.csv and NAME.json into clear_evaluation of ComfyUI's "
            "output folder. Empty: no file.",
        ),
    ]
