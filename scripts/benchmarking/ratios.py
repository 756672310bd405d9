"""The ratios of a report by themselves, each the better the higher: what a later version is held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

KEPT: Final = 0.8
"""A ratio may be a fifth lower than it was: so much is the machine's noise."""


def fallen(expected: Mapping[str, float], found: Mapping[str, float]) -> dict[str, tuple[float, float | None]]:
    """Return the ratios that are lower than they may be, or are no longer there: what was expected, and what was found."""
    return {
        name: (value, found.get(name))
        for name, value in expected.items()
        if name not in found or found[name] < KEPT * value
    }


def ratios(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of those parts that a report has."""
    return {name: round(value, 3) for name, value in _ratios(report)}


def _ratios(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if rotation := report.get("rotation"):
        yield "rotation over its ceiling", rotation["ratio"]
        yield f"rotation with {rotation['workers']} workers over one", rotation["scaling"]
    for peer in report.get("peers", ()):
        if peer["ours_over_theirs"] is not None:
            yield f"rotation over {peer['name']}", peer["ours_over_theirs"]
    for operation, figures in report.get("single_row", {}).items():
        yield f"{operation} as speed over psycopg", 1 / figures["ratio"]
    if bulk := report.get("bulk"):
        yield "page as speed over psycopg", 1 / bulk["page"]["ratio"]
        yield "bulk add over the server", bulk["add_many"]["ratio"]
        yield "import over bulk add", bulk["import"]["over_add_many"]
        yield "verify over the server", bulk["verify"]["ratio"]
    if growth := report.get("growth"):
        yield "lowest over highest share of the ceiling by rows", growth["lowest_over_highest"]
    if command_line := report.get("command_line"):
        yield "--help as speed over importing click", 1 / command_line["ratio"]
