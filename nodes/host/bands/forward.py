"""The nodes' side of bands: wrappers that run a MODEL's forwards in bands, and what the node shows about it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.run import BandedForward
from ....clear_core.bands.transfer import Transfers
from ....clear_core.flux import CHROMA
from ...options.bands import BandSettings
from ...options.clear import ClearSettings
from ..attention_call import BANDS, FRAME, SETTINGS, Frame
from ..flux_model import transformer_of
from ..forward_args import ForwardArgs
from ..node_text import node_text_sender
from ..run_record import note_run
from .cut import CutForward
from .last import last_wrapper
from .machines import Machines, OtherLane, SharedForward, work_of
from .memory import plan_that_fits, replica_needs, shape_for_estimate
from .progress import BlockDone, StartProgress, band_progress
from .replicas import Lane, Replicas, preflight
from .weights import BlockWeights

_log = logging.getLogger("clear-attention")


def apply_bands(
    model: Any,
    settings: BandSettings,
    *,
    node_id: str | None,
    show: Callable[[str], None] | None = None,
    machines: Machines | None = None,
) -> Any:
    """A clone of `model` whose forwards run in bands; the last node that asks for bands decides.

    node_id: the node that shows the progress. show: takes the text about the bands in place of that node. machines:
    others that take part.
    """
    family = transformer_of(model)[1]
    if family == CHROMA:
        raise ValueError(
            f"CLEAR Multi-GPU works on FLUX models; this one is {family}, whose forward cannot be cut. Remove the node."
        )
    patched = model.clone()
    replicas = Replicas(settings.devices)
    bands = _Bands(settings, replicas, _once(show or node_text_sender(node_id)), band_progress(node_id), machines)
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.PREPARE_SAMPLING):
        patched.remove_wrappers_with_key(kind, BANDS)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BANDS, last_wrapper(bands.run))
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, BANDS, _prepare_wrapper(settings, replicas, machines))
    return patched


def sample_in_bands(
    noise: Any,
    guider: Any,
    sampler: Any,
    sigmas: Any,
    latent: Any,
    settings: BandSettings,
    *,
    node_id: str | None,
    machines: Machines | None = None,
) -> Any:
    """What the core's SamplerCustomAdvanced gives for a guider like this one over a model that runs in bands.

    node_id, machines: as for `apply_bands`.
    """
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    banded = copy.copy(guider)
    banded.model_patcher = apply_bands(guider.model_patcher, settings, node_id=node_id, machines=machines)
    banded.model_options = banded.model_patcher.model_options
    return SamplerCustomAdvanced.execute(noise, banded, sampler, sigmas, latent)


def _prepare_wrapper(settings: BandSettings, replicas: Replicas, machines: Machines | None) -> Callable[..., Any]:
    def clear_prepare(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        if machines is not None:
            machines.prepare(model)
        # Before the host loads the model: it may have to unload it to copy it, and a copy is made in main memory.
        made = replicas.prepare(model)
        flux, home = model.get_model_object("diffusion_model"), torch.device(model.load_device)
        lanes = replicas.lanes(flux, home)
        out = executor(model, shape_for_estimate(model, noise_shape, settings, lanes), conds, *args, **kwargs)
        if made:
            needs = replica_needs(model, noise_shape, settings, lanes)
            for device, replica in made.items():
                need = needs.get(device, 0)
                # As the host does it: room for two latents where there is some, for one in any case.
                comfy.model_management.load_models_gpu(
                    [replica], memory_required=2 * need, minimum_memory_required=need
                )
            _log.info("CLEAR Multi-GPU: %s", preflight(lanes))
        return out

    return clear_prepare


@dataclass(frozen=True, slots=True, eq=False)
class _Bands:
    """How one node's MODEL runs. show: tells the node how a forward was cut. progress: None where nobody watches."""

    settings: BandSettings
    replicas: Replicas
    show: Callable[[str], None]
    progress: StartProgress | None
    machines: Machines | None = None
    transfers: Transfers = field(default_factory=Transfers)
    weights: BlockWeights = field(default_factory=BlockWeights)

    def run(self, executor: Any, given: ForwardArgs) -> Tensor:
        """One forward of the model."""
        clear: ClearSettings | None = given.options.get(SETTINGS)
        if clear is None:
            # Where the node itself could not tell: Apply may come after it. The host blames the sampler, which runs.
            self.show(NO_CLEAR)
            raise ValueError(NO_CLEAR)
        flux, home = executor.class_obj, given.x.device
        frame: Frame = given.options[FRAME]  # Apply CLEAR Attention's own wrapper has run: this one goes last
        lanes = self.replicas.lanes(flux, home)
        if self.machines is not None:
            out = self._with_machines(self.machines, executor, given, clear, lanes)
            if out is not None:
                return out
        plan = self._plan(flux, given, clear, lanes)
        if len(plan.bands) == 1:
            return given.call(executor)
        note_run(bands=len(plan.bands), devices=[str(lane.device) for lane in lanes[: plan.lane_count]])
        progress = None if self.progress is None else self.progress(_blocks(flux), plan, ())
        self.replicas.follow_hooks()
        devices = [lane.device for lane in lanes]
        banded = BandedForward(plan, devices, self.settings.text_merge, transfers=self.transfers)
        forward = CutForward(executor, given, frame, lanes, self.weights)
        # Workers that take turns are beyond torch.compile; it would try, and give up on each of them.
        run: Any = torch.compiler.disable(forward.run)
        out = run(banded, progress and progress.block_done)
        if progress is not None:
            progress.finished()
        self.show(self._text(banded, lanes, self.replicas.missing(home)))
        return out

    def _with_machines(
        self, machines: Machines, executor: Any, given: ForwardArgs, clear: ClearSettings, lanes: Sequence[Lane]
    ) -> Tensor | None:
        """One forward with other machines; None where none takes part."""
        flux, frame = executor.class_obj, given.options[FRAME]
        self.replicas.follow_hooks()
        forward = CutForward(executor, given, frame, lanes, self.weights)

        def plan_of(others: Sequence[OtherLane]) -> BandPlan:
            return self._plan(flux, given, clear, lanes, others)

        def compute(plan: BandPlan, links: Links, block_done: BlockDone | None) -> Tensor:
            check = comfy.model_management.throw_exception_if_processing_interrupted
            return forward.linked_rows(plan, links, self.settings.text_merge, self.transfers, check, block_done)

        work = work_of(flux, frame, given, clear.band_window(active=frame.active))
        watched = None if self.progress is None else partial(self.progress, _blocks(flux))
        parts = machines.forward(
            SharedForward(given, lanes, work, plan_of, self.settings.text_merge, compute, watched, active=frame.active)
        )
        self.show(machines.text)
        return None if parts is None else forward.cropped(parts)

    def _plan(
        self,
        flux: Any,
        given: ForwardArgs,
        clear: ClearSettings,
        lanes: Sequence[Lane],
        others: Sequence[OtherLane] = (),
    ) -> BandPlan:
        """As many bands as the node was set to, or as few as fit into the lanes' memory."""
        frame: Frame = given.options[FRAME]
        window, factor = clear.band_window(active=frame.active), clear.down_factor if frame.active else 1
        shares = [lane.share for lane in (*lanes, *others)]

        def plan_of(count: int) -> BandPlan:
            return BandPlan.cut(frame.image, count, window, down_factor=factor, shares=shares)

        count = self.settings.count(frame.image)
        if count:
            return plan_of(count)
        replicated = given.context.shape[1] + sum(grid.tokens for grid in frame.references)
        there = [lane.memory for lane in others]
        return plan_that_fits(plan_of, lanes, there, flux, given.x.element_size(), replicated, given.x.shape[0])

    def _text(self, banded: BandedForward, lanes: Sequence[Lane], missing: Sequence[str]) -> str:
        """What the node shows."""
        plan = banded.plan
        heights = sorted({len(rows) for rows in plan.bands})
        rows = f"{heights[0]}" if len(heights) == 1 else f"{heights[0]} to {heights[-1]}"
        devices = ", ".join(str(lane.device) for lane in lanes[: plan.lane_count])
        lines = [f"{len(plan.bands)} bands of {rows} rows of tokens on {devices}"]
        if any(_scales_its_input(module) for lane in lanes[:1] for module in lane.flux.modules()):
            lines.append(_SCALED_BY_BAND)
        if missing:
            lines.append(f"not in this machine: {', '.join(missing)}")
        if plan.lane_count > 1:
            sent, merge = banded.traffic.total / 2**20, self.settings.text_merge
            lines.append(f"{sent:.1f} MB exchanged between devices in each step; text_merge: {merge}")
        return "\n".join(lines)


NO_CLEAR = "CLEAR Multi-GPU works on a model with CLEAR: connect Apply CLEAR Attention before it."

_SCALED_BY_BAND = (
    "layers that quantise their input take its scale from each band: the image differs from the one without bands by "
    "the format's rounding"
)


def _blocks(flux: Any) -> int:
    return len(flux.double_blocks) + len(flux.single_blocks)


def _scales_its_input(layer: Any) -> bool:
    """Whether a layer quantises its input by the largest value that it finds there (newer hosts' mixed precision)."""
    quantised = getattr(layer, "layout_type", None) is not None and not getattr(layer, "_full_precision_mm", True)
    return quantised and getattr(layer, "input_scale", None) is None


def _once(show: Callable[[str], None]) -> Callable[[str], None]:
    """Shows a text only when it differs from the last one."""
    shown: list[str] = []

    def show_new(text: str) -> None:
        if shown != [text]:
            shown[:] = [text]
            show(text)

    return show_new
