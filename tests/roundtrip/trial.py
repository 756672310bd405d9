"""One trial: tables of one database, the rows that they must hold, and the two ways to reach them.

Counts what was compared, by operation and class of value. Every failure names the seed, the operation, the table and its key.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import text

from tests.roundtrip.oracle import Secret
from tests.roundtrip.tables import Held, Pool, Row
from tests.roundtrip.values import Sample
from voiceassist_db import AsyncDatabase, Database
from voiceassist_db.database import Repositories

T = TypeVar("T")

Work = Callable[[Repositories], T]
Way = Callable[[Work[Any]], Any]


class Trial:
    """What the steps of a trial share.

    Args:
        database: The database.
        asynchronous: The same one for an event loop.
        runner: The event loop.
        secret: Reads the keys of the key store, for the oracle.
        schemes: The scheme of each live key version.
        seed: What decides about every value.
        alternates: Whether each step uses one of the two ways, by chance, and not both.
        stride: How many turns an operation takes to have all special values.

    Attributes:
        chance: What decides, by the seed.
        counts: How many values were compared, by operation and class.
        held: The tables.
        pool: What gives the values.
        settings: What each transaction sets for itself.
        stride: As given.
        ways: How a function of repositories is called: by its name, ``sync`` or ``async``.
    """

    def __init__(
        self,
        database: Database,
        asynchronous: AsyncDatabase,
        runner: asyncio.Runner,
        *,
        secret: Callable[[], Secret],
        schemes: Mapping[int, str],
        seed: int,
        alternates: bool,
        stride: int,
    ) -> None:
        self.database = database
        self.secret = secret
        self.schemes = dict(schemes)
        self.seed = seed
        self.chance = random.Random(seed)  # noqa: S311  # values for tests
        self.counts: Counter[tuple[str, str]] = Counter()
        self.held: list[Held] = []
        self.pool = Pool(self.chance, stride)
        self.stride = stride
        self.settings: dict[str, str] = {}
        self.ways: dict[str, Way] = {"sync": self._synchronously, "async": self._asynchronously}
        self._alternates = alternates
        self._asynchronous = asynchronous
        self._runner = runner

    def each_way(self) -> list[tuple[str, Way]]:
        """Return the ways that a step uses, each with its name."""
        ways = list(self.ways.items())
        return [self.chance.choice(ways)] if self._alternates else ways

    @property
    def dsn(self) -> str:
        """The address of the database, for programs and connections of the oracle."""
        url = self.database.engine.url.set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def moved_to(self, database: Database, asynchronous: AsyncDatabase) -> None:
        """Go on with a copy of the database."""
        self.database, self._asynchronous = database, asynchronous

    def _synchronously(self, work: Work[T]) -> T:
        with self.database.transaction() as tx:
            self._set(tx)
            return work(tx)

    def _asynchronously(self, work: Work[T]) -> T:
        async def run() -> T:
            async with self._asynchronous.transaction() as tx:
                await tx.run(self._set)
                return await tx.run(work)

        return self._runner.run(run())

    def _set(self, tx: Repositories) -> None:
        for name, value in self.settings.items():
            tx.session.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})

    @contextmanager
    def under(self, settings: Mapping[str, str]) -> Iterator[None]:
        """Let each transaction have more settings for a while."""
        before, self.settings = self.settings, {**self.settings, **settings}
        try:
            yield
        finally:
            self.settings = before

    def forget_connections(self) -> None:
        """Close the pooled connections, so that new ones have the settings of the database."""
        self.database.engine.dispose()
        self._runner.run(self._asynchronous.engine.dispose())

    def new(self, held: Held, count: int, operation: str | None = None) -> list[Row]:
        """Return so many new rows for a table by chance; before them those of the special values that an operation has next."""
        positions = () if operation is None else self.pool.turn(operation)
        special = [held.new(self.pool.cells(held.fields, each)) for each in positions]
        return special + [held.new(self.pool.cells(held.fields)) for _ in range(count)]

    def count(self, operation: str, held: Held, cells: Mapping[str, Sample]) -> None:
        """Count the values of some fields of a row."""
        for name, each in cells.items():
            self.counts[operation, f"{held.fields[name].kind.value}: {each.group}"] += 1

    @contextmanager
    def told(self, operation: str, held: Held) -> Iterator[None]:
        """Name the seed, the operation, the table and its key in every failure."""
        try:
            yield
        except Exception as error:
            shape = held.shape
            raise AssertionError(
                f"seed {self.seed}, {operation}, table {shape.name!r} (key {', '.join(shape.key.values())}; lookup {shape.lookup}), "
                f"settings {self.settings}: {type(error).__name__}: {error}"
            ) from error

    def written(self) -> int:
        """Return how many values were written, changes of them aside."""
        writes = ("add", "import", "INSERT")
        return sum(count for (operation, _), count in self.counts.items() if operation.startswith(writes))

    def progress(self, step: str) -> None:
        """Print how far the trial is."""
        print(f"{step}: {self.written():,} values written, {self.counts.total():,} compared", flush=True)

    def figures(self) -> str:
        """Return how many values were compared, by operation, and by operation and class."""
        by_operation: Counter[str] = Counter()
        for (operation, _), count in self.counts.items():
            by_operation[operation] += count
        lines = [f"{operation}: {count:,} values" for operation, count in sorted(by_operation.items())]
        lines += [f"  {operation}, {group}: {count:,}" for (operation, group), count in sorted(self.counts.items())]
        return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value for a message."""
    try:
        printed = repr(value)
    except (RecursionError, ValueError, NotImplementedError):  # the last one is pandas's
        return f"{type(value).__name__} too large to show"
    return printed if len(printed) < 200 else f"{printed[:120]}… ({len(printed)} characters)"
