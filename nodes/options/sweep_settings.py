"""What a line of CLEAR Sweep's `axes` may say: a setting of Apply CLEAR Attention, and values for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from .blocks import parse_blocks
from .clear import MAX_DOWN_FACTOR, MAX_RADIUS, ApplyInputs, check_choices, check_ntk, check_range
from .limits import within

WEIGHTS: Final = "weights"
NO_WEIGHTS: Final = "none"
MOST_VALUES: Final = 12
"""Of one setting: a sheet has as many columns or rows."""
_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Value:
    """shown: as it is labelled. sets: fields of `ApplyInputs`, or `WEIGHTS`: the name of a file, None for none."""

    shown: str
    sets: Mapping[str, Any]


def parse_line(line: str) -> tuple[str, tuple[Value, ...]]:
    """Read "radius: 8, 16, 32": the setting and its values.

    Raises ValueError that says what was given and what is allowed.
    """
    name, colon, rest = line.partition(":")
    name = name.strip().lower()
    if not colon or name not in _PARSERS:
        raise ValueError(f"axes has the line {line!r:.80}, which begins with no setting. {HOW}")
    items = [item.strip() for item in rest.split(",")]
    if not all(items):
        raise ValueError(f"axes has a line for {name} with an empty value: {line!r:.80}. {HOW}")
    values = tuple(_PARSERS[name](item) for item in items)
    for i, value in enumerate(values):
        if any(value.sets == other.sets for other in values[:i]):
            raise ValueError(f"axes has {name} {value.shown} twice. Write each value once.")
    if len(values) > MOST_VALUES:
        raise ValueError(f"axes has {len(values)} values for {name}; {MOST_VALUES} is the most. Leave some out.")
    return name, values


def _weights(text: str) -> Value:
    if text.lower() == NO_WEIGHTS:
        return Value(NO_WEIGHTS, {WEIGHTS: None})
    name = text if text.endswith(_SUFFIX) else text + _SUFFIX
    return Value(name.removesuffix(_SUFFIX), {WEIGHTS: name})


def _integer(name: str, high: int) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ValueError(f"axes has {name} {text!r:.60}; allowed are integers from 0 to {high}")
        within(f"axes: {name}", int(text), 0, high)
        return Value(str(int(text)), {name: int(text)})

    return parse


def _strength(text: str) -> Value:
    value = _number("strength", text)
    within("axes: strength", value, 0.0, 1.0)
    return Value(f"{value:g}", {"strength": value})


def _ntk_factor(text: str) -> Value:
    value = _number("ntk_factor", text)
    check_ntk(value)
    return Value(f"{value:g}", {"ntk_factor": value})


def _proportional(text: str) -> Value:
    value = {"on": True, "true": True, "off": False, "false": False}.get(text.lower())
    if value is None:
        raise ValueError(f"axes has proportional_attention {text!r:.60}; allowed are on and off")
    return Value("on" if value else "off", {"proportional_attention": value})


def _schedule(text: str) -> Value:
    start, dash, end = text.partition("-")
    if not dash:
        raise ValueError(
            f"axes has schedule {text!r:.60}; write start_percent-end_percent, such as 0-1 (every step) or 0.2-1"
        )
    low, high = _number("schedule", start), _number("schedule", end)
    check_range(low, high)
    return Value(f"{low:g}-{high:g}", {"start_percent": low, "end_percent": high})


def _blocks(text: str) -> Value:
    parse_blocks(text)
    shown = " ".join(text.lower().split())
    return Value(shown, {"blocks": shown})


def _choice(name: str) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        inputs: dict[str, Any] = {name: text}
        usual = ApplyInputs(**inputs)
        check_choices(usual.backend, usual.references)
        return Value(text, inputs)

    return parse


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"axes has {name} {text.strip()!r:.60}, which is no number")
    return value


_PARSERS: Final[Mapping[str, Callable[[str], Value]]] = MappingProxyType(
    {
        WEIGHTS: _weights,
        "radius": _integer("radius", MAX_RADIUS),
        "down_factor": _integer("down_factor", MAX_DOWN_FACTOR),
        "strength": _strength,
        "ntk_factor": _ntk_factor,
        "proportional_attention": _proportional,
        "schedule": _schedule,
        "blocks": _blocks,
        "references": _choice("references"),
        "backend": _choice("backend"),
    }
)

HOW: Final = (
    f"Write a setting a line, its values separated by commas, such as radius: 8, 16, 32. Settings: "
    f"{', '.join(_PARSERS)}."
)
