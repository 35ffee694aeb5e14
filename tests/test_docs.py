"""The documentation names what is there: links, headings, files and tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devtools.packs import OWN, TRIALS

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in tracked.splitlines()]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)|[`\[\]*]", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: {link}"
        elif anchor and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: {link} (no such heading)"


def test_every_link_leads_somewhere() -> None:
    found = pages()
    assert len(found) > 20
    assert not [problem for page in found for problem in broken_links(page)]


def test_every_test_that_reliability_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named: list[tuple[Path, str]] = []
    for section in text.split("\n## ")[1:]:
        words = re.findall(r"`([^`\n]*)`", section)
        paths = [found[0] for word in words if (found := re.match(r"\w+/\w+\.py", word))]
        for word in words:
            found = re.fullmatch(r"(\w+/\w+\.py)?::(test_\w+?)_?(?:\.\.\.)?", word)
            if found:
                named.append((ROOT / "tests" / (found[1] or paths[0]), found[2]))
        named += [(ROOT / "tests" / path, "") for path in paths]
    assert len(named) > 70
    assert not [
        f"{path.name}::{name}"
        for path, name in named
        if not path.is_file() or f"def {name}" not in path.read_text(encoding="utf-8")
    ]


def test_every_node_that_is_tried_is_in_the_list_of_hosts() -> None:
    text = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    section = text.split("## Node packs tried\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in section.splitlines() if line.startswith("|")]
    named = {(pack.split()[0], node) for pack, nodes, _ in rows for node in re.findall(r"`(\w+)`", nodes)}
    tried = {(pack, trial.node) for pack, trials in TRIALS.items() for trial in trials}
    assert tried | {("ComfyUI", trial.node) for trial in OWN} == named
