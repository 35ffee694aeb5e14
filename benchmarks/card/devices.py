"""Copies between cards, if there are several."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..timing import medians
from .scale import Scale
from .supervise import Row

_BYTES = 2**28


def rows(scale: Scale) -> Iterator[Row]:
    count = 1 if scale.rehearsal else torch.cuda.device_count()
    if count == 1:
        yield {"left out": "there is one device"}
    for source in range(count):
        for target in range(count):
            if source == target:
                continue
            data = torch.empty(_BYTES, dtype=torch.uint8, device=torch.device("cuda", source))
            place = torch.empty(_BYTES, dtype=torch.uint8, device=torch.device("cuda", target))
            seconds = medians({"copy": lambda data=data, place=place: place.copy_(data)}, place.device, scale.repeats)
            yield {
                "from": source,
                "to": target,
                "peer access": torch.cuda.can_device_access_peer(target, source),
                "GB/s": _BYTES / seconds["copy"] / 1e9,
            }
