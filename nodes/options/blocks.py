"""Which transformer blocks use the window: "all", "double", "single", or a list like "s0-18, d3"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...clear_core.weights import BlockId

ALL = "all"
_ITEM = re.compile(r"([ds])([0-9]{1,3})(?:-([0-9]{1,3}))?")
_KINDS = {"d": "double", "s": "single"}
_LONGEST = 1000  # characters; all 57 blocks of FLUX.1 one by one are 270


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """Chosen blocks. spans: kind, first and last index; the last is None where all of a kind are meant."""

    text: str
    spans: tuple[tuple[str, int, int | None], ...]

    def __contains__(self, block: BlockId) -> bool:
        return any(
            kind == block.kind and first <= block.index and (last is None or block.index <= last)
            for kind, first, last in self.spans
        )

    @property
    def everything(self) -> bool:
        return {kind for kind, first, last in self.spans if first == 0 and last is None} == {"double", "single"}

    def check_depth(self, double: int, single: int) -> None:
        """Raises ValueError where a block is named that a model of so many blocks does not have."""
        for kind, _, last in self.spans:
            count = double if kind == "double" else single
            if last is not None and last >= count:
                raise ValueError(
                    f"blocks is {self.text!r}, but this model has {double} double and {single} single blocks: "
                    f"d0-{double - 1} and s0-{single - 1} are allowed."
                )


def parse_blocks(text: str) -> BlockChoice:
    """Read the input `blocks`. Raises ValueError naming the part that cannot be read."""
    if len(text) > _LONGEST:
        raise ValueError(
            f"blocks is {len(text):,} characters long, up to {_LONGEST:,} are read. Write all, double, single, or "
            "spans such as s0-18, d3."
        )
    spans: list[tuple[str, int, int | None]] = []
    for item in re.split(r"[\s,;]+", text.strip().lower()):
        found = _ITEM.fullmatch(item)
        if item == ALL:
            spans += [("double", 0, None), ("single", 0, None)]
        elif item in _KINDS.values():
            spans.append((item, 0, None))
        elif found and int(found[3] or found[2]) >= int(found[2]):
            spans.append((_KINDS[found[1]], int(found[2]), int(found[3] or found[2])))
        else:
            raise ValueError(
                f"blocks is {text!r}, of which {item!r} cannot be read. Write all, double, single, or single blocks "
                "and spans separated by commas: s0-18, d3 (d: double, s: single, counted from 0)."
            )
    return BlockChoice(text.strip(), tuple(spans))


ALL_BLOCKS = parse_blocks(ALL)
