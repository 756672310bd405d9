"""The steps that write: by every operation of the product, and by the guide's own INSERT.

Each tells the tables' rows what they must be from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from tests.roundtrip import oracle
from tests.roundtrip.tables import SHAPES, Held, Row, Shape, insert
from tests.roundtrip.trial import Trial, Way
from tests.roundtrip.values import Sample
from voiceassist_db import Repository
from voiceassist_db.database import Repositories

GUIDE_OPTIONS: Final = (
    "s2k-mode=1",
    "s2k-mode=1, compress-algo=1",
    "s2k-mode=3, s2k-count=1024, cipher-algo=aes256",
    "s2k-mode=0",
)
"""Options of pgcrypto under which somebody may have written; its own default stretches keys, which takes long."""
BOUND_OPTIONS: Final = "cipher-algo=aes256, s2k-mode=1, s2k-digest-algo=sha256, compress-algo=0"
"""The documented options of scheme ``bound``."""


def create(trial: Trial, shapes: Sequence[Shape] = SHAPES) -> None:
    """Create the tables."""
    for shape in shapes:
        held = Held.declare(shape, trial.chance)
        held.create(trial.database.engine)
        trial.held.append(held)


def insert_directly(trial: Trial, rows: int) -> None:
    """Insert special values and so many rows by chance, by the guide's own INSERT under scheme ``direct``."""
    secret = trial.secret()
    with oracle.connect(trial.dsn) as connection:
        for held in trial.held:
            new = trial.new(held, rows, "INSERT direct")
            with trial.told("INSERT direct", held):
                insert(connection, held, new, secret, 1, lambda: trial.chance.choice(GUIDE_OPTIONS), is_bound=False)
            for row in new:
                row.without_token |= {name for name, column in held.columns.items() if column.index}
            hold(trial, "INSERT direct", held, new)


def insert_bound(trial: Trial, rows: int, version: int) -> None:
    """Insert rows as the product would, by the documented form of what is bound, of tokens and of messages."""
    secret = trial.secret()
    with oracle.connect(trial.dsn) as connection:
        for held in trial.held:
            new = trial.new(held, rows, "INSERT bound")
            with trial.told("INSERT bound", held):
                insert(connection, held, new, secret, version, lambda: BOUND_OPTIONS, is_bound=True)
            hold(trial, "INSERT bound", held, new)


def fill(trial: Trial, rows: int) -> None:
    """Write special values by add and by add_many, and so many rows by chance by add_many."""
    for held in trial.held:
        for way, run in trial.each_way():
            _write(trial, f"add {way}", held, trial.new(held, 0, "add"), run, _add)
            many = trial.new(held, rows // 2, "add_many")
            trial.chance.shuffle(many)
            _write(trial, f"add_many {way}", held, many, run, lambda kept, records: kept.add_many(iter(records)))


def _add(kept: Repository[Any], records: list[Any]) -> None:
    for each in records:
        kept.add(each)


def _write(
    trial: Trial,
    operation: str,
    held: Held,
    rows: Sequence[Row],
    run: Way,
    write: Callable[[Repository[Any], list[Any]], Any],
) -> None:
    records = [held.record(each) for each in rows]
    with trial.told(operation, held):
        run(lambda tx: write(tx.repository(held.rows), records))
    hold(trial, operation, held, rows)


def hold(trial: Trial, operation: str, held: Held, rows: Sequence[Row]) -> None:
    """Tell a table that it must hold rows from now on."""
    for row in rows:
        held.held[held.lookup_key(row)] = row
        row.by = dict.fromkeys(row.cells, operation)
        trial.count(operation, held, row.cells)


def update(trial: Trial, share: float) -> None:
    """Give some rows special values, all fields at once; and a share of the rows others, some fields or one at a time."""
    for held in trial.held:
        rows, subsets = list(held.held.values()), held.subsets()
        for way, run in trial.each_way():
            changes = [
                (trial.chance.choice(rows), trial.pool.cells(held.fields, at)) for at in trial.pool.turn("update")
            ]
            for at, row in enumerate(trial.chance.sample(rows, int(len(rows) * share / 2))):
                cells = trial.pool.cells(held.fields)
                changes.append((row, {name: cells[name] for name in subsets[at % len(subsets)]}))
            with trial.told(f"update {way}", held):
                run(partial(_change, held, changes))
            for row, cells in changes:
                row.cells = row.cells | cells
                row.by |= dict.fromkeys(cells, f"update {way}")
                row.without_token -= cells.keys()
                trial.count(f"update {way}", held, cells)


def _change(held: Held, changes: list[tuple[Row, dict[str, Sample]]], tx: Repositories) -> None:
    kept = tx.repository(held.rows)
    for row, cells in changes:
        kept.update(*held.given(row), **{name: each.given for name, each in cells.items()})
