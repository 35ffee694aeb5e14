"""Where one query looks: its row of the softmax, over all keys and through CLEAR's window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...clear_core.layout import TokenLayout
from ...clear_core.pattern import LocalPattern
from ...clear_core.scale import softmax_scale
from ..options.clear import ClearSettings


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of one query's attention, which add up to 1. coarse: the down-sampled view of the image."""

    text: float
    image: float
    references: float
    coarse: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One query's attention. row, column: its token.

    dense: float32 [tokens], text, image, references; the sum is 1.
    local: float32 [down-sampled + tokens], 0 outside the window; the sum is 1.
    visible: bool [tokens], what CLEAR's query sees.
    All on the CPU, the mean of the heads that were asked for.
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
        """What CLEAR's query gives to the tokens, without the down-sampled ones: [tokens]."""
        return self.local[len(self.local) - self.layout.tokens :]

    @property
    def dense_shares(self) -> Shares:
        return self._shares(self.dense)

    @property
    def local_shares(self) -> Shares:
        return self._shares(self.windowed, float(self.local[: len(self.local) - self.layout.tokens].sum()))

    @property
    def inside(self) -> float:
        """Of what the dense query gives to the image, the share that lies in the window."""
        image = self.dense[self.image]
        return float(image[self.visible[self.image]].sum() / image.sum())

    @property
    def window_tokens(self) -> int:
        """Tokens of the image in the window, which the image's border may cut."""
        return int(self.visible[self.image].sum())

    def _shares(self, weights: Tensor, coarse: float = 0.0) -> Shares:
        text, image, references = (
            float(part.sum()) for part in (weights[: self.image.start], weights[self.image], weights[self.image.stop :])
        )
        return Shares(text, image, references, coarse)


def look(
    query: Tensor,
    key: Tensor,
    layout: TokenLayout,
    place: tuple[int, int],
    settings: ClearSettings,
    *,
    bias: Tensor | None = None,
    cells: Tensor | None = None,
) -> Look:
    """The attention of the image's token at `place` (row, column), as the mean over heads.

    query: [heads, head_dim], key: [heads, tokens, head_dim], after RoPE. Only this row is computed, head by head.
    settings: their window, scale and view of references count.
    bias: what the host's mask adds to the scores, [heads or 1, tokens]. cells: down-sampled keys, [heads, cells, dim].
    """
    count = 0 if cells is None else cells.shape[1]
    pattern = LocalPattern.whole(layout, settings.window, references=settings.references, pooled=count)
    index = layout.text + place[0] * layout.image.width + place[1]
    visible = pattern.mask(key.device, slice(index, index + 1))[0]
    heads, head_dim = query.shape
    scale, local_scale = (
        softmax_scale(head_dim, layout.tokens, proportional=settings.proportional, down_factor=factor)
        for factor in (1, settings.down_factor)
    )
    dense = torch.zeros(layout.tokens, device=key.device)
    local = torch.zeros(count + layout.tokens, device=key.device)
    for head in range(heads):
        added = 0.0 if bias is None else bias[head if len(bias) > 1 else 0].float()
        scores = key[head].float() @ query[head].float()
        dense += (scores * scale + added).softmax(0)
        seen = scores * local_scale + added
        if cells is not None:
            seen = torch.cat((cells[head].float() @ query[head].float() * local_scale, seen))
        local += seen.masked_fill_(~visible, -torch.inf).softmax(0)
    return Look(layout, *place, dense.cpu() / heads, local.cpu() / heads, visible[count:].cpu())
