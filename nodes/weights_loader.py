"""Load CLEAR Weights: a file of models/clear -> CLEAR_WEIGHTS; a released one that is missing is fetched first."""

from __future__ import annotations

from comfy_api.latest import io

from ..clear_core.hub.released import RELEASED, Released, address, size_text
from ..clear_core.weights import read_weights
from . import host
from .options.limits import one_of
from .schema import CATEGORY, CLEAR_WEIGHTS, make

_WHEN_MISSING, _NEVER = "when missing", "never"


class CLEARWeightsLoader(io.ComfyNode):
    """Reads a weights file and checks that it is complete."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARWeightsLoader",
            display_name="Load CLEAR Weights",
            category=CATEGORY,
            description="Loads distilled CLEAR attention weights from models/clear. Missing weights that the authors "
            "released are downloaded.",
            search_aliases=["clear", "linear attention", "local attention", "clear loader"],
            inputs=_inputs(),
            outputs=[CLEAR_WEIGHTS.Output(display_name="CLEAR_WEIGHTS")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, weights_name: str | None = None, download: str | None = None) -> bool | str:
        # Said when the prompt is queued, before anything loads; None comes through a link and is not known yet.
        try:
            if weights_name is not None:
                _to_download(weights_name, download or _WHEN_MISSING)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, weights_name: str, download: str = _WHEN_MISSING) -> str:
        # A file replaced under the same name is read again.
        return host.file_fingerprint(weights_name)

    @classmethod
    def execute(cls, weights_name: str, download: str = _WHEN_MISSING) -> io.NodeOutput:
        released = _to_download(weights_name, download)
        if released is not None:
            return io.NodeOutput(read_weights(host.download(released, node_id=cls.hidden.unique_id)))
        weights = read_weights(host.weights_path(weights_name))
        # In place of what an earlier file's download has said.
        host.node_text_sender(cls.hidden.unique_id)(f"{weights_name}: loaded")
        return io.NodeOutput(weights)


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    names = host.weights_files()
    return [
        make(
            io.Combo.Input,
            "weights_name",
            # The name alone is the value, whether the file is here or not: workflows that store it go on working.
            options=names,
            tooltip="A weights file in models/clear. clear_local_16 suits most images; 8 is faster, 32 is closest to "
            f"FLUX itself.\n{_released_files()}",
        ),
        make(
            io.Combo.Input,
            "download",
            options=[_WHEN_MISSING, _NEVER],
            default=_WHEN_MISSING,
            optional=True,
            tooltip="when missing: a released file that is not in models/clear is downloaded from the Hugging Face hub "
            "when the workflow runs. never: nothing is downloaded.",
        ),
    ]


def _released_files() -> str:
    """A line for each released file: its size, and whether it is here."""
    lines = []
    for released in RELEASED:
        state = "here" if host.absent_release(released.name) is None else "not downloaded"
        lines.append(f"{released.name}: released, {size_text(released.size)}, {state}")
    return "\n".join(lines)


def _to_download(name: str, download: str) -> Released | None:
    """What has to be fetched before `name` can be read. Raises ValueError where it cannot or must not be had."""
    one_of("download", download, (_WHEN_MISSING, _NEVER))
    released = host.absent_release(name)
    if released is None:
        host.weights_path(name)
    elif download == _NEVER:
        raise ValueError(
            f"{name} is not here, and download is set to {_NEVER!r}. Set it to {_WHEN_MISSING!r}, or fetch "
            f"{address(name)} ({size_text(released.size)}) by hand and put it into {host.download_folder()}."
        )
    return released
