"""An evaluation as text: Markdown for reading, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..whole_file import written_whole
from .folders import Column, Evaluation
from .intervals import LEVEL, RESAMPLES, SET_RESAMPLES, Score
from .metrics import METRICS

NOT_MEASURED = "not measured"


def markdown(found: Evaluation) -> str:
    """A row for each metric, a column for each folder: the score and its confidence interval."""
    columns = (found.original, *found.columns)
    titles = [f"{found.original.name} (original)", *(column.name for column in found.columns)]
    out = [_row("", titles), "|---" * (len(columns) + 1) + "|"]
    for name in found.metrics:
        cells = [_cell(name, column.scores[name]) if name in column.scores else "" for column in columns]
        out.append(_row(METRICS[name].title, cells))
    out.append(_row("pairs", ["", *(str(column.count) for column in found.columns)]))
    out += ["", *(f"- {note}" for note in notes(found))]
    return "\n".join(out)


def lines(found: Evaluation) -> str:
    """The scores without notes, a line each, where a table has no room."""
    out = []
    for column in (found.original, *found.columns):
        if column.scores:
            out.append(f"{column.name}, {column.count} {'images' if column is found.original else 'pairs'}")
            out += [f"  {METRICS[name].title} {_cell(name, score)}" for name, score in column.scores.items()]
    return "\n".join(out)


def notes(found: Evaluation) -> list[str]:
    """What to know about the numbers: intervals, networks, what was left out."""
    out = [
        f"In brackets: {LEVEL:.0%} confidence interval by bootstrap over images, {RESAMPLES} resamples; of FID and IS "
        f"from the deviation of {SET_RESAMPLES}"
    ]
    out += [f"{kind}: {identity}" for kind, identity in found.identities.items()]
    out += [f"{column.name}: {note}" for column in (found.original, *found.columns) for note in column.notes]
    return out


def records(found: Evaluation) -> list[dict[str, Any]]:
    """A record for each folder and metric: value, low, high and count, or None with the reason."""
    out = []
    for column in (found.original, *found.columns):
        for name, score in column.scores.items():
            record: dict[str, Any] = {"folder": column.name, "metric": name}
            if isinstance(score, Score):
                record |= {"value": score.value, "low": score.low, "high": score.high, "count": score.count}
                record |= {"not_measured": ""}
            else:
                record |= {"value": None, "low": None, "high": None, "count": 0, "not_measured": score}
            out.append(record)
    return out


def as_csv(found: Evaluation) -> str:
    """The records, with a header. An infinite PSNR is `inf`."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["folder", "metric", "value", "low", "high", "count", "not_measured"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(records(found))
    return text.getvalue()


def as_json(found: Evaluation) -> str:
    """The records, the folders and the notes. An infinite PSNR is the string "inf": JSON has no such number."""
    scores = [
        {key: "inf" if isinstance(value, float) and math.isinf(value) else value for key, value in record.items()}
        for record in records(found)
    ]
    columns: Mapping[str, Column] = {column.name: column for column in (found.original, *found.columns)}
    folders = {name: {"path": str(column.folder), "images": column.count} for name, column in columns.items()}
    return (
        json.dumps({"scores": scores, "folders": folders, "notes": notes(found)}, indent=2, ensure_ascii=False) + "\n"
    )


def write(found: Evaluation, folder: Path, name: str) -> list[Path]:
    """NAME.md, NAME.csv and NAME.json; their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".md": markdown(found) + "\n", ".csv": as_csv(found), ".json": as_json(found)}
    paths = []
    for ending, text in texts.items():
        path = folder / f"{name}{ending}"
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _row(title: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([title, *(cell.replace("|", "\\|") for cell in cells)]) + " |"


def _cell(name: str, score: Score | str) -> str:
    if isinstance(score, str):
        return f"{NOT_MEASURED}: {score}"
    if math.isinf(score.value):
        return "identical"
    digits = METRICS[name].digits
    text = f"{score.value:.{digits}f}"
    return text if score.low is None else f"{text} [{score.low:.{digits}f}, {score.high:.{digits}f}]"
