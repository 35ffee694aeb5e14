"""What the node and the log are told about a sampling run."""

from __future__ import annotations

import logging
from typing import Any

import pytest


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def report(nodes_api: Any, shown: list[str]) -> Any:
    return nodes_api.module("nodes.host.run_log").RunLog("radius 8", shown.append)


def test_a_run_is_counted_by_who_computed_it(report: Any, shown: list[str]) -> None:
    report.announce()
    report.begin()
    report.forward("this pack")
    for _ in range(3):
        report.called()
        report.local("sdpa (77 text)")
    report.dense("as asked: steps outside 0 to 0.5", asked=True)
    report.end(finished=True)
    assert shown[0] == "radius 8"
    assert shown[-1].splitlines() == [
        "radius 8",
        "CLEAR ran: 3 layer calls by sdpa (77 text)",
        "full attention: 1 layer calls, as asked: steps outside 0 to 0.5",
    ]


def test_a_new_run_forgets_the_last(report: Any) -> None:
    report.begin()
    report.forward("this pack")
    report.called()
    report.local("sdpa")
    report.end(finished=True)
    report.begin()
    assert report.text() == "radius 8"


def test_a_fallback_is_shown_on_the_node_at_once_and_logged_once(
    report: Any, shown: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            report.begin()
            report.dense("no backend has it")
            assert "full attention: 1 layer calls, no backend has it" in shown[-1]
            report.dense("no backend has it")
            report.end(finished=True)
    assert [record.message for record in caplog.records] == ["CLEAR runs dense here: no backend has it"]
    assert "full attention: 2 layer calls" in shown[-1]


def test_what_was_asked_for_is_no_warning(report: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report.dense("as asked", asked=True)
    assert not caplog.records


def test_reasons_without_end_are_bounded(report: Any) -> None:
    report.begin()
    for size in range(100):
        report.dense(f"an attention of {size} queries")
    lines = report.text().splitlines()
    assert len(lines) == 1 + 17
    assert lines[-1] == "full attention: 84 layer calls, other reasons"


def test_a_run_without_one_call_says_who_took_over(report: Any, shown: list[str]) -> None:
    report.begin()
    report.forward("Rude.nodes")
    report.end(finished=True)
    assert "not used: another node's attention (Rude.nodes) took over" in shown[-1]
    assert "Put Apply CLEAR Attention after that node" in shown[-1]


def test_a_cancelled_run_blames_no_node(report: Any, shown: list[str], caplog: pytest.LogCaptureFixture) -> None:
    report.begin()
    report.forward("this pack")
    report.end(finished=False)
    assert shown[-1] == "radius 8"
    assert not caplog.records
