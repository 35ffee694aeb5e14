"""A FLUX ControlNet whose own attention is a window: at 4K its dense attention would cost more than the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.controlnet import ControlNet
from comfy.ldm.flux.controlnet import ControlNetFlux
from torch import Tensor

from ...options.clear import ClearSettings
from ..attention_call import FRAME, OVERRIDE, Frame, frame_of
from ..node_text import node_text_sender
from ..run_log import StandingRunLog
from .hooks import attention_override


def window_control(control_net: Any, settings: ClearSettings, *, node_id: str | None) -> tuple[Any, StandingRunLog]:
    """A copy of a CONTROL_NET for FLUX.1 with a window; the one that came in stays as it was.

    Raises ValueError for any other CONTROL_NET, with what to do.
    """
    model = getattr(control_net, "control_model", None)
    if isinstance(model, WindowedControl):
        raise ValueError("This ControlNet already has a window: remove one of the two CLEAR ControlNet nodes.")
    if not isinstance(control_net, ControlNet) or not isinstance(model, ControlNetFlux):
        raise ValueError(
            "CLEAR ControlNet works on ControlNets for FLUX.1 (InstantX, Shakker, XLabs and the like); this one is "
            f"{type(model if model is not None else control_net).__name__}. Connect it without this node."
        )
    headline = f"radius {settings.window.radius}, window only: this ControlNet was trained with dense attention"
    run_log = StandingRunLog(headline, node_text_sender(node_id))
    copy = control_net.copy()
    # The host loads and frees the module by its own patcher, which stays; only the call goes through ours.
    copy.control_model = WindowedControl(model, settings, run_log)
    run_log.announce()
    return copy, run_log


class WindowedControl(torch.nn.Module):
    """Calls the host's ControlNet with what its blocks need for the window.

    The blocks of a ControlNet get no `transformer_options`, where the host looks for an override; so for the time
    of a call they are given some. The positions, which the host counts in the ControlNet's own dtype (bfloat16
    merges neighbours beyond 256 tokens), are put right.
    """

    def __init__(self, model: ControlNetFlux, settings: ClearSettings, run_log: StandingRunLog) -> None:
        super().__init__()
        self.model = model
        self._override = attention_override(settings, None, run_log, None)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[return-value]  # the host's class declares none

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with self._hooked(frame_of(self.model, x, None, {})):
            return self.model(x, *args, **kwargs)

    @contextmanager
    def _hooked(self, frame: Frame) -> Iterator[None]:
        handles = [self.model.pe_embedder.register_forward_pre_hook(_exact_positions(frame))]
        for kind, blocks in (("double", self.model.double_blocks), ("single", self.model.single_blocks)):
            for index, block in enumerate(blocks):
                options = {OVERRIDE: self._override, FRAME: frame, "block_type": kind, "block_index": index}
                handles.append(block.register_forward_pre_hook(_given(options), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _given(options: dict[str, Any]) -> Any:
    def give(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "transformer_options": options}

    return give


def _exact_positions(frame: Frame) -> Any:
    def place(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        ids = args[0].float()
        height, width = frame.image.height, frame.image.width
        cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(ids)
        text = ids.shape[1] - frame.image.tokens
        return (torch.cat((ids[:, :text], torch.nn.functional.pad(cells, (1, 0)).expand(len(ids), -1, -1)), dim=1),)

    return place
