"""One rank's rows of a forward that another machine drives, with a MODEL of this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.transfer import Transfers
from ....clear_core.bands.workers import TextMerge
from ....clear_core.cluster.transport import ForwardLinks
from ..attention_call import ACTIVE, BANDS, FRAME
from ..bands.cut import CutForward
from ..bands.last import last_wrapper
from ..bands.memory import rooms
from ..bands.progress import BlockDone
from ..bands.replicas import Replicas
from ..bands.weights import BlockWeights
from ..forward_args import ForwardArgs
from .model import arguments_of, digest


@dataclass(eq=False)
class RankBands:
    """What is kept between forwards, and the forward that is under way."""

    replicas: Replicas = field(default_factory=lambda: Replicas(()))
    transfers: Transfers = field(default_factory=Transfers)
    weights: BlockWeights = field(default_factory=BlockWeights)
    _now: tuple[BandPlan, ForwardLinks, TextMerge, BlockDone] | None = None
    _rows: Tensor | None = None

    def rooms(self, model: Any) -> tuple[int, ...]:
        """Bytes that a forward may take on each card beside the weights of a MODEL; 0 where nothing is to be saved."""
        flux = model.get_model_object("diffusion_model")
        return rooms(model, self.replicas.lanes(flux, torch.device(model.load_device)))

    def rows(
        self,
        model: Any,
        given: Mapping[str, Tensor],
        plan: BandPlan,
        links: ForwardLinks,
        text_merge: TextMerge,
        block_done: BlockDone,
        *,
        active: bool,
    ) -> Tensor:
        """This rank's rows of the model's output, [batch, channels, rows * patch size, padded width], in main memory.

        model: `serving`'s. given: as `model.tensors_of` names them.
        """
        home = torch.device(model.load_device)
        made = self.replicas.prepare(model)
        shape = list(given["x"].shape)
        shape[2] = max(1, shape[2] * len(links.lanes) // plan.lane_count)
        comfy.model_management.load_models_gpu(
            [model, *made.values()], memory_required=model.model.memory_required(shape)
        )
        options = {**model.model_options, "transformer_options": dict(model.model_options["transformer_options"])}
        comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
        arguments = {name: _on(home, value) for name, value in arguments_of(given).items()}
        arguments["transformer_options"] = {**options["transformer_options"], ACTIVE: active}
        self._now, self._rows = (plan, links, text_merge, block_done), None
        try:
            with torch.inference_mode():
                model.model.diffusion_model(**arguments)
            assert self._rows is not None
            return self._rows.cpu()
        finally:
            self._now = self._rows = None

    def compute(self, executor: Any, given: ForwardArgs) -> Tensor:
        """In the model's wrapper: keeps this rank's rows; returns something of the output's shape."""
        assert self._now is not None
        plan, links, text_merge, block_done = self._now
        flux = executor.class_obj
        lanes = self.replicas.lanes(flux, given.x.device)[: len(links.lanes)]
        forward = CutForward(executor, given, given.options[FRAME], lanes, self.weights)
        check = comfy.model_management.throw_exception_if_processing_interrupted
        self._rows = forward.linked_rows(plan, links, text_merge, self.transfers, check, block_done)
        return given.x


def serving(model: Any, bands: RankBands) -> tuple[Any, str]:
    """A clone of a MODEL whose forwards give rows to `bands`, and the digest of the MODEL before that."""
    known = digest(model)
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, BANDS)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BANDS, last_wrapper(bands.compute))
    return patched, known


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_on(device, each) for each in value]
    return {name: _on(device, each) for name, each in value.items()} if isinstance(value, dict) else value
