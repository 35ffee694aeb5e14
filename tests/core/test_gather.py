"""What is gathered part by part in one buffer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.backends.sdpa.gather import GatherBuffer
from clear_core.call import AttentionCall
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

BATCH, HEADS, SHARED, DIM = 2, 4, 3, 5


def box(seed: int, rows: int, columns: int, heads: int) -> Tensor:
    """Boxes of 2 x 3 tokens for some tiles."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, heads, rows, columns, 2, 3, DIM, generator=generator)


def expected(shared: Tensor, boxes: list[Tensor]) -> Tensor:
    """Tile by tile."""
    batch, heads, rows, columns = boxes[0].shape[:4]
    tiles = []
    for b in range(batch):
        for y in range(rows):
            for x in range(columns):
                tiles.append(torch.cat((shared[b], *(each[b, :, y, x].flatten(1, 2) for each in boxes)), dim=1))
    assert heads == shared.shape[1]
    return torch.stack(tiles)


def test_parts_of_any_shape_and_heads_follow_each_other() -> None:
    shared = torch.randn(BATCH, HEADS, SHARED, DIM, generator=torch.Generator().manual_seed(0))
    buffer = GatherBuffer(shared)
    parts = [(0, 2, 2, 3), (0, 2, 2, 3), (0, 2, 1, 3), (2, 4, 1, 3), (2, 4, 2, 3), (3, 4, 2, 3), (0, 2, 2, 3)]
    for seed, (first, stop, rows, columns) in enumerate(parts):
        boxes = [box(seed, rows, columns, stop - first), box(seed + 100, rows, columns, stop - first)]
        found = buffer.fill(slice(first, stop), (rows, columns), boxes)
        assert torch.equal(found, expected(shared[:, first:stop], boxes))


def test_the_next_part_uses_the_same_memory_and_shared_tokens_stay_there() -> None:
    shared = torch.randn(BATCH, HEADS, SHARED, DIM)
    buffer, heads = GatherBuffer(shared), slice(0, 2)
    first = buffer.fill(heads, (1, 2), [box(0, 1, 2, 2)])
    address = first.data_ptr()
    shared.zero_()  # what is not copied again does not notice
    second = buffer.fill(heads, (1, 2), [box(1, 1, 2, 2)])
    assert second.data_ptr() == address
    assert second[:, :, :SHARED].all()
    assert not buffer.fill(slice(2, 4), (1, 2), [box(1, 1, 2, 2)])[:, :, :SHARED].any()


def test_without_a_window_only_shared_tokens_are_gathered() -> None:
    shared = torch.randn(BATCH, HEADS, SHARED, DIM)
    found = GatherBuffer(shared).fill(slice(0, HEADS), (2, 1), [])
    assert torch.equal(found, shared.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("budget", [1, 2**28])
def test_gradients_are_those_of_dense_attention_under_the_mask(budget: int) -> None:
    """The backward pass needs every part as it was, for instance while a LoRA is trained through the node."""
    pattern = LocalPattern.whole(TokenLayout(3, Grid(20, 35)), Window(4))
    given = torch.randn(3, 1, 2, pattern.key_tokens, 8, generator=torch.Generator().manual_seed(0))

    def gathered(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return SdpaBackend().run(AttentionCall(query, key, value, pattern, scale=0.3, budget=budget)).out

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=pattern.mask(), scale=0.3)
        return out.transpose(1, 2).flatten(2)

    found = []
    for attend in (gathered, dense):
        tensors = [tensor.clone().requires_grad_() for tensor in given]
        out = attend(*tensors)
        (out * torch.linspace(0, 1, out.shape[1])[:, None]).sum().backward()
        found.append([tensor.grad for tensor in tensors])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
