"""The attention of one query: its row of the softmax, over all keys and through CLEAR's window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...clear_core.layout import TokenLayout
from ...clear_core.pattern import LocalPattern
from ...clear_core.scale import softmax_scale
from ..options.clear import ClearSettings


@dataclass(frozen=True, slots=True)
class AttentionMass:
    """How one query's attention is divided; the sum is 1. pooled: down-sampled tokens."""

    text: float
    image: float
    references: float
    pooled: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class AttentionRow:
    """One query's attention, on the CPU, the mean over heads. row, column: the query's image token.

    dense: float32 [tokens], text, image, references; the sum is 1.
    local: float32 [down-sampled + tokens], 0 outside the window; the sum is 1.
    visible: bool [tokens], the keys that the query attends to with CLEAR.
    """

    layout: TokenLayout
    row: int
    column: int
    dense: Tensor
    local: Tensor
    visible: Tensor

    @property
    def image(self) -> slice:
        return slice(self.layout.text, self.layout.text + self.layout.image.tokens)

    @property
    def windowed(self) -> Tensor:
        """`local` without the down-sampled tokens: [tokens]."""
        return self.local[len(self.local) - self.layout.tokens :]

    @property
    def dense_mass(self) -> AttentionMass:
        return self._mass(self.dense)

    @property
    def local_mass(self) -> AttentionMass:
        return self._mass(self.windowed, float(self.local[: len(self.local) - self.layout.tokens].sum()))

    @property
    def inside(self) -> float:
        """Of the dense attention to the image, the share that lies in the window."""
        image = self.dense[self.image]
        return float(image[self.visible[self.image]].sum() / image.sum())

    @property
    def window_tokens(self) -> int:
        """Image tokens in the window, clipped at the border."""
        return int(self.visible[self.image].sum())

    def _mass(self, weights: Tensor, pooled: float = 0.0) -> AttentionMass:
        text, image, references = (
            float(part.sum()) for part in (weights[: self.image.start], weights[self.image], weights[self.image.stop :])
        )
        return AttentionMass(text, image, references, pooled)


def attention_row(
    query: Tensor,
    key: Tensor,
    layout: TokenLayout,
    position: tuple[int, int],
    settings: ClearSettings,
    *,
    bias: Tensor | None = None,
    pooled: Tensor | None = None,
) -> AttentionRow:
    """The attention of the image token at `position` (row, column), as the mean over heads.

    query: [heads, head_dim], key: [heads, tokens, head_dim], after RoPE. Only this row is computed, head by head.
    settings: their window, scale and view of references count.
    bias: what the host's mask adds to the scores, [heads or 1, tokens].
    pooled: down-sampled keys, [heads, cells, head_dim].
    """
    count = 0 if pooled is None else pooled.shape[1]
    pattern = LocalPattern.whole(layout, settings.window, references=settings.references, pooled=count)
    index = layout.text + position[0] * layout.image.width + position[1]
    visible = pattern.mask(key.device, slice(index, index + 1))[0]
    heads, head_dim = query.shape
    proportional = settings.proportional_at(layout.image)
    scale, local_scale = (
        softmax_scale(head_dim, layout.tokens, proportional=proportional, down_factor=factor)
        for factor in (1, settings.down_factor)
    )
    dense = torch.zeros(layout.tokens, device=key.device)
    local = torch.zeros(count + layout.tokens, device=key.device)
    for head in range(heads):
        added = 0.0 if bias is None else bias[head if len(bias) > 1 else 0].float()
        scores = key[head].float() @ query[head].float()
        dense += (scores * scale + added).softmax(0)
        seen = scores * local_scale + added
        if pooled is not None:
            seen = torch.cat((pooled[head].float() @ query[head].float() * local_scale, seen))
        local += seen.masked_fill_(~visible, -torch.inf).softmax(0)
    return AttentionRow(layout, *position, dense.cpu() / heads, local.cpu() / heads, visible[count:].cpu())
