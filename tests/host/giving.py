"""A node for the host's executor that stands for a loader."""

from __future__ import annotations

from typing import Any


def giving(kind: str, value: Any, *widgets: str) -> type:
    """A node that gives out a value, whatever its widgets say, which are texts."""

    class Giving:
        RETURN_TYPES = (kind,)
        FUNCTION = "give"
        CATEGORY = "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {name: ("STRING", {}) for name in widgets}}

        def give(self, **_: str) -> tuple[Any]:
            return (value,)

    return Giving
