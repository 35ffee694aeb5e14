"""A layer whose attention is local, as that of image models is."""

from __future__ import annotations

import torch
from torch import Tensor

from clear_core.layout import Grid, TokenLayout

HEADS, HEAD_DIM = 2, 16
LAYOUT = TokenLayout(5, Grid(12, 20))


def local_layer(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys as RoPE makes them: products fall with the distance, in head 1 more slowly than in head 0."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    place = torch.stack((y, x), dim=2).flatten(0, 1)
    heads = []
    for speed in (1.0, 0.2):
        turned = place[:, :, None] * speed * torch.tensor([1.0, 0.6, 0.35, 0.2])
        heads.append(torch.cat((turned.cos(), turned.sin()), dim=2).flatten(1))
    image = 1.6 * torch.stack(heads).expand(batch, -1, -1, -1)
    text = 0.3 * torch.randn(batch, HEADS, LAYOUT.text, HEAD_DIM, generator=generator)
    both = torch.cat((text, image), dim=2)
    noise = 0.1 * torch.randn(2, *both.shape, generator=generator)
    return both + noise[0], both + noise[1], torch.randn(both.shape, generator=generator)
