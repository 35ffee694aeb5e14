"""The page that ends a run: what is right, what is fast, which settings to change in the source; then every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from .parts import Part
from .results import Results
from .supervise import DONE, Row


def page(results: Results, parts: Iterable[Part]) -> str:
    """Markdown."""
    return "\n".join([*_head(results), *_summary(results), *_settings(results), *_sections(results, parts)]) + "\n"


def _head(results: Results) -> Iterator[str]:
    run = results.run
    yield f"# {run['device']}"
    yield ""
    if run["rehearsal"]:
        yield "**A rehearsal on a processor, at toy sizes: nothing here says anything about a card.**"
        yield ""
    facts = [f"{name} {value}" for name, value in run.items() if name not in ("device", "rehearsal") and value]
    yield f"`python dev.py card`; {', '.join(facts)}."
    yield ""


def _rows(results: Results, part: str) -> list[Row]:
    return results.parts[part].rows if part in results.parts else []


def _summary(results: Results) -> Iterator[str]:
    yield "## In short"
    yield ""
    judged = [row for name in results.parts for row in _rows(results, name) if "right" in row]
    wrong = [row for row in judged if not row["right"]]
    yield f"- Right: {len(judged) - len(wrong)} of {len(judged)} checks." if judged else "- Right: not measured."
    for row in wrong:
        yield f"  - **Wrong**: {_facts(row)}"
    refused = Counter((row["backend"], row["refused"]) for row in _rows(results, "correctness") if "refused" in row)
    for (backend, reason), count in refused.items():
        yield f"- {backend} did not run in {count} of the checks: {reason}."
    best: dict[tuple[int, int], Row] = {}
    for row in _rows(results, "speed"):
        if "against dense" in row and row["down"] == 1:
            key = (row["pixels"], row["radius"])
            best[key] = min(best.get(key, row), row, key=lambda found: found["ms"])
    if not best:
        yield "- Fast: not measured."
    for (pixels, radius), row in sorted(best.items()):
        yield (
            f"- {pixels} px, radius {radius}: attention {row['against dense']:.1f} times as fast as the best dense "
            f"kernel ({row['backend']}, {100 * row['of the matrix rate']:.0f} % of the matrix rate)."
        )
    for row in _rows(results, "steps"):
        if row.get("against dense"):
            yield f"- A step at {row['pixels']} px, {_where(row)}: {row['against dense']:.2f} times as fast as dense."
        elif "s" in row and row["radius"] and not row["bands"]:
            yield f"- A step of {row['blocks']} blocks at {row['pixels']} px, {_where(row)}: {row['s']:.3g} s."
    for row in _rows(results, "devices"):
        if "times as fast" in row:
            faster = f"{row['times as fast']:.2f} times as fast as one"
            yield f"- {row['cards']} cards: {row['what']} at {row['pixels']} px {faster}."
    for name, outcome in results.parts.items():
        if outcome.status != DONE:
            yield f"- Part {name}: {outcome.status}."
    for source, names in _other_sources(results).items():
        yield f"- From source {source}, not {results.run['source']}: {', '.join(names)}."
    yield ""


def _other_sources(results: Results) -> dict[str, list[str]]:
    """The parts that are of another source than the run."""
    found: dict[str, list[str]] = {}
    for name, outcome in results.parts.items():
        if outcome.source != results.run["source"]:
            found.setdefault(outcome.source, []).append(name)
    return found


def _settings(results: Results) -> Iterator[str]:
    yield "## Settings to change in the source"
    yield ""
    found = [*_kernel_settings(_rows(results, "tuning")), *_tile_settings(_rows(results, "tiles"))]
    yield from found or ["None, by what was measured."]
    yield ""


def _kernel_settings(rows: list[Row]) -> Iterator[str]:
    timed = [row for row in rows if "ms" in row]
    for radius in sorted({row["radius"] for row in timed}):
        candidates = [row for row in timed if row["radius"] == radius]
        best = min(candidates, key=lambda row: row["ms"])
        current = next((row for row in candidates if row["current"]), None)
        if best is not current:
            than = f" against {current['ms']:.2f} ms of the current one" if current is not None else ""
            yield f"- `triton/config.py`, radius {radius}: {_cell(best['config'])}: {best['ms']:.2f} ms{than}."


def _tile_settings(rows: list[Row]) -> Iterator[str]:
    rows = [row for row in rows if "against dense" in row]
    total: dict[str, float] = {}
    for row in rows:
        if row["backend"].startswith("tiles of"):
            total[row["backend"]] = total.get(row["backend"], 0.0) + 1 / row["against dense"]
    current = next((row["backend"] for row in rows if row.get("current") and row["backend"] in total), None)
    if current is not None and min(total, key=total.__getitem__) != current:
        best = min(total, key=total.__getitem__)
        share = total[best] / total[current]
        yield f"- `sdpa/backend.py`, `_TILE`: {best} take {share:.2f} of the time of {current}, in all that was timed."
    for kind in ("tiles of", "masked"):
        used = [row for row in rows if row.get("current") and row["backend"].startswith(kind)]
        if used:
            costs = sorted(row["per pair"] for row in used)
            middle, now = costs[len(costs) // 2], used[0]["per pair in the source"]
            backend = "masked" if kind == "masked" else "sdpa"
            yield f"- `registry.py`, `COSTS`, {backend}: {middle:.2f} per pair (median), {now} now."


def _sections(results: Results, parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        yield f"## {part.what}"
        yield ""
        yield from (part.columns, "") if part.columns else ()
        outcome = results.parts.get(part.name)
        if outcome is None:
            yield "Not run."
            yield ""
            continue
        source = "" if outcome.source == results.run["source"] else f", from source {outcome.source}"
        yield f"{outcome.status[:1].upper()}{outcome.status[1:]}, {outcome.seconds:.0f} s{source}."
        yield ""
        yield from _table([row for row in outcome.rows if "left out" not in row])
        left_out = [f"- Left out: {_facts(row)}" for row in outcome.rows if "left out" in row]
        yield from ("", *left_out) if left_out and len(left_out) < len(outcome.rows) else left_out
        if outcome.status != DONE:
            yield from ("", "```", *(outcome.log or ["(it printed nothing)"]), "```")
        yield ""


def _table(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(name)) for name in names)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value).replace("|", "\\|")


def _facts(row: Row) -> str:
    return ", ".join(f"{name} {_cell(value)}" if name != "left out" else _cell(value) for name, value in row.items())


def _where(row: Row) -> str:
    bands = f", {row['bands']} bands" if row["bands"] else ""
    return f"radius {row['radius']}{bands}, {row['weights']}"
