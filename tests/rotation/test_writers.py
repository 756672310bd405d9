"""Sixteen writers beside rotation after rotation: whatever was acknowledged is there, and right, and nobody was disturbed.

The trial proves itself on engines that are broken on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
from sqlalchemy import URL, Connection, and_, select, true, update

from tests.rotation.writers import ROWS_EACH, Trial, Writer
from voiceassist_db import Database, create_engine
from voiceassist_db.pgcrypto.expressions import column_key, reencrypt
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation.statements import Key, Part, Statements
from voiceassist_db.rotation.work import Work

pytestmark = pytest.mark.wide

WRITERS: Final = 16


@pytest.fixture
def trial(database: Database, database_url: URL, new_provider: Callable[..., VaultKeyProvider]) -> Iterator[Trial]:
    """A database with rows that each belong to one of the writers."""
    with ExitStack() as stack:
        writers = []
        for number in range(WRITERS):
            engine = create_engine(database_url, pool_size=1, max_overflow=0)
            writer = Writer(number, stack.enter_context(Database(engine, new_provider())))
            writer.patients = {each.id: each for each in (writer.patient() for _ in range(ROWS_EACH))}
            writers.append(writer)
        # Row after row of another writer, so that each page is everybody's.
        with database.transaction() as tx:
            each_ones = (each.patients.values() for each in writers)
            tx.patients.add_many(patient for row in zip(*each_ones, strict=True) for patient in row)
        yield Trial(database, new_provider(), writers)


@pytest.mark.parametrize("seconds", [3.0, pytest.param(600.0, marks=pytest.mark.long)])
def test_every_acknowledged_write_outlives_rotation_after_rotation(trial: Trial, seconds: float) -> None:
    """No write is lost, no read fails, no writer gets an error, and no row is under a dead version in the end."""
    assert trial.run(seconds) == []
    assert all(each.transactions > 10 for each in trial.writers)


def without_guard(patch: pytest.MonkeyPatch) -> None:
    """An engine that takes every row for one under the older version."""
    patch.setattr(Statements, "_is_old", property(lambda statements: true()))


def computing_ahead(patch: pytest.MonkeyPatch) -> None:
    """An engine that reads, encrypts and writes in separate statements, as one in the application would; it keeps the guard."""

    def reencrypt_part(
        self: Statements,
        connection: Connection,
        part: Part,
        *,
        skip_locked: bool = False,
        nap_share: float = 0.0,
        **_: Any,
    ) -> int:
        return reencrypt_given(self, connection, self.old_of(connection, part))

    def reencrypt_given(
        self: Statements, connection: Connection, keys: list[Key], *, skip_locked: bool = True, **_: Any
    ) -> int:
        table, keyring = self._table, self._keyring
        assert keyring.previous is not None
        new = {
            each.column: reencrypt(
                table,
                each,
                column_key(table, each, "previous"),
                keyring.previous.scheme,
                column_key(table, each, "current"),
            ).label(each.column)
            for each in table.fields.values()
        }
        read = self._prepare(select(*table.key, *new.values()).where(self._is_given(), self._is_old))
        rows = read.rows(connection, self._keys | self._keys_of(keys))
        time.sleep(0.02)
        for row in rows:
            is_row = and_(*(column == value for column, value in zip(table.key, row, strict=False)))
            values = dict(zip(new, row[len(table.key) :], strict=True)) | {"key_version": keyring.current.version}
            guarded = update(table.table).where(is_row, table.version == keyring.previous.version)
            connection.execute(guarded.values(values))
        return len(rows)

    patch.setattr(Statements, "reencrypt", reencrypt_part)
    patch.setattr(Statements, "reencrypt_given", reencrypt_given)


def without_sweep(patch: pytest.MonkeyPatch) -> None:
    """An engine that leaves what it had to skip, and what was added meanwhile."""
    patch.setattr(Work, "sweep", lambda work: 0)


@pytest.mark.parametrize(
    ("break_", "finding"),
    [
        (without_guard, "sound rows were quarantined"),
        (computing_ahead, "something else than it had written"),
        (without_sweep, "rows are left over"),
    ],
)
def test_the_trial_finds_a_broken_engine(
    trial: Trial, break_: Callable[[pytest.MonkeyPatch], None], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that loses writes, or rows, does not get through: what is asserted above is worth something."""
    break_(monkeypatch)
    findings = trial.run(10.0)
    assert [each for each in findings if finding in each], findings
