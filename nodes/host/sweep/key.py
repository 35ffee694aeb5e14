"""What a sampled image and its time depend on, as a digest: a row is taken over only where it is the same."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ....clear_core.weights import ClearWeights
from ...compat import pack_version
from ...options.sweep import Cell
from ..files import file_fingerprint
from ..machine import device_title
from ..upstream import upstream

_SOCKETS = ("guider", "sampler", "sigmas", "latent_image", "vae")


@dataclass(frozen=True, slots=True)
class Identity:
    """Of a node's inputs in a prompt. common: of every image. weights: of those that are connected, None for none."""

    common: str
    weights: Any

    @classmethod
    def of(cls, dynprompt: Any, node_id: str | None, device: torch.device, weights: ClearWeights | None) -> Identity:
        """The nodes before the inputs, with their values, the device and this pack's version.

        Where the host does not say what comes before an input, the identity is of this run alone.
        """
        parts = [upstream(dynprompt, node_id, name) for name in _SOCKETS]
        connected = None
        if weights is not None:
            stamp = weights.stamp
            connected = [upstream(dynprompt, node_id, "weights"), stamp and [stamp.size, stamp.modified]]
        if not all(parts) or connected == ["", None]:
            parts.append(uuid.uuid4().hex)
        return cls(json.dumps([pack_version(), device_title(device), *parts]), connected)

    def key(self, image: Any, seed: int, cell: Cell | None) -> str:
        """Of one image. image: what tells it from others of the batch, for JSON. cell: None for the dense image."""
        setting = None
        if cell is not None:
            file = [cell.weights, file_fingerprint(cell.weights)] if cell.weights is not None else self.weights
            setting = [file, asdict(cell.inputs)]
        text = json.dumps([self.common, image, seed, setting], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
