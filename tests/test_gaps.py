"""What an encrypted table lacks, and what could change its rows, is reported, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, text

from voiceassist_db import Database, create_engine
from voiceassist_db.catalogue import changers, encrypted_tables
from voiceassist_db.checking import Verdict, check
from voiceassist_db.constraints import gaps
from voiceassist_db.errors import ConstraintError
from voiceassist_db.rotation import plan, rotate
from voiceassist_db.schema import complete_tables
from voiceassist_db.status import read_status

VISITS = """
CREATE TABLE visits (id bigint PRIMARY KEY, note_encrypted bytea, other text, key_version integer NOT NULL);
COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
"""


@pytest.fixture(scope="module")
def shared_engine(new_database: Callable[[str | None], URL], template: str) -> Iterator[Engine]:
    """An engine on a migrated database that no test of this module changes for the next one."""
    engine = create_engine(new_database(template))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(shared_engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are rolled back."""
    with shared_engine.connect() as made:
        yield made


ADDED = """
CREATE TABLE visits (id bigint PRIMARY KEY, other text);
INSERT INTO visits VALUES (1, 'before');
ALTER TABLE visits ADD note_encrypted bytea, ADD "Scan_encrypted" bytea, ADD key_version integer;
UPDATE visits SET key_version = 1;
COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
COMMENT ON COLUMN visits."Scan_encrypted" IS 'encrypted visits.scan as bytes';
"""
"""Encrypted columns on a table that existed, as Alembic's autogenerate adds them: without CHECK and without fillfactor."""

LACKING = [
    ("visits", "column note_encrypted has no CHECK", True),
    ("visits", "column Scan_encrypted has no CHECK", True),
    ("visits", "public.visits has no fillfactor", False),
]


def lacking(found: Any) -> list[tuple[str, str, bool]]:
    """Return what was found, each problem as far as it is known above."""
    starts = [problem for _, problem, _ in LACKING]
    return [(gap.table, next(each for each in starts if gap.problem.startswith(each)), gap.is_unsafe) for gap in found]


def test_columns_that_were_added_to_a_table_are_not_accepted_in_silence(database: Database) -> None:
    """Status, check and rotation name what is missing, with the statements that add it; afterwards nothing is missing."""
    with database.engine.begin() as connection:
        assert read_status(connection).gaps == ()
        connection.execute(text(ADDED))
    with database.engine.connect() as connection:
        assert lacking(read_status(connection).gaps) == LACKING
        lines = {line.detail: line for line in check(connection) if line.subject == "visits"}
        assert [each.verdict for each in lines.values()] == [Verdict.UNSAFE, Verdict.UNSAFE, Verdict.NOTE, Verdict.NOTE]
    assert lacking(plan(database.engine, database.keys).gaps) == LACKING
    assert lacking(rotate(database.engine, database.keys).gaps) == LACKING
    with database.engine.begin() as connection:
        for line in lines.values():
            if line.remedy.startswith("ALTER"):
                connection.execute(text(line.remedy))
    with database.engine.connect() as connection:
        assert read_status(connection).gaps == ()
        for value in (b"123-45-6789", b"\xc3\x0c"):
            with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
                connection.execute(text('UPDATE visits SET "Scan_encrypted" = :value'), {"value": value})


def test_a_migration_completes_what_it_has_added(database: Database) -> None:
    """One call, which may be made again, adds all of it; a renamed table keeps its constraints, and lacks nothing."""
    with database.engine.begin() as connection:
        connection.execute(text(ADDED))
        assert lacking(complete_tables(connection)) == LACKING
        assert complete_tables(connection) == []
        connection.execute(text("ALTER TABLE visits RENAME TO calls"))
        assert complete_tables(connection) == []


def test_plaintext_in_an_encrypted_column_is_found_when_its_check_is_added(database: Database) -> None:
    """The constraint is not called complete while a row does not comply."""
    with database.engine.begin() as connection:
        connection.execute(text(ADDED))
        connection.execute(text("UPDATE visits SET note_encrypted = '123-45-6789'"))
    with database.engine.connect() as connection, pytest.raises(ConstraintError, match="visits_note_encrypted_format"):
        complete_tables(connection)


def test_each_partition_has_a_fillfactor_of_its_own(connection: Connection) -> None:
    """The partitioned table has no pages, so that only its partitions are named."""
    connection.execute(
        text(
            """
            CREATE TABLE visits (id bigint PRIMARY KEY, note_encrypted bytea, key_version integer NOT NULL) PARTITION BY HASH (id);
            CREATE TABLE visits_0 PARTITION OF visits FOR VALUES WITH (MODULUS 2, REMAINDER 0) WITH (fillfactor = 75);
            CREATE TABLE visits_1 PARTITION OF visits FOR VALUES WITH (MODULUS 2, REMAINDER 1);
            COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
            """
        )
    )
    (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
    assert [gap.problem.partition(" has no ")[0] for gap in gaps(connection, table)] == [
        "column note_encrypted",
        "public.visits_1",
    ]
    complete_tables(connection)
    assert gaps(connection, table) == []


def test_triggers_that_can_change_a_row_are_reported(connection: Connection) -> None:
    """One that sets the key makes values unreadable; one that could is noted; one that only looks is not."""
    connection.execute(text(VISITS))
    connection.execute(
        text(
            """
            CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.other = 'x'; RETURN NEW; END $$;
            CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW."id" \\:= 7; RETURN NEW; END $$;
            CREATE TRIGGER stamps BEFORE UPDATE ON visits FOR EACH ROW EXECUTE FUNCTION stamp();
            CREATE TRIGGER renumbers BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION renumber();
            CREATE TRIGGER looks AFTER UPDATE ON visits FOR EACH ROW EXECUTE FUNCTION stamp();
            CREATE TRIGGER once BEFORE UPDATE ON visits FOR EACH STATEMENT EXECUTE FUNCTION stamp();
            CREATE TRIGGER deletes BEFORE DELETE ON visits FOR EACH ROW EXECUTE FUNCTION stamp();
            CREATE TRIGGER off BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION stamp();
            ALTER TABLE visits DISABLE TRIGGER off;
            CREATE RULE elsewhere AS ON INSERT TO visits WHERE NEW.id = 0 DO INSTEAD NOTHING;
            """
        )
    )
    (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
    assert [(each.what, each.sets_key) for each in changers(connection, table)] == [
        ("the rule elsewhere", False),
        ("the trigger renumbers", True),
        ("the trigger stamps", False),
    ]
    lines = [
        (line.verdict, line.detail)
        for line in check(connection)
        if line.subject == "visits" and "the " in line.detail[:4]
    ]
    assert [verdict for verdict, _ in lines] == [Verdict.NOTE, Verdict.UNSAFE, Verdict.NOTE]


def test_a_plain_column_beside_the_encrypted_one_is_reported(connection: Connection) -> None:
    """A table that is being moved to encryption is rotated, and nobody forgets what still stands in it."""
    connection.execute(text(VISITS + 'ALTER TABLE visits ADD "Note" text'))
    details = [line.detail for line in check(connection) if line.subject == "visits"]
    assert any(each.startswith("the column Note stands beside") for each in details)
