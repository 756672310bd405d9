"""Whatever is accepted as a declaration works from its creation to the end of a key; all else is refused when it is declared."""

from __future__ import annotations

import collections
import secrets
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, reject, seed, settings

from tests.declarations.strategies import INTERNAL, Declaration, Field, Plain, declarations
from tests.declarations.walk import Held, check_constraints, check_declared, create, created_names, delete, fill, read
from voiceassist_db import Database
from voiceassist_db.models import Kind, table_of
from voiceassist_db.rotation import retire, rotate, rotate_index_key
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

SHORT = 25
LONG_BATCHES = 40
LONG_BATCH = 50

ALIASES = ("given", "one", "stored", "always", "encryption_keys", "patient_data", "keys")
"""What our statements call tables and subqueries."""

MOST_KEY_COLUMNS = 32
"""Columns of an index of PostgreSQL (INDEX_MAX_KEYS)."""

BASE = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
    phases=[Phase.generate],
    report_multiple_bugs=False,
)


class Batch:
    """Declared tables that stand in one database.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.held: dict[tuple[str | None, str], Held] = {}
        self.refused: collections.Counter[str] = collections.Counter()
        self.accepted = 0
        self._number = 0
        self._names: dict[tuple[str | None, str], set[str]] = {}
        self._contexts: dict[str, tuple[str | None, str]] = {}

    def take(self, declaration: Declaration) -> None:
        """Declare a table; if it is accepted, create it and use it."""
        self._number += 1
        declaration = replace(declaration, number=f"{self._number}")
        try:
            rows = declaration.declare()
        except (ValueError, TypeError) as refused:
            self.refused[str(refused)] += 1
            return
        table, place = table_of(rows.model), (declaration.schema, declaration.table)
        self._drop(place)
        names = created_names(table)
        if any(names & taken for other, taken in self._names.items() if other[0] == place[0]):
            reject()  # two tables of one application would not be called so
        for field in rows._table.fields.values():
            assert self._contexts.setdefault(field.context, place) == place, "two tables have the same default context"
        with self.database.engine.begin() as connection:
            create(connection, declaration, table)
        self._names[place] = names  # from here on it must be dropped
        self.held[place] = fill(self.database, declaration, rows)
        self.accepted += 1

    def _drop(self, place: tuple[str | None, str]) -> None:
        """Drop what an earlier example has left in this place, as one does that hypothesis makes smaller."""
        if place in self._names:
            with self.database.engine.begin() as connection:
                sa.Table(place[1], sa.MetaData(), schema=place[0]).drop(connection)
        self.held.pop(place, None)
        self._names.pop(place, None)

    def finish(self) -> None:
        """Take all tables through a rotation of both keys, the end of the older one, and a verification."""
        held, database = [*self.held.values()], self.database
        with database.engine.connect() as connection:
            check_declared(connection, held)
        report = rotate(database.engine, database.keys)
        rows = sum(len(each.records) for each in held)
        without = sum(each.declaration.form == "in place" for each in held)  # the row of each that has no value
        assert (report.done, report.quarantined, report.rows) == (True, 0, rows - without)
        assert retire(database.engine, database.keys, grace_days=0).floor == 2
        assert rotate_index_key(database.engine, database.keys).done
        with database.engine.connect() as connection:
            check_declared(connection, held)
            check_constraints(connection, held, floor=2)
        reports = verify(database.engine, database.keys)
        assert (rows, 0, 0) == tuple(
            sum(getattr(each, name) for each in reports) for name in ("rows", "failed", "unindexed")
        )
        for each in held:
            with database.transaction() as tx:
                read(tx.repository(each.rows), each)
            delete(database, each)


def run(database: Database, examples: int, *, chosen: int | None) -> Batch:
    """Take so many declarations through their lives, always the same ones without a seed."""
    batch = Batch(database)

    @given(declarations())
    def each(declaration: Declaration) -> None:
        batch.take(declaration)

    if chosen is None:
        settings(BASE, max_examples=examples, derandomize=True)(each)()
    else:
        seed(chosen)(settings(BASE, max_examples=examples)(each))()
    batch.finish()
    return batch


def test_what_is_accepted_works_to_the_end(database: Database) -> None:
    """Every accepted declaration is created, autogenerated, written, searched, rotated, retired and verified."""
    batch = run(database, SHORT, chosen=None)
    assert batch.accepted >= SHORT // 2
    assert batch.refused.total() > 0


def test_every_name_of_ours_is_one_for_a_column_too(database: Database) -> None:
    """As plain columns, as fields, as keys and as tables: no parameter, alias or attribute of ours meets them."""
    batch = Batch(database)
    plain = {name: Plain(type_="text") for name in INTERNAL}
    fields = {name: Field(kind=Kind.TEXT, normaliser="exact" if at % 3 else None) for at, name in enumerate(INTERNAL)}
    key, note = {"number": "integer"}, {"note": Field(kind=Kind.TEXT, normaliser="exact", is_unique=True)}
    batch.take(Declaration(schema=None, table="of_plain", key=key, fields=note, plain=plain))
    batch.take(Declaration(schema=None, table="of_fields", key=key, fields=fields, plain={}))
    one = "one class"
    batch.take(Declaration(schema=None, table="one_of_plain", key=key, fields=note, plain=plain, form=one))
    batch.take(Declaration(schema=None, table="one_of_fields", key=key, fields=fields, plain={}, form=one))
    parts = [INTERNAL[at : at + MOST_KEY_COLUMNS] for at in range(0, len(INTERNAL), MOST_KEY_COLUMNS)]
    for part in parts:
        batch.take(
            Declaration(schema=None, table=f"of_{part[0]}", key=dict.fromkeys(part, "text"), fields=note, plain={})
        )
    for name in ALIASES:
        batch.take(Declaration(schema="ours", table=name, key=key, fields=note, plain={}))
    assert (batch.refused.total(), batch.accepted) == (0, 4 + len(parts) + len(ALIASES))
    batch.finish()


@pytest.mark.long
@pytest.mark.parametrize("number", range(LONG_BATCHES))
def test_two_thousand_declarations(database: Database, number: int) -> None:
    """The same for 2,000 declarations by chance; a failure shows the seed of its batch."""
    chosen = secrets.randbelow(1 << 32)
    print(f"seed {chosen}")
    batch = run(database, LONG_BATCH, chosen=chosen)
    print(f"{batch.accepted} accepted, {batch.refused.total()} refused: {batch.refused.most_common()}")
    assert batch.accepted >= LONG_BATCH // 3
