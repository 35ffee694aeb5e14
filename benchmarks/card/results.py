"""What the parts found, in one file that is whole at any time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clear_core.show.measured import SCHEMA

from .supervise import DONE, Outcome

_SOURCE = "source"
_ELSEWHERE = "Name another folder with --out, or delete that one."


class OtherResults(ValueError):
    """The folder has results of another machine or of another kind of run."""


@dataclass
class Results:
    """The file `card.json` of a folder.

    run: what the results are of. They cannot be mixed with those of another machine; with those of another source they
    can, because a fault is fixed between two runs.
    """

    folder: Path
    run: dict[str, Any]
    parts: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, run: dict[str, Any]) -> Results:
        """Results to go on with, or new ones. Raises OtherResults where the folder's are of another run."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "card.json"
        if not path.is_file():
            return cls(folder, run)
        saved = json.loads(path.read_text("utf-8"))
        if saved.get("schema") != SCHEMA:
            raise OtherResults(f"{path} is of another version of this command. {_ELSEWHERE}")
        different = [name for name in run if name != _SOURCE and saved["run"].get(name) != run[name]]
        if different:
            now = ", ".join(f"{name} {saved['run'].get(name)!r} there, {run[name]!r} now" for name in different)
            raise OtherResults(f"{path} has other results: {now}. {_ELSEWHERE}")
        return cls(folder, run, {name: Outcome(**part) for name, part in saved["parts"].items()})

    def is_done(self, part: str) -> bool:
        """Whether a part ended well, from the same source."""
        found = self.parts.get(part)
        return found is not None and (found.status, found.source) == (DONE, self.run[_SOURCE])

    def save(self, part: str, outcome: Outcome) -> None:
        """Add what a part found; the file is replaced at once."""
        self.parts[part] = replace(outcome, source=self.run[_SOURCE])
        parts = {name: asdict(found) for name, found in self.parts.items()}
        content = {"schema": SCHEMA, "run": self.run, "parts": parts}
        _replace(self.folder / "card.json", json.dumps(content, indent=1) + "\n")

    def write_page(self, text: str) -> Path:
        path = self.folder / "card.md"
        _replace(path, text)
        return path


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
