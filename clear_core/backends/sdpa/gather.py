"""Copies of tokens side by side, part by part, in one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GatherBuffer:
    """The keys, or the values, of one part after another: [batch * tiles, heads, tokens, head_dim].

    Most parts of a group have the same shape and use the same memory. The shared tokens, which are the same for all
    tiles, then stay in it and are copied once for each slice of heads: with 512 text tokens and r = 8 they are two
    fifths of what is gathered.
    """

    def __init__(self, shared: Tensor) -> None:
        """shared: tokens that all tiles see, [batch, heads, tokens, head_dim]."""
        self._shared = shared
        self._buffer: Tensor | None = None
        self._heads: slice | None = None

    def fill(self, heads: slice, tiles: tuple[int, int], boxes: Sequence[Tensor]) -> Tensor:
        """One part: some heads of the shared tokens, then the boxes of each tile. Valid until the next call.

        tiles: rows and columns of tiles.
        boxes: for each key grid [batch, heads, tile rows, tile columns, rows, columns, head_dim], of these heads.
        """
        shared = self._shared[:, heads]
        batch, count, first, channels = shared.shape
        keys = first + sum(box.shape[4] * box.shape[5] for box in boxes)
        shape = (batch, *tiles, count, keys, channels)
        if self._buffer is None or self._buffer.shape != shape or _records_gradients(shared, *boxes):
            self._buffer = self._heads = None  # gone before the next one is made
            self._buffer = shared.new_empty(shape)
        if self._heads != heads:
            self._buffer[..., :first, :] = shared[:, None, None]
            self._heads = heads
        for box in boxes:
            stop = first + box.shape[4] * box.shape[5]
            self._buffer[..., first:stop, :].unflatten(4, box.shape[4:6]).copy_(box.movedim(1, 3))
            first = stop
        return self._buffer.flatten(0, 2)


def _records_gradients(*tensors: Tensor) -> bool:
    """Whether the backward pass will need what was gathered."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
