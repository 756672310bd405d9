"""A migration changes a column's type under live connections, which have their statements prepared for the type before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from sqlalchemy import URL, Column, Connection, Engine, Integer, MetaData, Numeric, Table, select, text

from voiceassist_db import AsyncDatabase, Database, Patient, Repositories, create_async_engine, create_engine
from voiceassist_db.errors import TransactionConflictError
from voiceassist_db.keys import KeyProvider
from voiceassist_db.prepared import Prepared

PREPARED_AFTER = 6
"""psycopg prepares a statement that was executed five times."""

NUMBERS = Table("numbers", MetaData(), Column("id", Integer, primary_key=True), Column("number", Numeric))


@pytest.fixture
def one(database_url: URL, provider: KeyProvider) -> Iterator[Database]:
    """A database with a single connection, which has some statements prepared."""
    with Database(create_engine(database_url, pool_size=1, max_overflow=0), provider) as made:
        with made.transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-001", name="Zoë"))
        for _ in range(PREPARED_AFTER):
            with made.transaction() as tx:
                read(tx)
                long_read(tx)
        yield made


def read(tx: Repositories) -> None:
    """Read the patient."""
    assert tx.patients.get("PT-001").name == "Zoë"


def long_read(tx: Repositories) -> None:
    """Read the patient as one of many."""
    assert [each.name for each in tx.patients.page()] == ["Zoë"]


def change_type(engine: Engine) -> None:
    """Change the type of a column that every read returns."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data ALTER COLUMN patient_id TYPE varchar(200)"))


@pytest.mark.parametrize("reads", [read, long_read])
def test_the_first_statement_of_a_transaction_is_tried_again(
    one: Database, engine: Engine, reads: Callable[[Repositories], None]
) -> None:
    """By itself: the transaction holds nothing that could be lost."""
    change_type(engine)
    with one.transaction() as tx:
        reads(tx)


def test_a_later_statement_says_that_the_transaction_may_be_tried_again(one: Database, engine: Engine) -> None:
    """And it can: the same connection has forgotten its plan."""

    def work() -> None:
        with one.transaction() as tx:
            tx.session.execute(text("SELECT 1"))
            read(tx)

    change_type(engine)
    with pytest.raises(TransactionConflictError, match="type was changed"):
        work()
    work()


def test_in_a_savepoint_the_rest_of_the_transaction_is_kept(one: Database, engine: Engine) -> None:
    """The rollback to the savepoint suffices."""
    change_type(engine)
    with one.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-002"))
        with pytest.raises(TransactionConflictError), tx.session.begin_nested():
            read(tx)
        read(tx)
    with one.transaction() as tx:
        assert len(tx.patients.page()) == 2


def test_on_a_connection_with_autocommit_it_is_tried_again(database: Database, engine: Engine) -> None:
    """Each statement is a transaction of its own there."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", name="Zoë"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        tx = database.using(connection)
        for _ in range(PREPARED_AFTER):
            read(tx)
        change_type(engine)
        read(tx)


async def test_in_asyncio_it_is_tried_again(database: Database, database_url: URL, provider: KeyProvider) -> None:
    """The same on an event loop."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", name="Zoë"))
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0)
    async with AsyncDatabase(engine, provider) as asynchronous:
        for number in range(2 * PREPARED_AFTER):
            if number == PREPARED_AFTER:
                change_type(database.engine)
            async with asynchronous.transaction() as tx:
                await tx.run(read)


def test_numbers_are_converted_by_the_type_that_they_have_now(engine: Engine) -> None:
    """Whatever type they had when the statement was executed first."""

    def numbers(connection: Connection) -> list[object]:
        return [row[1] for row in statement.rows(connection, {})]

    statement = Prepared(select(NUMBERS), table="numbers")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (id integer PRIMARY KEY, number numeric)"))
        connection.execute(text("INSERT INTO numbers VALUES (1, 1.5)"))
        assert repr(numbers(connection)) == repr([Decimal("1.5")])
        connection.execute(text("ALTER TABLE numbers ALTER COLUMN number TYPE double precision"))
        assert [type(each) for each in numbers(connection)] == [Decimal]
        assert statement.read(connection, {}, lambda rows: [type(row[1]) for row in rows]) == [Decimal]
