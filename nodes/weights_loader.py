"""Load CLEAR Weights: a file of models/clear -> CLEAR_WEIGHTS."""

from __future__ import annotations

from comfy_api.latest import io

from ..clear_core.weights import read_weights
from . import host
from .schema import make
from .types import CATEGORY, CLEAR_WEIGHTS


class CLEARWeightsLoader(io.ComfyNode):
    """Reads a weights file and checks that it is complete."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARWeightsLoader",
            display_name="Load CLEAR Weights",
            category=CATEGORY,
            description="Loads distilled CLEAR attention weights from models/clear.",
            search_aliases=["clear", "linear attention", "local attention", "clear loader"],
            inputs=[
                make(
                    io.Combo.Input,
                    "weights_name",
                    options=host.weights_files(),
                    tooltip="The weights file, from models/clear. clear_local_16 suits most images; 8 is faster, "
                    "32 keeps the most of FLUX's own look.",
                ),
            ],
            outputs=[CLEAR_WEIGHTS.Output(display_name="CLEAR_WEIGHTS")],
        )

    @classmethod
    def validate_inputs(cls, weights_name: str | None = None) -> bool | str:
        # Said when the prompt is queued, before anything loads; None comes through a link and is not known yet.
        try:
            if weights_name is not None:
                host.weights_path(weights_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, weights_name: str) -> str:
        # A file replaced under the same name is read again.
        return host.file_fingerprint(weights_name)

    @classmethod
    def execute(cls, weights_name: str) -> io.NodeOutput:
        return io.NodeOutput(read_weights(host.weights_path(weights_name)))
