"""Whether the rate of a rotation depends on the number of rows: the curve, each point over the ceiling of its moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from benchmarking import tables
from benchmarking.deployment import Deployment
from benchmarking.engine import Engine
from benchmarking.tables import TWO
from benchmarking.timing import Spread, ratio_of
from benchmarking.ways import measured

SMALLEST: Final = 10_000
LARGEST_OVER_ROWS: Final = 5
"""The largest table over the one that the rotation is measured on."""

LONG: Final = 10_000_000
SMALL: Final = 1_000_000
"""Below so many rows a rotation is over before the machine's pace has evened out, and is measured three times."""


def sizes(rows: int, *, is_long: bool) -> list[int]:
    """Return the powers of ten to measure, given the rows of the rotation's own measurement."""
    made = [SMALLEST]
    while 10 * made[-1] <= min(LARGEST_OVER_ROWS * rows, LONG // 10):
        made.append(10 * made[-1])
    return [*made, LONG] if is_long else made


def _rounds(rows: int) -> int:
    return 3 if rows < SMALL else 1


def steps(many: list[int]) -> int:
    """Return how many steps :func:`measure` tells of."""
    return sum(1 + _rounds(rows) for rows in many)


def measure(deployment: Deployment, many: list[int], on_step: Callable[[str], None]) -> dict[str, Any]:
    """Rotate tables of these numbers of rows.

    Args:
        deployment: The database.
        many: Numbers of rows, in ascending order.
        on_step: Called ahead of each step with what comes next.
    """
    points: list[dict[str, Any]] = []
    for rows in many:
        on_step(f"growth: making {rows:,} rows")
        engine = Engine(deployment, TWO, rows=rows)
        engine.create()
        runs, ceilings = [], []
        for round_ in range(_rounds(rows)):
            on_step(f"growth: {rows:,} rows, round {round_ + 1} of {_rounds(rows)}")
            before = tables.ceiling(deployment, TWO, rows)
            runs.append(measured(deployment, engine))
            ceilings.append((before + tables.ceiling(deployment, TWO, rows)) / 2)
        rates = [run.rows_per_second for run in runs]
        share = ratio_of(rates, ceilings).rounded(3)
        points.append(
            {
                "rows": rows,
                "rows_per_second": Spread.of(rates).rounded(0).median,
                "ratio": share.median,
                "ratio_range": share.reach,
                "table_growth": round(max(run.table_growth for run in runs), 3),
                "index_growth": round(max(run.index_growth for run in runs), 3),
            }
        )
    shares = [point["ratio"] for point in points]
    return {"points": points, "lowest_over_highest": round(min(shares) / max(shares), 3)}
