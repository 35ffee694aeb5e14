"""Memory and caches have bounds that do not depend on the image."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from clear_core.attention import local_attention
from clear_core.cache import BoundedCache
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

MIB, HEADS = 2**20, 8


def temporary_bytes(side: int, budget: int) -> int:
    """What one call allocates at its peak beyond its inputs and its output, counted without computing."""
    pattern = LocalPattern.whole(TokenLayout(512, Grid(side, side)), Window(8))
    tracker = MemTracker()
    with FakeTensorMode(), tracker:
        query, key, value = torch.empty(3, 1, HEADS, pattern.key_tokens, 128, dtype=torch.bfloat16)
        out = local_attention(query, key, value, pattern, backend="sdpa", budget=budget).out
        given = 3 * query.nbytes + out.nbytes
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return peak["Total"] - given


def test_temporary_memory_stays_within_the_budget_at_any_size() -> None:
    budget = 16 * MIB
    # The text's own keys, values and rows come on top: 512 tokens of 8 heads, 1 MiB each in bfloat16.
    text = 4 * 512 * HEADS * 128 * 2
    used = {side: temporary_bytes(side, budget) for side in (64, 128, 256)}
    assert all(used[side] <= budget + text for side in used), used
    assert used[256] <= 1.05 * used[128], used


def test_a_cache_forgets_what_was_used_least_recently() -> None:
    cache: BoundedCache[int, str] = BoundedCache(2)
    made: list[int] = []

    def make(key: int) -> str:
        made.append(key)
        return str(key)

    for key in (1, 2, 1, 3, 1, 2):
        assert cache.get(key, lambda key=key: make(key)) == str(key)
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2


def test_a_cache_counts_what_it_found_and_what_it_made() -> None:
    cache: BoundedCache[int, None] = BoundedCache(2)
    for key in (1, 2, 1, 3, 2):
        cache.get(key, lambda: None)
    assert (cache.hits, cache.misses) == (1, 4)


def test_a_cache_may_be_bounded_by_the_weight_of_its_values() -> None:
    """One that is too heavy alone is not kept, and drives out nothing."""
    cache: BoundedCache[str, bytes] = BoundedCache(10, len)
    for key, size in (("a", 4), ("b", 5), ("too heavy", 11), ("c", 2)):
        assert len(cache.get(key, lambda size=size: bytes(size))) == size
    made: list[str] = []
    for key in ("b", "c", "too heavy", "a"):
        cache.get(key, lambda key=key: made.append(key) or bytes(1))
    assert made == ["too heavy", "a"]
    assert len(cache) == 4


def test_a_value_that_cannot_be_made_is_not_kept() -> None:
    cache: BoundedCache[int, str] = BoundedCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: str(1 // 0))
    assert cache.get(1, lambda: "one") == "one"
