"""Layers that never come to CLEAR, and the pack that has them.

Another pack may swap the model's class or forward, call its blocks without ComfyUI's options, or take the attention
hook for some layers. The APPLY_MODEL wrapper runs all the same: each call of the model keeps a tally, which the hooks
further in fill, and what is missing from it afterwards went elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..attention_call import BANDS, KEY, OVERRIDE
from ..node_text import origin_of
from ..overrides import block_owner, foreign, forward_owner
from ..run_log import RunLog

TALLY = KEY + "_tally"
"""In transformer_options: the tally of one call of the model."""


class Tally:
    """What CLEAR's hooks saw of one call of the model. Threads of one call may share it."""

    def __init__(self) -> None:
        self._forwards = 0
        self._layers: set[tuple[str, int] | None] = set()
        self._calls = 0
        self._in_charge = ""
        self._owner = ""

    def forward(self, transformer: Any, options: Mapping[str, Any], own: Any) -> str:
        """The model's forward is about to run through the wrappers. own: CLEAR's override.

        Returns who will be called for its attention; "" for CLEAR.
        """
        override = options.get(OVERRIDE)
        self._forwards += 1
        self._in_charge = "" if override is own else origin_of(override)
        self._owner = forward_owner(transformer)  # some replace it inside their own wrapper only
        return self._in_charge

    def layer(self, options: Mapping[str, Any]) -> None:
        """A layer came to CLEAR's override; in bands it comes once for each band."""
        self._calls += 1
        named = "block_type" in options and "block_index" in options
        self._layers.add((options["block_type"], options["block_index"]) if named else None)

    def report(self, run_log: RunLog, transformer: Any, options: Mapping[str, Any]) -> None:
        """After the call: tell the run log of layers that are missing, or whose forward it was."""
        model = getattr(transformer, "_orig_mod", transformer)
        blocks = [("double", index) for index in range(len(model.double_blocks))]
        blocks += [("single", index) for index in range(len(model.single_blocks))]
        missing = [block for block in blocks if block not in self._layers]
        if None in self._layers:  # a forward that does not name its blocks
            missing = missing[: len(blocks) - self._calls]
        if not missing:
            if self._owner:
                run_log.note(f"the model has the forward of {self._owner}; every layer came to CLEAR", warn=False)
            return
        # A cache answers for whole forwards, with what an earlier forward of the same run came to.
        cached = not self._calls and run_log.used and (self._forwards or not forward_owner(model))
        if (cached and not self._in_charge) or _replaced_by_host(missing, options):
            return
        run_log.missed(self._reason(model, options), len(missing), certain=bool(self._calls) or not self._in_charge)

    def _reason(self, model: Any, options: Mapping[str, Any]) -> str:
        owner = self._owner or forward_owner(model)
        if not self._forwards:
            wrappers = (options.get("wrappers") or {}).get(WrappersMP.DIFFUSION_MODEL) or {}
            too = "; CLEAR Multi-GPU cuts nothing either" if BANDS in wrappers else ""
            if owner:
                return (
                    f"the model has the forward of {owner}, which passes by ComfyUI's hooks{too}. Remove the node that "
                    "puts it there, or connect a model without it"
                )
            other = foreign(function for found in wrappers.values() for function in found) or "another node"
            return f"{other} answers in the place of the model's forward{too}. Remove its node"
        if self._in_charge:
            return (
                f"another node's attention ({self._in_charge}) computed them. Put Apply CLEAR Attention after that node"
            )
        if owner and not self._calls:
            return (
                f"the model has the forward of {owner}, which gives the model's blocks no transformer_options, so no "
                "attention hook runs. Update that pack or remove its node; the order of the nodes does not matter"
            )
        other = owner or block_owner(model) or _replacing(options) or "another node"
        return f"{other} skipped these blocks or computed them without ComfyUI's attention hook"


def _replacing(options: Mapping[str, Any]) -> str:
    """The packs that replace blocks of the model."""
    return foreign(_replaced(options).values())


def _replaced_by_host(blocks: Iterable[tuple[str, int]], options: Mapping[str, Any]) -> bool:
    """Whether ComfyUI's own nodes replace all these blocks, such as those that skip layers for guidance."""
    replaced = _replaced(options)
    found = [replaced.get((f"{kind}_block", index)) for kind, index in blocks]
    return None not in found and not foreign(found)


def _replaced(options: Mapping[str, Any]) -> Mapping[tuple[str, int], Any]:
    return (options.get("patches_replace") or {}).get("dit") or {}
