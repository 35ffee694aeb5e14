"""Dataclasses to JSON and back, strictly, driven by the types of their fields.

A field is a bool, int, float or str, `Literal` words, one of these or None, a tuple of one kind, a mapping from text,
or another such dataclass. `Annotated` adds what the type does not say: `Within` for numbers, `Length` for text, tuples
and mappings, `Matches` for text, `Tree` for JSON of any form.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_DEEPEST = 40  # levels of a value that is to be encoded
_INTEGERS = range(-(2**63), 2**64)  # in JSON of any form; those of the channel have 20 digits at most
_SHOWN = 40  # characters of a value or a name in an error


class MalformedError(ValueError):
    """A value that must not be. field: where, such as "cards[0].flops"; all of it is one printable line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Within:
    """A number from `low` to `high`, both allowed."""

    low: float
    high: float

    def check(self, value: object, field: str) -> None:
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            raise MalformedError(field, f"must be from {self.low} to {self.high}, got {shortened(value)}")


@dataclass(frozen=True, slots=True)
class Length:
    """Characters of a text, or entries of a tuple or mapping."""

    least: int
    most: int

    def check(self, value: object, field: str) -> None:
        if isinstance(value, (str, tuple, Mapping)) and not self.least <= len(value) <= self.most:
            unit = "characters" if isinstance(value, str) else "entries"
            raise MalformedError(field, f"must have {self.least} to {self.most} {unit}, got {len(value)}")


@dataclass(frozen=True, slots=True)
class Matches:
    """A text that a pattern matches from end to end. wanted: the pattern in words."""

    pattern: str
    wanted: str

    def check(self, value: object, field: str) -> None:
        if isinstance(value, str) and not re.fullmatch(self.pattern, value):
            raise MalformedError(field, f"must be {self.wanted}, got {shortened(value)}")


@dataclass(frozen=True, slots=True)
class Tree:
    """JSON of any form inside, up to so many levels. longest: characters of one text."""

    deepest: int
    longest: int

    def check(self, value: object, field: str) -> None:
        self._check(value, field, self.deepest)

    def _check(self, value: object, field: str, levels: int) -> None:
        if isinstance(value, (list, dict)) and levels == 0:
            raise MalformedError(field, f"must have at most {self.deepest} levels")
        if isinstance(value, dict):
            for key, inner in value.items():
                _text(key, f"{field}, a name")
                self._check(inner, f"{field}.{_name(key)}", levels - 1)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self._check(inner, f"{field}[{index}]", levels - 1)
        elif isinstance(value, str):
            Length(0, self.longest).check(_text(value, field), field)
        elif isinstance(value, float):
            _number(value, field)
        elif isinstance(value, int) and value not in _INTEGERS:
            raise MalformedError(field, f"must be an integer of 64 bits, got {shortened(value)}")
        elif value is not None and not isinstance(value, int):
            raise MalformedError(field, f"must be JSON, got {type(value).__name__}")


def to_json(value: object, field: str = "message") -> object:
    """Plain dicts, lists, texts and numbers. Does not check them: `Reader` does."""
    return _plain(value, field, _DEEPEST)


class Reader:
    """Makes dataclasses of some kinds, and of those in their fields, from JSON. Does not change once it is made."""

    def __init__(self, kinds: Iterable[type]) -> None:
        # Resolved once: it takes longer than all the rest.
        self._hints: dict[type, dict[str, object]] = {}
        for kind in kinds:
            self._resolve(kind)

    def read(self, kind: type[T], value: object, field: str = "") -> T:
        """A dataclass from a JSON object that has its fields and no other. Raises MalformedError."""
        if not isinstance(value, Mapping):
            raise MalformedError(field or "message", f"must be an object, got {shortened(value)}")
        hints, found = self._hints[kind], {}
        for name in value:
            if name not in hints:
                raise MalformedError(_within(field, _name(name)), "is not a field of this message")
        for name, hint in hints.items():
            if name not in value:
                raise MalformedError(_within(field, name), "is missing")
            found[name] = self._read(hint, value[name], _within(field, name))
        return kind(**found)

    def _resolve(self, hint: object) -> None:
        """Take in the dataclasses that a type mentions."""
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in self._hints:
            self._hints[hint] = get_type_hints(hint, include_extras=True)
            for inner in self._hints[hint].values():
                self._resolve(inner)
        for inner in get_args(hint):
            self._resolve(inner)

    def _read(self, hint: object, value: object, field: str) -> object:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            found = self._read(arguments[0], value, field)
            for rule in arguments[1:]:
                rule.check(found, field)
            return found
        if origin in (Union, UnionType):  # one kind, or None
            (inner,) = (argument for argument in arguments if argument is not NoneType)
            return None if value is None else self._read(inner, value, field)
        if origin is Literal:
            if not isinstance(value, str) or value not in arguments:
                raise MalformedError(field, f"must be one of {', '.join(map(repr, arguments))}, got {shortened(value)}")
            return value
        if origin is tuple:
            if not isinstance(value, list):
                raise MalformedError(field, f"must be a list, got {shortened(value)}")
            return tuple(self._read(arguments[0], inner, f"{field}[{index}]") for index, inner in enumerate(value))
        if origin is Mapping:
            if not isinstance(value, dict):
                raise MalformedError(field, f"must be an object, got {shortened(value)}")
            return {
                self._read(arguments[0], key, f"{field}, a name"): self._read(
                    arguments[1], inner, f"{field}.{_name(key)}"
                )
                for key, inner in value.items()
            }
        if hint in self._hints:
            assert isinstance(hint, type)
            return self.read(hint, value, field)
        return _plain_value(hint, value, field)


def _plain(value: object, field: str, levels: int) -> object:
    if levels == 0:
        raise MalformedError(field, f"must have at most {_DEEPEST} levels")
    if dataclasses.is_dataclass(value):
        return {
            entry.name: _plain(getattr(value, entry.name), entry.name, levels - 1)
            for entry in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _plain(inner, field, levels - 1) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner, field, levels - 1) for inner in value]
    return value


def _plain_value(hint: object, value: object, field: str) -> object:
    if hint is object:
        return value
    if hint is float:
        return _number(value, field)
    if hint is str:
        return _text(value, field)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise MalformedError(field, f"must be {'true or false' if hint is bool else 'an integer'}, got {shortened(value)}")


def _number(value: object, field: str) -> float:
    """JSON of other languages writes 1.0 as 1."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with_point = float(value) if abs(value) < 2**53 or isinstance(value, float) else math.nan
        if math.isfinite(with_point):
            return with_point
    raise MalformedError(field, f"must be a finite number, got {shortened(value)}")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(field, f"must be text, got {shortened(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedError(field, "must be valid Unicode") from None
    return value


def _within(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _name(key: object) -> str:
    """A name that the other side has chosen, for an error."""
    return ascii(key[:_SHOWN])[1:-1] if isinstance(key, str) else type(key).__name__


def shortened(value: object) -> str:
    """A value that the other side has chosen, for an error: printable, in one line, never a long one in full."""
    if isinstance(value, str):
        return ascii(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) or (isinstance(value, int) and value in _INTEGERS):
        return repr(value)
    return {dict: "an object", list: "a list", int: "an integer of many digits"}.get(type(value), type(value).__name__)
