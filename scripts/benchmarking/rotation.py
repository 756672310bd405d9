"""Rotation: our engine with one and more workers, its ceiling, and all that one would use instead, in turns in one run.

Owns the rounds and the figures. Each round measures the ceiling before and after each rotation of ours, on the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from benchmarking import tables
from benchmarking.application import Application, Latencies
from benchmarking.deployment import Deployment
from benchmarking.engine import Engine
from benchmarking.failures import described
from benchmarking.tables import Shape
from benchmarking.timing import Spread, in_turns, ratio_of
from benchmarking.ways import Run, Way, measured

ALONE_S: Final = 2.0
"""How long the concurrent application is watched with nothing beside it."""

FEWEST_WATCHED: Final = 10_000
"""Rows of a table beside whose re-encryption the application is watched. In smaller ones it waits for rows and for little else: of 2,500
in transactions of 1,000, its slowest one in a hundred took 200 ms, and of 50,000 less than 1 ms."""

OnStep = Callable[[str], None]


@dataclass
class Measured:
    """What the rounds gave for one way.

    Attributes:
        way: The way.
        runs: Its runs, one for each round.
        latencies: The concurrent application's, beside a run of its own.
        failure: Why there are no figures; None where there are.
    """

    way: Way
    runs: list[Run] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)
    failure: str | None = None

    def rates(self) -> list[float]:
        """Return the rows per second of each round."""
        return [run.rows_per_second for run in self.runs]

    def figures(self) -> dict[str, Any]:
        """Return what the report says of every way: the median rate, and what the worst run left behind."""
        rate = Spread.of(self.rates()).rounded(0)
        return {
            "rows_per_second": rate.median,
            "rows_per_second_range": rate.reach,
            "rows": self.way.rows,
            "table_growth": round(max(run.table_growth for run in self.runs), 3),
            "index_growth": round(max(run.index_growth for run in self.runs), 3),
            "hot_ratio": round(min(run.hot_ratio for run in self.runs), 3),
            "wal_bytes_per_row": round(Spread.of(run.wal_bytes_per_row for run in self.runs).median),
            **self.latencies.p99(),
        }


class Rounds:
    """The rounds of one run: who is measured, and what came of it.

    Args:
        deployment: The database; the shape's table is there.
        shape: The table that our engine rotates.
        rows: How many rows it gets.
        workers: With how many workers our engine runs.
        others: The ways to compare with. One that fails has a failure instead of figures, and the others go on.
        rounds: How often each way runs; then once more, with the concurrent application beside it.

    Attributes:
        engines: Our engine by its number of workers.
        ceilings: Rows per second of the crypto alone, beside each of its runs.
        others: The others.
        alone: What the concurrent application took with nothing beside it.
    """

    def __init__(
        self,
        deployment: Deployment,
        shape: Shape,
        *,
        rows: int,
        workers: Sequence[int],
        others: Sequence[Way],
        rounds: int,
    ) -> None:
        self.engines = {count: Measured(Engine(deployment, shape, rows=rows, workers=count)) for count in workers}
        self.ceilings: dict[int, list[float]] = {count: [] for count in workers}
        self.others = [Measured(way) for way in others]
        everyone = (*self.engines.values(), *self.others)
        self._watched = [each for each in everyone if _watched_rows(each.way) >= FEWEST_WATCHED]
        self.alone = Latencies()
        self._deployment = deployment
        self._shape = shape
        self._rows = rows
        self._rounds = rounds

    @property
    def steps(self) -> int:
        """How many steps :meth:`run` tells of."""
        watched = 1 + len(self._watched) if self._watched else 0
        return 1 + len(self.others) + self._rounds * (len(self.engines) + len(self.others)) + watched

    def run(self, on_step: OnStep) -> None:
        """Measure everything in turns.

        Args:
            on_step: Called ahead of each step with what comes next.
        """
        on_step("making rows")
        tables.fill(self._deployment, self._shape, self._rows)
        for other in self.others:
            on_step(f"{other.way.name}: making rows")
            _guarded(other, other.way.create)
        turns: dict[str, Callable[[], None]] = {}
        turns |= {each.way.name: partial(self._with_ceiling, count) for count, each in self.engines.items()}
        turns |= {each.way.name: partial(_guarded, each, partial(self._measure, each)) for each in self.others}
        for round_ in range(self._rounds):
            for name in in_turns(list(turns), round_):
                on_step(f"{name}: round {round_ + 1} of {self._rounds}")
                turns[name]()
        if not self._watched:
            return
        with Application(self._deployment) as application:
            on_step("a concurrent application alone")
            with application.beside(self._shape.table) as self.alone:
                time.sleep(ALONE_S)
            for each in self._watched:
                on_step(f"{each.way.name}: with a concurrent application")
                _guarded(each, partial(self._with_application, each, application))

    def _with_ceiling(self, workers: int) -> None:
        each = self.engines[workers]
        before = tables.ceiling(self._deployment, self._shape, self._rows)
        each.runs.append(measured(self._deployment, each.way))
        self._deployment.settle(self._shape.table)
        after = tables.ceiling(self._deployment, self._shape, self._rows)
        self.ceilings[workers].append((before + after) / 2)

    def _measure(self, each: Measured) -> None:
        run = measured(self._deployment, each.way)
        if not each.runs:
            each.way.prove()
        each.runs.append(run)
        each.way.restore(0)

    def _with_application(self, each: Measured, application: Application) -> None:
        each.way.restore(_watched_rows(each.way))
        self._deployment.settle(each.way.table)
        with application.beside(each.way.table) as each.latencies:
            each.way.run()
        each.way.restore(0)


def _watched_rows(way: Way) -> int:
    return way.rows if isinstance(way, Engine) else way.rows // 2


def _guarded(each: Measured, step: Callable[[], None]) -> None:
    """Run a step of a way, unless it failed before; where it fails, say so instead of ending the run."""
    if each.failure is not None:
        return
    try:
        step()
    except Exception as error:  # what a library raises when it does not work is part of the report
        if isinstance(each.way, Engine):
            raise
        each.failure = described(error)


def figures(rounds: Rounds) -> dict[str, Any]:
    """Return the report of our engine with one worker, and under ``with_workers`` with all: rate, growth, HOT, WAL, and what others feel."""
    one, most = rounds.engines[1], max(rounds.engines)
    share = ratio_of(one.rates(), rounds.ceilings[1]).rounded(3)
    scaling = ratio_of(rounds.engines[most].rates(), one.rates()).rounded(2)
    return {
        **_own(one),
        "ceiling_rows_per_second": round(Spread.of(rounds.ceilings[1]).median),
        "ratio": share.median,
        "ratio_range": share.reach,
        "workers": most,
        "scaling": scaling.median,
        "scaling_range": scaling.reach,
        "with_workers": _own(rounds.engines[most]),
        **{f"{name}_alone": value for name, value in rounds.alone.p99().items()},
    }


def _own(ours: Measured) -> dict[str, Any]:
    engine = ours.way
    assert isinstance(engine, Engine)
    whole = Spread.of(engine.rows / seconds for seconds in engine.whole_seconds[: len(ours.runs)]).rounded(0)
    return {**ours.figures(), "rows_per_second_with_proof": whole.median}


LESS_IS_BETTER: Final = ("table_growth", "index_growth", "wal_bytes_per_row", "p99_read_ms", "p99_write_ms")


def peers(rounds: Rounds) -> list[dict[str, Any]]:
    """Return the report of the others.

    ``ours_over_theirs`` compares like with like: ours with as many workers as they have connections. With all workers over one
    connection it is ``with_workers_over_theirs``. ``better_at`` names the figures that are better than ours with as many workers.
    """
    most = max(rounds.engines)
    listed: list[dict[str, Any]] = []
    for each in rounds.others:
        way = each.way
        entry: dict[str, Any] = {
            "name": way.name,
            "version": way.version,
            "note": way.note,
            "connections": way.connections,
        }
        if each.failure is None:
            ours, theirs = rounds.engines[way.connections], each.figures()
            entry |= theirs | _times("ours", ours, each)
            if way.connections < most:
                entry |= _times("with_workers", rounds.engines[most], each)
            entry["better_at"] = _better(theirs, ours.figures())
        else:
            entry |= {"failure": each.failure, "rows_per_second": None, "ours_over_theirs": None}
        listed.append(entry)
    return listed


def _times(name: str, ours: Measured, theirs: Measured) -> dict[str, Any]:
    times = ratio_of(ours.rates(), theirs.rates()).rounded(2)
    return {f"{name}_over_theirs": times.median, f"{name}_over_theirs_range": times.reach}


def _better(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    rate = ["rows_per_second"] if theirs["rows_per_second"] > ours["rows_per_second"] else []
    known = (name for name in LESS_IS_BETTER if None not in {theirs[name], ours[name]})
    return rate + [name for name in known if theirs[name] < ours[name]]
