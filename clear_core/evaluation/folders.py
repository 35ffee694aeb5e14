"""The whole evaluation: rows are computed and kept measure by measure, then scored folder by folder.

All metrics of a folder are of the same pairs: one with a file that cannot be read is in none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from torch import Tensor

from ..file_stamp import FileStamp
from .intervals import Score
from .measures import Item, Measure, NotAvailableError, UnreadableError, Watch, fill, key_of
from .metrics import (
    CLIP,
    INCEPTION,
    LPIPS,
    METRICS,
    OF_IMAGES,
    OF_PAIRS,
    PIXELS,
    TEXT,
    image_scores,
    inception_scores,
    pair_scores,
    pixel_rows,
    text_scores,
)
from .pairs import Pair, Pairs, images_of, matched
from .prompts import read_prompts
from .rows import Rows

Opener = Callable[[], Measure]
"""Raises NotAvailableError."""
PIXEL_MEASURE: Final = Measure("torchmetrics' SSIM, data range 1", 3, pixel_rows)
_NAMED = 5  # stems in a note


@dataclass(frozen=True, slots=True)
class Column:
    """The scores of one folder. scores: by metric; a text says why there is none. notes: what else to know."""

    name: str
    folder: Path
    count: int
    scores: Mapping[str, Score | str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics: names, in the table's order. original: the scores that it has by itself."""

    metrics: tuple[str, ...]
    original: Column
    columns: tuple[Column, ...]
    identities: Mapping[str, str]
    """By kind of measure, what its rows depend on."""


