"""What stands for loaders: a node for the host's executor, and what text encoders give."""

from __future__ import annotations

from typing import Any

from devtools.models import inputs


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


def conditioning(text: int = 9, **options: Any) -> list[Any]:
    """What text encoders give for `flux_model`; 3.5 is the guidance."""
    given = inputs(2, 2, text)
    return [[given["context"], {"pooled_output": given["pooled_text"], "guidance": 3.5, **options}]]
