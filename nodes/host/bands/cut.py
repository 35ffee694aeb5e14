"""One forward of the host's FLUX, cut into bands: what goes into each worker's forward, and its output joined.

Each worker runs the host's own forward on its part of the latent. Nothing of it is copied here: blocks pause through
the host's block replacements, positions come through its `post_input` patches, attention through CLEAR's override.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import comfy.ldm.common_dit
import torch
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.run import BandedForward, Forwards
from ....clear_core.bands.transfer import Transfers
from ....clear_core.bands.workers import BandWorker, ReplicatedWorker, TextMerge, Worker
from ..attention_call import STEP, Frame
from ..forward_args import ForwardArgs
from ..node_text import origin_of
from .attend import BandStep
from .positions import Positions, after_post_input
from .progress import BlockDone
from .replicas import Lane
from .weights import BlockWeights

_TENSORS = ("x", "timestep", "context", "y", "guidance", "ref_latents")
"""The forward's arguments that are a tensor, or a list of them."""


class CutForward:
    """The arguments of one forward, to be cut by the plan that it is run with."""

    def __init__(
        self,
        executor: Any,
        given: ForwardArgs,
        frame: Frame,
        lanes: Sequence[Lane],
        weights: BlockWeights,
    ) -> None:
        """executor: of the model's forward. lanes: of this process, the first ones of its plan or those that the
        plan's links give it.

        Raises ValueError for patches of other nodes that a part of the image cannot have.
        """
        for kind, patches in (given.options.get("patches") or {}).items():
            if kind != "post_input" and patches:
                raise ValueError(
                    f"CLEAR cannot cut the image into bands under a patch of kind {kind!r} ({origin_of(patches[0])}). "
                    "Remove the node that brings it, or use one band."
                )
        self._original = executor.original
        self._flux = executor.class_obj
        self._frame = frame
        self._lanes = lanes
        self._weights = weights
        self._first = 0  # of this process's lanes
        self._mask: Tensor | None = given.get("attention_mask")
        self._masks: dict[torch.device, Tensor | None] = {}
        self._copies: dict[torch.device, ForwardArgs] = {}
        self._height, self._width = given.x.shape[-2:]
        patch = self._flux.patch_size
        x = comfy.ldm.common_dit.pad_to_patch_size(given.x, (patch, patch))
        self._given = given.replaced(x=x, attention_mask=None)

    def run(self, banded: BandedForward, block_done: BlockDone | None) -> Tensor:
        """The forward's output, as without bands: [batch, channels, height, width] on the input's device.

        block_done: told of each block that a band has finished.
        """
        return self.cropped([self.rows(banded, block_done)])

    def cropped(self, parts: Sequence[Tensor]) -> Tensor:
        """The output from rows of it that follow each other: [batch, channels, rows * patch size, padded width]."""
        out = torch.cat([part.to(self._given.x.device) for part in parts], dim=-2)
        return out[..., : self._height, : self._width]

    def linked_rows(
        self,
        plan: BandPlan,
        links: Links,
        text_merge: TextMerge,
        transfers: Transfers,
        check: Callable[[], None],
        block_done: BlockDone | None,
    ) -> Tensor:
        """`rows` of a forward whose other lanes are in other processes. check: may raise to stop."""
        devices = [torch.device("cpu")] * plan.lane_count
        devices[links.lanes.start : links.lanes.stop] = [lane.device for lane in self._lanes[: len(links.lanes)]]
        banded = BandedForward(plan, devices, text_merge, transfers=transfers, links=links, check=check)
        # Workers that take turns are beyond torch.compile; it would try, and give up on each of them.
        rows: Any = torch.compiler.disable(self.rows)
        return rows(banded, block_done)

    def rows(self, banded: BandedForward, block_done: BlockDone | None) -> Tensor:
        """The output's rows of this process's bands, on the input's device."""
        positions = Positions.of(self._flux, self._original, self._given)
        self._first = banded.lanes.start
        used = self._lanes[: len(banded.lanes)]
        lanes = [(lane.flux, lane.device) for lane in used]
        # Every worker of a device reads the same: one copy for each device, not one for each band.
        for device in {device for _, device in lanes}:
            self._masks[device] = _on(device, self._mask)
            moved = {name: _on(device, self._given.get(name)) for name in _TENSORS}
            self._copies[device] = self._given.replaced(**moved)
        with positions.embedded(lanes), self._weights.shared(lanes) as around_layer:
            parts = banded.run(
                Forwards(
                    partial(self._replicated, positions),
                    partial(self._band, positions, block_done),
                    lambda lane, layer: around_layer(lane - self._first, layer),
                )
            )
        # One copy for each device: its bands lie next to each other.
        joined = [torch.cat(list(own), dim=-2) for _, own in groupby(parts, key=lambda part: part.device)]
        return torch.cat([part.to(self._given.x.device) for part in joined], dim=-2)

    def _replicated(self, positions: Positions, worker: ReplicatedWorker) -> Tensor:
        """Text and references; one image token stands in for the image."""
        frame, patch, given = self._frame, self._flux.patch_size, self._copy(worker)
        start, references = frame.image.tokens, sum(grid.tokens for grid in frame.references)
        positions.take([slice(0, 1), slice(start, start + references)], given.x.device)
        # A real one: zeros would become NaN in layers that scale their input by its largest value.
        one_token = given.x[..., :patch, :patch]
        return self._call(worker, positions, given.replaced(x=one_token, control=None), None)

    def _band(self, positions: Positions, block_done: BlockDone | None, worker: BandWorker) -> Tensor:
        """Rows of the image; one text token stands in for the text, none for the references."""
        rows, width, patch = worker.rows, self._frame.image.width, self._flux.patch_size
        given, tokens = self._copy(worker), slice(rows.start * width, rows.stop * width)
        positions.take([tokens], given.x.device)
        band = given.replaced(
            x=given.x[..., rows.start * patch : rows.stop * patch, :],
            context=given.context[:, :1],
            ref_latents=None,
            control=_control_of(given.get("control"), tokens, given.x.device),
        )
        done = None if block_done is None else partial(block_done, worker.band)
        return self._call(worker, positions, band, done)

    def _copy(self, worker: Worker) -> ForwardArgs:
        """The complete forward's arguments on a worker's device; ControlNet residuals stay where they are."""
        return self._copies[self._lane(worker).device]

    def _lane(self, worker: Worker) -> Lane:
        return self._lanes[worker.lane - self._first]

    def _call(
        self,
        worker: ReplicatedWorker | BandWorker,
        positions: Positions,
        given: ForwardArgs,
        done: Callable[[], None] | None,
    ) -> Tensor:
        """Run the host's forward on a worker's lane. done: called after each block."""
        forward = getattr(self._lane(worker).flux, self._original.__name__)
        return given.replaced(transformer_options=self._options(worker, positions, done)).call(forward)

    def _options(
        self, worker: ReplicatedWorker | BandWorker, positions: Positions, done: Callable[[], None] | None
    ) -> dict[str, Any]:
        """The host's options for one worker: blocks that pause, positions of its own."""
        given = self._given.options
        replace = {kind: dict(found) for kind, found in (given.get("patches_replace") or {}).items()}
        blocks = replace.setdefault("dit", {})
        last: dict[str, Any] = {}
        for kind, modules in (("double_block", self._flux.double_blocks), ("single_block", self._flux.single_blocks)):
            for index in range(len(modules)):
                blocks[kind, index] = _pausing(worker, (kind, index), blocks.get((kind, index)), last, done)
        return {
            **after_post_input(given, positions.place),
            "patches_replace": replace,
            STEP: BandStep(worker, self._masks[self._lane(worker).device]),
        }


def _pausing(
    worker: Worker,
    block: tuple[str, int],
    other: Callable[..., Any] | None,
    last: dict[str, Any],
    done: Callable[[], None] | None,
) -> Callable[..., Any]:
    """A block replacement that lets other workers have their turn, then does what would have been done.

    other: the replacement that another node set. last: this worker's output of the block before, the same dict for
    all its blocks. done: called after the block.
    """

    def pausing_block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # The host has read the last block's output but still holds it: an image's worth of memory between the
        # double and the single blocks.
        last.clear()
        worker.at_block(block)
        out = extra["original_block"](args) if other is None else other(args, extra)
        last.update(out)
        if done is not None:
            done()
        return last

    return pausing_block


def _control_of(control: Any, tokens: slice, device: torch.device) -> Any:
    """ControlNet residuals, lists of [batch, image tokens, channels] or None, for some of the tokens."""
    if control is None:
        return None
    return {
        name: [None if residual is None else _on(device, residual[:, tokens]) for residual in residuals]
        for name, residuals in control.items()
    }


def _on(device: torch.device, given: Tensor | Sequence[Tensor] | None) -> Any:
    if given is None or isinstance(given, Tensor):
        return None if given is None else given.to(device)
    return [tensor.to(device) for tensor in given]