def evaluate(
    original: Path,
    folders: Sequence[Path],
    metrics: Sequence[str],
    openers: Mapping[str, Opener],
    read: Callable[[Path], Tensor],
    kept: Rows,
    watch: Watch,
    prompts: Path | None = None,
) -> Evaluation:
    """Compare the images of each folder with the original's of the same names.

    metrics: names of METRICS. openers: by kind of measure, for those that need a network. read: an image as uint8
    [height, width, 3], or UnreadableError. prompts: a file as `prompts` describes, for CLIP-T.
    Raises ValueError for folders or prompts that cannot be used, and what `watch` raises.
    """
    originals = images_of(original)
    matches = [matched(folder, original, originals) for folder in folders]
    texts = read_prompts(prompts, list(originals)) if prompts is not None else {}
    run = _Run(metrics, texts, read, kept, watch)
    wanted = {kind for name in metrics for kind in METRICS[name].kinds}
    for kind in (*OF_PAIRS, *OF_IMAGES, TEXT):
        if kind in wanted:
            run.measure(kind, {PIXELS: lambda: PIXEL_MEASURE, **openers}[kind], matches)
    columns = [run.column(one) for one in matches]
    own = run.own_column(original, matches)
    identities = {kind: measure.identity for kind, measure in run.measures.items()}
    return Evaluation(tuple(metrics), own, tuple(_named_apart(own, columns)), identities)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a measure leaves behind: its network is freed before the next is loaded."""

    identity: str
    features: int


@dataclass(slots=True)
class _Run:
    """texts: prompts by stem. missing: by kind of measure, why it is not there. broken: files, and why."""

    metrics: Sequence[str]
    texts: Mapping[str, str]
    read: Callable[[Path], Tensor]
    kept: Rows
    watch: Watch
    measures: dict[str, _Measured] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)

    def measure(self, kind: str, opener: Opener, matches: Sequence[Pairs]) -> None:
        """Compute and keep the rows of all folders."""
        if kind == TEXT and not self.texts:
            self.missing[kind] = "there are no prompts; give a file of them"
            return
        try:
            opened = opener()
            items = {item.key: item for one in matches for item in self._items(kind, self._whole(one.pairs))}
            fill(opened, list(items.values()), self.kept, self.watch, kind)
            self.measures[kind] = _Measured(opened.identity, opened.features)
        except NotAvailableError as error:
            self.missing[kind] = str(error)

    def _items(self, kind: str, pairs: Sequence[Pair]) -> Iterator[Item]:
        for pair in pairs:
            if kind in OF_PAIRS:
                key = key_of(pair.image, pair.original)
                yield Item(key, lambda pair=pair: (self._image(pair.image), self._image(pair.original)))
            elif kind in OF_IMAGES:
                for stamp in (pair.original, pair.image):
                    yield Item(key_of(stamp), lambda stamp=stamp: self._image(stamp))
            elif pair.stem in self.texts:
                text = self.texts[pair.stem]
                yield Item(key_of(text), lambda text=text: text)

    def _image(self, stamp: FileStamp) -> Tensor:
        try:
            return self.read(stamp.path)
        except UnreadableError as error:
            self.broken[stamp.path] = str(error)
            raise

    def _whole(self, pairs: Sequence[Pair]) -> list[Pair]:
        return [one for one in pairs if one.image.path not in self.broken and one.original.path not in self.broken]

    def _rows(self, kind: str, keys: Iterable[str]) -> Tensor:
        return self.kept.read(self.measures[kind].identity, list(keys))

    def column(self, match: Pairs) -> Column:
        """The scores of one folder."""
        pairs = self._whole(match.pairs)
        if not pairs:
            reasons = "; ".join(f"{path.name} {reason}" for path, reason in list(self.broken.items())[:3])
            raise ValueError(f"No pair of {match.folder} can be read. Of {len(match.pairs)}: {reasons}")
        both = {
            kind: self._rows(kind, (key_of(one.image, one.original) for one in pairs))
            for kind in OF_PAIRS
            if kind in self.measures
        }
        scores, notes = pair_scores(both.get(PIXELS), both.get(LPIPS))
        for kind in (kind for kind in OF_IMAGES if kind in self.measures):
            images = self._rows(kind, (key_of(pair.image) for pair in pairs))
            theirs = self._rows(kind, (key_of(pair.original) for pair in pairs))
            features = self.measures[kind].features
            scores |= image_scores(self.metrics, kind, features, images, theirs, self.watch.poll)
            if "FID" in self.metrics and len(pairs) <= features:
                notes.append(f"FID of {len(pairs)} images is biased upwards: compare it only with a FID of as many")
        scores |= self._text_scores({pair.stem: pair.image for pair in pairs})
        broken = [path for pair in match.pairs for path in (pair.image.path, pair.original.path) if path in self.broken]
        notes += [f"left out: {path.parent.name}/{path.name} {self.broken[path]}" for path in dict.fromkeys(broken)]
        alone = {"the original": match.without_original, match.folder.name: match.without_image}
        notes += [
            f"{len(stems)} without a partner in {where}: {_some(stems)}" for where, stems in alone.items() if stems
        ]
        return Column(match.folder.name, match.folder, len(pairs), self._chosen(self.metrics, scores), tuple(notes))

    def own_column(self, original: Path, matches: Sequence[Pairs]) -> Column:
        """The scores that the original has by itself, of its images in any pair."""
        images = {pair.stem: pair.original for one in matches for pair in self._whole(one.pairs)}
        scores: dict[str, Score | str] = {}
        if INCEPTION in self.measures and "IS" in self.metrics:
            rows = self._rows(INCEPTION, map(key_of, images.values()))
            scores |= inception_scores(self.measures[INCEPTION].features, rows, self.watch.poll)
        scores |= self._text_scores(images)
        own = [name for name in self.metrics if METRICS[name].of_one]
        without = [stem for stem in images if stem not in self.texts] if self.texts else []
        notes = [f"{len(without)} images have no prompt, CLIP-T is of the others: {_some(without)}"] if without else []
        return Column(original.name, original, len(images), self._chosen(own, scores), tuple(notes))

    def _text_scores(self, images: Mapping[str, FileStamp]) -> dict[str, Score | str]:
        if not {CLIP, TEXT} <= self.measures.keys():
            return {}
        told = {stem: stamp for stem, stamp in images.items() if stem in self.texts}
        return text_scores(
            self._rows(CLIP, map(key_of, told.values())), self._rows(TEXT, (key_of(self.texts[stem]) for stem in told))
        )

    def _chosen(self, metrics: Sequence[str], scores: Mapping[str, Score | str]) -> dict[str, Score | str]:
        """In the table's order; where there is no score, why."""
        return {
            name: scores[name]
            if name in scores
            else next(self.missing[kind] for kind in METRICS[name].kinds if kind in self.missing)
            for name in metrics
        }


def _some(stems: Sequence[str]) -> str:
    return ", ".join(stems[:_NAMED]) + (", ..." if len(stems) > _NAMED else "")


def _named_apart(original: Column, columns: Sequence[Column]) -> list[Column]:
    """By the folders' names, or their paths where two have one name."""
    names = Counter(column.name for column in (original, *columns))
    return [one if names[one.name] == 1 else replace(one, name=str(one.folder)) for one in columns]
