"""One run: the parts that were asked for, on one deployment, one after the other.

Owns which parts there are, how often each is measured, and the order. What a part measures is its own module's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from typing import Any, Final

from benchmarking import bulk, command_line, growth, single_rows, tables
from benchmarking.deployment import Deployment, deployed, described
from benchmarking.parts import WITH_LIBRARIES
from benchmarking.peers import installed
from benchmarking.peers.peer import Peer, Store
from benchmarking.ratios import ratios
from benchmarking.rotation import Rounds, figures, peers
from benchmarking.tables import TWO
from benchmarking.ways import Way

ROTATION_ROUNDS: Final = 3
"""At most, of what takes seconds."""

MOST_ROUNDS: Final = 9
"""At most, of what takes less."""

ROWS_PER_ROUND: Final = 10_000
"""A small run is for a look, and takes fewer."""

BULK_ROWS: Final = 10_000

OnStep = Callable[[int, int, str], None]


class Benchmark:
    """A run.

    Args:
        deployment: Where.
        rows: Rows of the table that is rotated.
        workers: The most workers that our rotation gets.
        parts: Names of ``parts.PARTS``.
        is_long: Whether ten million rows are measured too.
        on_step: Called with the steps done, how many there are, and what comes next.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        rows: int,
        workers: int,
        parts: Collection[str],
        is_long: bool,
        on_step: OnStep,
    ) -> None:
        self._deployment = deployment
        self._rows = rows
        self._workers = workers
        self._parts = parts
        self._sizes = growth.sizes(rows, is_long=is_long)
        self._rounds = max(1, min(MOST_ROUNDS, rows // ROWS_PER_ROUND))
        self._on_step = on_step
        self._done = 0

    def run(self, report: dict[str, Any]) -> None:
        """Measure everything.

        Args:
            report: Where each part's figures go as soon as they are there: what is measured is not lost where a later part fails.
        """
        started = time.monotonic()
        tables.create(self._deployment)
        report["machine"] = described(self._deployment)
        try:
            if {"rotation", "peers"} & set(self._parts):
                report |= self._rotation()
            if {"single_row", "bulk"} & set(self._parts):
                report |= self._patients()
            if "growth" in self._parts:
                report["growth"] = growth.measure(self._deployment, self._sizes, self._step)
            if "command_line" in self._parts:
                self._step("the command line's cold start")
                report["command_line"] = command_line.measure(rounds=self._rounds)
        finally:
            report |= {"ratios": ratios(report), "seconds": round(time.monotonic() - started)}

    def _step(self, note: str) -> None:
        self._on_step(self._done, self._steps, note)
        self._done += 1

    @cached_property
    def _libraries(self) -> Sequence[Peer]:
        return installed.libraries(self._deployment, self._rows) if WITH_LIBRARIES & set(self._parts) else []

    @cached_property
    def _rotations(self) -> Rounds:
        workers = [1, self._workers] if self._workers > 1 else [1]
        others: list[Way] = []
        if "peers" in self._parts:
            others = [*installed.statements(self._deployment, self._rows, self._workers), *self._libraries]
        return Rounds(
            self._deployment,
            TWO,
            rows=self._rows,
            workers=workers,
            others=others,
            rounds=min(ROTATION_ROUNDS, self._rounds),
        )

    @cached_property
    def _steps(self) -> int:
        steps = {
            ("rotation", "peers"): self._rotations.steps,
            ("single_row", "bulk"): 1 + len(self._libraries),
            ("single_row",): len(single_rows.OPERATIONS),
            ("bulk",): bulk.STEPS,
            ("growth",): growth.steps(self._sizes),
            ("command_line",): 1,
        }
        return sum(count for parts, count in steps.items() if set(parts) & set(self._parts))

    def _rotation(self) -> dict[str, Any]:
        rounds = self._rotations
        rounds.run(self._step)
        report: dict[str, Any] = {"rotation": figures(rounds)} if "rotation" in self._parts else {}
        return report | ({"peers": peers(rounds)} if "peers" in self._parts else {})

    def _patients(self) -> dict[str, Any]:
        report: dict[str, Any] = {}
        self._deployment.raw.execute(f"TRUNCATE {TWO.table}")  # a verification reads every encrypted table
        with ExitStack() as stack:
            libraries: list[Store] = [stack.enter_context(closing(each.store())) for each in self._libraries]
            stores = single_rows.filled(self._deployment, libraries, self._step)
            stack.enter_context(closing(stores[0]))
            if "single_row" in self._parts:
                report["single_row"] = single_rows.measure(stores, rounds=self._rounds, on_step=self._step)
            if "bulk" in self._parts:
                rows = min(self._rows, BULK_ROWS)
                report["bulk"] = bulk.measure(
                    self._deployment, stores, rows=rows, rounds=self._rounds, on_step=self._step
                )
        return report


def run(dsn: str | None, report: dict[str, Any], **asked: Any) -> None:
    """Start what is needed, and measure.

    Args:
        dsn: Address of the server; None starts one.
        report: Where the figures go, as :meth:`Benchmark.run` says.
        asked: The arguments of :class:`Benchmark`, but for the deployment.

    Raises:
        click.ClickException: A part needs libraries that are not installed, or the server is not fit for it.
    """
    if WITH_LIBRARIES & set(asked["parts"]):
        installed.require_extra()
    with deployed(dsn) as deployment:
        Benchmark(deployment, **asked).run(report)
