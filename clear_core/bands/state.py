"""What the lanes of one forward hold of an attention layer while it is under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..call import AttentionResult
from ..layout import Band
from ..pattern import LocalPattern
from ..pooling import Pooled
from ..softmax import RunningMerge
from .schedule import Attend, AttendReplicated, Copy, MergePartial, Step
from .transfer import Arriving


@dataclass(slots=True, eq=False)
class PartialAttention:
    """The replicated tokens' attention (out, lse) over the rows of one lane, merged band by band.

    total, count: for text_merge "average", the sum of the text's output over the bands and how many these are.
    """

    merged: RunningMerge = field(default_factory=RunningMerge)
    total: Tensor | None = None
    count: int = 0

    def add(self, result: AttentionResult, text: Tensor | None) -> None:
        """One more band. result: the tokens over its rows. text: the text over its rows and all replicated tokens."""
        self.merged.add(result)
        if text is not None:
            self.total = text.float() if self.total is None else self.total + text.float()
            self.count += 1


@dataclass(slots=True, eq=False)
class Rows:
    """Keys and values of some image rows, each [batch, heads, rows * width, head_dim].

    needed: bands for whose rows the lane still needs them.
    """

    rows: Band
    keys: tuple[Tensor, Tensor]
    needed: set[int]

    def cut(self, rows: Band, width: int) -> tuple[Tensor, Tensor]:
        """Some of the rows."""
        tokens = slice((rows.start - self.rows.start) * width, (rows.stop - self.rows.start) * width)
        key, value = self.keys
        return key[:, :, tokens], value[:, :, tokens]


@dataclass(slots=True, eq=False)
class LaneLayer:
    """One lane's part of one attention layer. Only its own thread reads it; other lanes deliver into `arriving`.

    published: bands whose keys the lane may read. partials, merges: lanes that have published their part for it. The
    exchange guards these three.

    pattern: of the complete sequence. replicated: query, key and value of the replicated tokens. own: the rows of the
    lane's bands, by band, until the lane releases them. halos: those of other lanes, by lane. band_pooled: by band,
    until the lane's last one has published; lane_pooled: of the lane's bands joined; pooled: of all lanes joined.
    """

    pattern: LocalPattern | None = None
    replicated: tuple[Tensor, Tensor, Tensor] | None = None
    own: dict[int, Rows] = field(default_factory=dict)
    halos: dict[int, Rows] = field(default_factory=dict)
    band_pooled: dict[int, Pooled] = field(default_factory=dict)
    lane_pooled: Pooled | None = None
    pooled: Pooled | None = None
    partial: PartialAttention = field(default_factory=PartialAttention)
    shares: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    merged: Tensor | None = None
    arriving: dict[Copy, Arriving] = field(default_factory=dict)
    published: set[int] = field(default_factory=set)
    partials: set[int] = field(default_factory=set)
    merges: set[int] = field(default_factory=set)

    def ready(self, step: Step) -> bool:
        """Whether all that a step of the lane awaits has been published."""
        if isinstance(step, Attend):
            return self.published.issuperset(step.awaits)
        if isinstance(step, MergePartial):
            return self.partials.issuperset(step.awaits)
        return not isinstance(step, AttendReplicated) or self.merges.issuperset(step.awaits)

    def release(self, bands: Sequence[int]) -> None:
        """The lane needs the keys of some bands no more."""
        for held in (self.own, self.halos):
            for name, rows in [*held.items()]:
                rows.needed.difference_update(bands)
                if not rows.needed:
                    del held[name]


class LayerState:
    """One attention layer on all lanes. left: lanes that are done with it. Guarded by the exchange."""

    def __init__(self, lanes: int) -> None:
        self.lanes = [LaneLayer() for _ in range(lanes)]
        self.left: set[int] = set()
