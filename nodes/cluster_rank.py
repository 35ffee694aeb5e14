"""The node at the end of a graph that a worker runs: serves forwards with its MODEL until the driver lets it go.

Only a worker registers it; it is in no list of nodes that a user sees.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .schema import CATEGORY, make


def rank_node(worker: host.Worker) -> type[io.ComfyNode]:
    """The node's class, for one worker."""

    class CLEARClusterRank(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return make(
                io.Schema,
                node_id=host.RANK_NODE,
                display_name="CLEAR Cluster Rank",
                category=CATEGORY,
                description="Computes rows of another machine's image.",
                inputs=[make(io.Model.Input, "model"), make(io.Int.Input, "job", default=0, min=0, max=2**31 - 1)],
                outputs=[],
                is_output_node=True,
                not_idempotent=True,
            )

        @classmethod
        def execute(cls, model: Any, job: int) -> io.NodeOutput:
            worker.serve(model, job)
            return io.NodeOutput()

    return CLEARClusterRank
