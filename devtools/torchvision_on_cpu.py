"""Lets torchvision's CUDA build be imported beside a CPU build of torch.

torchvision's Python half describes two operators whose C++ half only loads with CUDA; without them its
import ends in an error. `dev.py` puts this file beside torchvision, where the interpreter reads it at
every start, so it does nothing until something imports torchvision: no start pays for torch unasked.
"""

from __future__ import annotations

import sys


class _DefineOperatorsFirst:
    """A finder that finds nothing, but sees that torchvision is about to be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


sys.meta_path.insert(0, _DefineOperatorsFirst())
