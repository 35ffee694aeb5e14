"""A bounded cache of the most recently used values, safe to share between threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Keeps the most recently used values. Its owner creates it; there is no global cache.

    size: how many values, or with `weigh` the most that their weights may add up to, for instance in bytes. A value
        that alone is heavier is not kept.
    as_key: what to keep in place of a new key, equal to it, where the key itself would keep more alive than the value.
    hits, misses: how often `get` found a value, and how often it had to make one.
    """

    def __init__(
        self, size: int, weigh: Callable[[Value], int] | None = None, as_key: Callable[[Key], Key] | None = None
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._size = size
        self._weigh = weigh or (lambda _: 1)
        self._as_key = as_key or (lambda key: key)
        self._weight = 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The cached value of `key`, or `make()`, which is then cached."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self.hits += 1
                self._values.move_to_end(key)
                return found[0]
            self.misses += 1
        # Outside the lock: two threads may both make the value, but neither waits for the other.
        value = make()
        weight = self._weigh(value)
        with self._lock:
            if weight <= self._size:
                self._weight += weight - self._values.pop(key, (value, 0))[1]
                self._values[self._as_key(key)] = (value, weight)
                while self._weight > self._size:
                    self._weight -= self._values.popitem(last=False)[1][1]
        return value

    def __len__(self) -> int:
        return len(self._values)
