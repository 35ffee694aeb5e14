"""The record of one sampling run, for the metadata of the images that are saved.

    node                    id of the node that sampled
    weights                 {"file", "sha256"} or None; sha256 is None where the file has changed or is slow to read
    radius, down_factor, strength, ntk_factor, proportional_attention, references, blocks, start_percent, end_percent,
    backend                 settings as used, under the names of the inputs of Apply CLEAR Attention; 0 is resolved
    window                  layer calls through the window, by backend, layout and reason, as the node's text has them
    full_attention          layer calls with full attention, by reason
    not_used                layer calls that never came to CLEAR, by reason
    full_attention_share    of all layer calls, 0 to 1
    bands, devices          1 and ComfyUI's own device without CLEAR Multi-GPU
    width, height           of the image in pixels
    batch, steps            images, and sampling steps of this run

    preset                  of CLEAR 4K / 8K, where that node applied CLEAR

Whatever else runs inside may add to it with `note_run`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextvars import ContextVar
from threading import Thread
from typing import Any, Final

import torch
from torch import Tensor

from ...clear_core.cache import BoundedCache
from ...clear_core.file_stamp import FileStamp
from ...clear_core.flux import PIXELS_PER_TOKEN, token_grid
from ...clear_core.layout import Grid
from ...clear_core.weights import ClearWeights
from ..options.clear import REFERENCE_VIEWS, ClearSettings
from .metadata import RECORDS, Record
from .run_log import RunLog

_log = logging.getLogger("clear-attention")
_PATIENCE = 30.0  # seconds that the end of a run waits for the digest of the weights, which was begun with the run

_NOTES: ContextVar[Record | None] = ContextVar("clear_run_notes", default=None)


def _note_run(**facts: Any) -> None:
    notes = _NOTES.get()
    if notes is not None:
        notes.update(facts)


note_run: Any = torch.compiler.disable(_note_run)  # torch.compile cannot trace a ContextVar
"""Put facts, ready for JSON, into the record of the sampling run that is running here; later ones replace earlier.

Without a run, or in another thread than its own, nothing happens.
"""


def record_wrapper(
    settings: ClearSettings, weights: ClearWeights | None, run_log: RunLog, **facts: Any
) -> Callable[..., Any]:
    """An OUTER_SAMPLE wrapper, outside the run log's: it records runs that finish. facts: more of the node's own."""

    def clear_record(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        stamp = weights.stamp if weights is not None else None
        digest = _DIGESTS.start(stamp) if stamp is not None else None
        notes: Record = {}
        token = _NOTES.set(notes)
        try:
            out = executor(noise, *args, **kwargs)
        finally:
            _NOTES.reset(token)
        try:
            sigmas = kwargs["sigmas"] if "sigmas" in kwargs else args[2]
            ran = _run_facts(executor.class_obj.model_patcher, noise, len(sigmas) - 1)
            file = {"file": weights.name, "sha256": _wait_for(digest)} if weights is not None else None
            used = settings_as_used(settings, token_grid(ran["width"], ran["height"]))
            RECORDS.add({"weights": file, **used, **_calls(run_log), **ran, **facts, **notes})
        except Exception:  # the image is there; what is said about it must not take it away
            _log.warning("CLEAR: this run is not in the metadata of its images", exc_info=True)
        return out

    return clear_record


def settings_as_used(settings: ClearSettings, image: Grid) -> Record:
    """By the names of the inputs of Apply CLEAR Attention, for an image of so many tokens; 0 is resolved."""
    views = {view: name for name, view in REFERENCE_VIEWS.items()}
    return {
        "radius": settings.window.radius,
        "down_factor": settings.down_factor,
        "strength": settings.strength,
        "ntk_factor": settings.ntk_at(image),
        "proportional_attention": settings.proportional_at(image),
        "references": views[settings.references],
        "blocks": settings.blocks.text,
        "start_percent": settings.start_percent,
        "end_percent": settings.end_percent,
        "backend": settings.backend,
    }


def _calls(run_log: RunLog) -> Record:
    window, full, missed = run_log.counts()
    dense = sum(full.values()) + sum(missed.values())
    calls = dense + sum(window.values())
    return {
        "window": window,
        "full_attention": full,
        "not_used": missed,
        "full_attention_share": round(dense / calls, 4) if calls else None,
    }


def _run_facts(patcher: Any, noise: Tensor, steps: int) -> Record:
    pixels = PIXELS_PER_TOKEN // patcher.get_model_object("diffusion_model").patch_size
    return {
        "bands": 1,
        "devices": [str(torch.device(patcher.load_device))],
        "width": noise.shape[-1] * pixels,
        "height": noise.shape[-2] * pixels,
        "batch": noise.shape[0],
        "steps": steps,
    }


def _wait_for(digest: Future[str | None] | None) -> str | None:
    try:
        return digest.result(_PATIENCE) if digest is not None else None
    except FutureTimeout:
        return None


class _Digests:
    """The SHA-256 of files, each computed once, in the background."""

    def __init__(self) -> None:
        self._known: BoundedCache[FileStamp, Future[str | None]] = BoundedCache(16)

    def start(self, stamp: FileStamp) -> Future[str | None]:
        return self._known.get(stamp, lambda: _in_background(stamp))


def _in_background(stamp: FileStamp) -> Future[str | None]:
    future: Future[str | None] = Future()
    Thread(target=lambda: future.set_result(stamp.sha256()), daemon=True, name="clear-digest").start()
    return future


_DIGESTS: Final = _Digests()
