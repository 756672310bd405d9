"""A long result is decoded while the server makes it; whatever goes wrong in its middle, the transaction is as after a short one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import bindparam, case, column, func, literal_column, select, text
from sqlalchemy.orm import Session

from voiceassist_db import Database, Patient, Repositories
from voiceassist_db.errors import BindingError, DecryptionError, TransactionFailedError, UnknownKeyVersionError
from voiceassist_db.prepared import CHUNK_ROWS, Prepared

PATIENTS = [Patient(patient_id=f"PT-{n:03d}", ssn=f"900-00-{n:04d}", name="Zoë") for n in range(4 * CHUNK_ROWS)]
MIDDLE = PATIENTS[2 * CHUNK_ROWS].patient_id
STOPS_AT = 2 * CHUNK_ROWS
STOPPED_ROWS = Prepared(
    select(
        column("n"),
        case((column("n") == bindparam("at"), func.pg_advisory_xact_lock_shared(literal_column("7")))),
        func.repeat(literal_column("'x'"), literal_column("500")),
    )
    .select_from(func.generate_series(literal_column("1"), bindparam("rows")).table_valued("n").render_derived())
    .order_by("n"),
    table="none",
)
"""The server makes the row ``at`` when nobody has the lock 7."""


@pytest.fixture
def tx(database: Database) -> Iterator[Repositories]:
    """Repositories in a transaction of a database with patients, whose statements have run once and will be streamed."""
    with database.transaction() as made:
        made.patients.add_many(PATIENTS)
        assert made.patients.page() == sorted(PATIENTS, key=lambda each: each.id)
    with database.transaction() as made:
        yield made


def damage(tx: Repositories, change: str) -> None:
    """Change the row in the middle behind the repository's back."""
    tx.session.execute(text(f"UPDATE patient_data SET {change} WHERE patient_id = :id"), {"id": MIDDLE})


def test_rows_arrive_while_the_server_makes_the_next(database: Database) -> None:
    """Who reads has the first of them before the server has the last; what is left is not cancelled."""
    with database.engine.connect() as connection, database.engine.connect() as holder:

        def first(given: Iterable[tuple[Any, ...]]) -> list[Any]:
            found = [row[0] for row in islice(given, 2)]
            holder.rollback()
            return found

        assert STOPPED_ROWS.read(connection, {"rows": 1, "at": STOPS_AT}, first) == [1]
        holder.execute(text("SELECT pg_advisory_xact_lock(7)"))
        connection.execute(text("SET lock_timeout = '20s'"))
        assert STOPPED_ROWS.read(connection, {"rows": 4 * CHUNK_ROWS, "at": STOPS_AT}, first) == [1, 2]
        assert connection.scalar(select(1)) == 1


def test_a_value_that_was_moved_leaves_the_transaction_usable(tx: Repositories) -> None:
    """It is found in the middle; the rest of the result is read and dropped, and the caller's transaction goes on."""
    damage(tx, "ssn_encrypted = (SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-000')")
    with pytest.raises(BindingError) as caught:
        tx.patients.page()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert tx.patients.get("PT-001").name == "Zoë"
    with pytest.raises(BindingError):
        tx.patients.get_many([each.patient_id for each in PATIENTS])


def test_a_value_that_does_not_open_is_the_servers_error(tx: Repositories) -> None:
    """The statement fails after rows of it were read: none of them is given."""
    damage(tx, "ssn_encrypted = set_byte(ssn_encrypted, 60, get_byte(ssn_encrypted, 60) # 1)")
    savepoint = tx.session.begin_nested()
    with pytest.raises(DecryptionError) as caught:
        tx.patients.page()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    savepoint.rollback()
    assert tx.patients.get("PT-001").name == "Zoë"


def test_a_version_that_nobody_has_is_told(tx: Repositories) -> None:
    """The key store is asked in the middle of a page, and the transaction goes on."""
    damage(tx, "key_version = 7")
    with pytest.raises(UnknownKeyVersionError, match="key version 7"):
        tx.patients.page()
    assert tx.patients.get("PT-001").name == "Zoë"


def test_a_lost_connection_is_our_error(database: Database) -> None:
    """For a long read as for a short one: no error of SQLAlchemy's or the driver's gets out."""
    with database.transaction() as first:
        first.patients.page()  # whose statement will be streamed from now on
    with pytest.raises(TransactionFailedError), database.transaction() as tx:
        session = tx.session
        assert isinstance(session, Session)
        session.connection().invalidate()
        with pytest.raises(Exception, match=".*") as raised:
            tx.patients.page()
    assert raised.type is TransactionFailedError
