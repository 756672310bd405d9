"""A rotation is exact on tables of every kind: no value, no other column and no row changes but in its ciphertext."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from tests.rotation.shapes import Shape, described, rotated, run
from voiceassist_db import Database, Patient, uuid7
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import RotationError, SchemaNotMigratedError
from voiceassist_db.keyring import Keyring, KeyringSource, register
from voiceassist_db.keys import Key
from voiceassist_db.models import Kind
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, plan, retire, rotate
from voiceassist_db.rotation.relations import relations_of
from voiceassist_db.rotation.statements import Part, Statements
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

KEYS: dict[str, tuple[dict[str, str], list[tuple[Any, ...]]]] = {
    "uuid": ({"id": "uuid"}, [(uuid7(),) for _ in range(50)]),
    "smallint": ({"id": "smallint"}, [(n,) for n in (-32768, -1, 0, 1, 32767)]),
    "integer": ({"id": "integer"}, [(n,) for n in (-(2**31), 0, 2**31 - 1)]),
    "bigint": ({"id": "bigint"}, [(n,) for n in (-(2**63), 0, 2**63 - 1)]),
    "text": (
        {"id": "text"},
        [(each,) for each in ("", "%", ":", "/", "a/b", "a%2Fb", "%25", "é:\r\n", '{a,"b"}', "NULL")],
    ),
    "varchar": ({"id": "varchar(40)"}, [(each,) for each in ("10%", " a ", "a:b/c%d", "'\\")]),
    "date": ({"id": "date"}, [(date(1, 1, 1),), (date(2024, 2, 29),), (date(9999, 12, 31),)]),
    "composite": (
        {"at": "text", "id": "uuid", "day": "date", "number": "integer"},
        [(at, UUID(int=7), date(2026, 1, 2), n) for at in ("a/b", "a", "%") for n in (-1, 0, 1)],
    ),
}


@pytest.mark.wide
@pytest.mark.parametrize("key", KEYS)
def test_primary_keys_of_every_type(database: Database, key: str) -> None:
    """Whatever type a row's key is of, its values stay bound to it."""
    columns, keys = KEYS[key]
    rotated(database, Shape(key=columns, keys=keys))


@pytest.mark.wide
def test_kinds_of_every_type(database: Database) -> None:
    """Text, bytes and all that is written as text, in its extremes, and rows of nothing but NULL."""
    samples: dict[Kind, list[Any]] = {
        Kind.TEXT: ["", "x", "Zoë\r\nNúñez", "\x7f"],
        Kind.BYTES: [b"", b"\x00", b"\xc3\x28", "é".encode()],
        Kind.DATE: [date(1, 1, 1), date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 31)],
        Kind.DATETIME: [datetime(2026, 1, 2, 3, 4, 5, n, tzinfo=UTC) for n in range(4)],
        Kind.INTEGER: [0, -1, 10**40, 7],
        Kind.DECIMAL: [Decimal("0.10"), Decimal("-1E+30"), Decimal(0), Decimal("12.50")],
        Kind.JSON: [{}, [], {"é": [None, 1.5, "a"]}, "text"],
    }
    rows: list[dict[str, Any]] = [{kind.value: values[n] for kind, values in samples.items()} for n in range(4)]
    nothing: dict[str, Any] = dict.fromkeys(rows[0])
    rotated(database, Shape(fields={kind.value: kind for kind in samples}, rows=[*rows, nothing]))


def test_rows_without_any_encrypted_value(database: Database) -> None:
    """Rows of NULL alone, more than two hundred a page, are under the new version as well."""
    rows: list[dict[str, Any]] = [{"note": None, "scan": None}]
    report = rotated(database, Shape(key={"id": "smallint"}, keys=[(n,) for n in range(2000)], rows=rows))
    assert report.rows == 2000


@pytest.mark.wide
def test_values_of_ten_megabytes(database: Database) -> None:
    """Values far outside of their row, compressible and not, stored in either way, are re-encrypted to the byte."""
    large: list[dict[str, Any]] = [
        {"note": "é\r\n" * 2_500_000, "scan": secrets.token_bytes(10_000_000)},
        {"note": "small", "scan": None},
    ]
    external = "ALTER TABLE visits ALTER scan_encrypted SET STORAGE EXTERNAL"
    rotated(database, Shape(keys=[(1,), (2,)], rows=large, then=external))


@pytest.mark.wide
def test_names_that_must_be_quoted(database: Database) -> None:
    """Mixed case, blanks, quotes, colons and percent signs in the names of schemas, tables and columns."""
    with database.engine.begin() as connection:
        run(connection, 'CREATE SCHEMA "Team: 100%"')
    fields = {"Note": Kind.TEXT, "a b": Kind.BYTES, "5%": Kind.TEXT, ":x": Kind.TEXT, "from": Kind.TEXT}
    rows: list[dict[str, Any]] = [{"Note": "a", "a b": b"b", "5%": "c", ":x": None, "from": "there"}]
    rotated(
        database,
        Shape(name='"Visits"'),
        Shape(name='"select"', key={'"Order"': "bigint", '"%s"': "text"}, keys=[(1, "a"), (2, "%")]),
        Shape(name='"visits of 2026: 5% ""off"""', fields=fields, rows=rows),
        Shape(name='"Team: 100%"."Visits"', fields=fields, rows=rows),
    )
    assert [0] * 6 == [each.failed for each in verify(database.engine, database.keys)]
    assert len(retire(database.engine, database.keys, grace_days=0).tables) == 6


def test_tables_of_another_team(database: Database) -> None:
    """Tables in other schemas, one named like ours, and rows of ours beside them."""
    with database.engine.begin() as connection:
        run(connection, "CREATE SCHEMA team; CREATE SCHEMA other")
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    report = rotated(database, Shape(name="team.patient_data"), Shape(name="team.visits"), Shape(name="other.visits"))
    assert report.rows == 901
    with database.transaction() as tx:
        assert tx.patients.get("PT-001").ssn == "123-45-6789"


def days(count: int) -> list[tuple[int, date]]:
    """Return primary keys of visits over six years."""
    return [(n, date(2021, 1, 1) + timedelta(days=7 * n)) for n in range(count)]


RANGE = """
CREATE SCHEMA archive;
CREATE TABLE archive.visits_old PARTITION OF visits FOR VALUES FROM (MINVALUE) TO ('2022-01-01');
CREATE TABLE visits_2022 PARTITION OF visits FOR VALUES FROM ('2022-01-01') TO ('2023-01-01') PARTITION BY HASH (visit);
CREATE TABLE visits_2022_a PARTITION OF visits_2022 FOR VALUES WITH (MODULUS 2, REMAINDER 0) WITH (fillfactor = 75);
CREATE TABLE visits_2022_b PARTITION OF visits_2022 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE "Visits 5%" (
    gone text, scan_encrypted bytea, plain text DEFAULT random(), key_version integer NOT NULL, day date NOT NULL,
    note_encrypted bytea, visit bigint NOT NULL
);
ALTER TABLE "Visits 5%" DROP COLUMN gone;
ALTER TABLE visits ATTACH PARTITION "Visits 5%" FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE visits_rest PARTITION OF visits DEFAULT;
CREATE TABLE visits_empty PARTITION OF visits FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
CREATE TABLE bills (id bigint PRIMARY KEY, visit bigint, day date, FOREIGN KEY (visit, day) REFERENCES visits);
"""
"""Partitions below partitions, in another schema, with columns in another order, without a row, and referred to."""


@pytest.mark.parametrize("workers", [1, 3])
def test_a_table_partitioned_by_range(database: Database, workers: int) -> None:
    """Every partition is rotated in its place, however deep, wherever and in whatever order its columns are."""
    shape = Shape(
        key={"visit": "bigint", "day": "date"},
        keys=days(260),
        options="PARTITION BY RANGE (day)",
        then=RANGE,
        filled="INSERT INTO bills SELECT visit, visit, day FROM visits",
    )
    rotated(database, shape, pace=Pace(workers=workers))
    with database.engine.connect() as connection:
        counts = connection.execute(text("SELECT tableoid::regclass::text, count(*) FROM visits GROUP BY 1")).all()
    assert len(counts) == 5


def test_each_partition_has_room_of_its_own(database: Database) -> None:
    """How many passes a relation needs follows from its own fillfactor: the partitioned table itself has none."""
    shape = Shape(key={"visit": "bigint", "day": "date"}, options="PARTITION BY RANGE (day)", then=RANGE)
    with database.engine.begin() as connection:
        shape.create(connection)
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        relations = relations_of(connection, table)
    assert sorted((each.table.table.name, each.fillfactor) for each in relations) == [
        ("Visits 5%", 100),
        ("visits_2022_a", 75),
        ("visits_2022_b", 100),
        ("visits_empty", 100),
        ("visits_old", 100),
        ("visits_rest", 100),
    ]
    assert {each.declared_name for each in relations} == {"visits"}


def test_a_table_partitioned_by_hash_in_another_schema(database: Database) -> None:
    """The table is in one schema, its partitions are in two."""
    with database.engine.begin() as connection:
        run(connection, "CREATE SCHEMA team")
    parts = """
    CREATE TABLE team.visits_0 PARTITION OF team.visits FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE visits PARTITION OF team.visits FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    """
    rotated(database, Shape(name="team.visits", options="PARTITION BY HASH (id)", then=parts))


def test_a_table_partitioned_by_key_version_is_refused(database: Database, provider: VaultKeyProvider) -> None:
    """Its rows would have to move: that is said before anything is changed, by a plan as well."""
    statements = """
    CREATE TABLE visits (id bigint, key_version integer, note_encrypted bytea, PRIMARY KEY (id, key_version)) PARTITION BY RANGE (id);
    CREATE TABLE visits_a PARTITION OF visits DEFAULT PARTITION BY LIST (key_version);
    COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
    """
    with database.engine.begin() as connection:
        run(connection, statements)
    stored = provider.fetch()
    for refused in (plan, rotate):
        with pytest.raises(RotationError, match="visits has key_version in its primary key"):
            refused(database.engine, database.keys)
    assert stored == provider.fetch()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM key_rotations")).scalar_one() == 0
        assert connection.execute(text("SELECT max(version) FROM encryption_keys")).scalar_one() == 1


def test_columns_and_indexes_that_a_team_adds_and_drops(database: Database) -> None:
    """A dropped column, a generated one, an expression index and other indexes: no row leaves its page for them."""
    changes = """
    ALTER TABLE visits ADD gone text DEFAULT 'x', ADD loud text GENERATED ALWAYS AS (upper(plain)) STORED;
    ALTER TABLE visits DROP COLUMN gone;
    ALTER TABLE visits ADD late integer DEFAULT 7;
    CREATE INDEX ON visits (lower(plain));
    CREATE INDEX ON visits (late) WHERE id > 100;
    """
    report = rotated(database, Shape(options="WITH (fillfactor = 75)", then=changes))
    assert report.hot_ratio == 1.0


def test_pages_without_room(database: Database) -> None:
    """A table that was filled to the brim is rotated all the same, only not in its place."""
    report = rotated(database, Shape(options="WITH (fillfactor = 100)"))
    assert report.hot_ratio is not None


def test_a_table_with_triggers(database: Database) -> None:
    """A team's own triggers see one change of each row, and may set columns and write elsewhere meanwhile."""
    triggers = """
    CREATE TABLE audit (id bigint, plain text);
    CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO audit VALUES (NEW.id, NEW.plain); RETURN NULL; END $$;
    CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.plain = OLD.plain; RETURN NEW; END $$;
    CREATE TRIGGER audited AFTER UPDATE ON visits FOR EACH ROW EXECUTE FUNCTION count_up();
    CREATE TRIGGER kept BEFORE UPDATE ON visits FOR EACH ROW EXECUTE FUNCTION leave();
    """
    rotated(database, Shape(then=triggers))
    with database.engine.connect() as connection:
        seen = connection.execute(text("SELECT count(*), count(DISTINCT id) FROM audit JOIN visits USING (id, plain)"))
        assert tuple(seen.one()) == (300, 300)


@pytest.fixture
def two_keys(database: Database, provider: VaultKeyProvider) -> Keyring:
    """The keys of a rotation that has begun, over a table of visits that has no row yet."""
    old = provider.fetch()
    new = replace(old, version=2, key=Key.generate(), previous_version=1, previous_key=old.key)
    provider.replace(old, new)
    with database.engine.begin() as connection:
        register(connection, new)
        Shape(key={"at": "text", "id": "bigint"}).create(connection)
        return KeyringSource(provider).keyring(connection)


STORABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
"""What PostgreSQL's text can hold."""


@pytest.mark.wide
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(STORABLE, max_size=20),
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.text(STORABLE),
            st.none() | st.binary(),
        ),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
def test_whatever_keys_and_values_are(
    database: Database, two_keys: Keyring, rows: list[tuple[str, int, str | None, bytes | None]]
) -> None:
    """Any text in a key and any value in a row come out of a batch as they went in, in their place under the new key."""
    assert two_keys.previous is not None
    before = Keyring(two_keys.previous, None, two_keys.index_keys)
    after = Keyring(two_keys.current, None, two_keys.index_keys)
    shape = Shape(keys=[row[:2] for row in rows], rows=[{"note": row[2], "scan": row[3]} for row in rows])
    with database.engine.connect() as connection:
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        shape.fill(connection, before, table)
        expected = described(connection, before, table)
        statements, window = Statements(table, two_keys), Part(0, 1000)
        done = sum(statements.reencrypt(connection, Part(0, 1000, 3, each)) for each in range(3))
        assert len(rows) == done
        assert expected == described(connection, after, table)
        assert (len(rows), 0) == statements.prove(connection, window)
        assert statements.old(connection, 1) == []
        connection.rollback()


DETACH = 'ALTER TABLE visits DETACH PARTITION "Visits 5%"; ALTER TABLE visits DETACH PARTITION archive.visits_old'
ATTACH = "ALTER TABLE visits ATTACH PARTITION \"Visits 5%\" FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')"


def test_partitions_that_stay_detached(database: Database) -> None:
    """The printed statements declare them: status, verify, rotation and retirement work, and they can be attached again."""
    shape = Shape(
        key={"visit": "bigint", "day": "date"}, keys=days(200), options="PARTITION BY RANGE (day)", then=RANGE
    )
    with database.engine.begin() as connection:
        shape.create(connection)
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        shape.fill(connection, database.keys.keyring(connection), table)
        run(connection, DETACH)
    with database.engine.connect() as connection, pytest.raises(SchemaNotMigratedError) as refused:
        read_status(connection)
    statements = re.findall(r"COMMENT ON COLUMN .+?';", str(refused.value))
    assert len(statements) == 4
    with database.engine.begin() as connection:
        run(connection, " ".join(statements))
    parts = ["Visits 5%", "archive.visits_old", "visits"]
    with database.engine.connect() as connection:
        counted = {name: sum(of.values()) for name, of in read_status(connection).tables.items() if name in parts}
    assert (list(counted), sum(counted.values()), min(counted.values()) > 10) == (parts, 200, True)
    report = rotate(database.engine, database.keys)
    assert (report.rows, report.remaining, report.verified) == (200, 0, True)
    with database.engine.connect() as connection:
        run(connection, ATTACH)
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        assert {"Visits 5%"} < {each.table.name for each in relations_of(connection, table)}
    assert set(parts) <= set(retire(database.engine, database.keys, grace_days=0).tables)
    found = {
        each.table: (each.rows, each.failed) for each in verify(database.engine, database.keys) if each.table in parts
    }
    assert found == {name: (count, 0) for name, count in counted.items()}


@pytest.mark.wide
def test_a_partition_that_is_attached_after_a_retirement(database: Database) -> None:
    """The table has a CHECK of the oldest key version since then. The printed statements give it to the partition, whichever it had."""
    shape = Shape(key={"visit": "bigint", "day": "date"}, keys=days(50), options="PARTITION BY RANGE (day)", then=RANGE)
    with database.engine.begin() as connection:
        shape.create(connection)
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        shape.fill(connection, database.keys.keyring(connection), table)
    for _ in range(2):  # without any such CHECK, and with that of the retirement before
        with database.engine.begin() as connection:
            run(connection, DETACH.partition(";")[0])
            run(connection, " ".join(re.findall(r"COMMENT ON COLUMN .+?';", str(undeclared(connection)))))
        rotate(database.engine, database.keys)
        retire(database.engine, database.keys, grace_days=0)
        with database.engine.begin() as connection:
            for field in ("note", "scan"):
                run(connection, f'COMMENT ON COLUMN "Visits 5%".{field}_encrypted IS NULL')
        with database.engine.connect() as connection, pytest.raises(psycopg.Error, match="constraint"):
            run(connection, ATTACH)
        with database.engine.begin() as connection:
            printed = re.search(r"bound to it: (ALTER TABLE .*?;) ALTER TABLE", str(undeclared(connection)))
            assert printed is not None
            run(connection, printed[1])
            run(connection, ATTACH)
    assert all(each.failed == 0 for each in verify(database.engine, database.keys))


def undeclared(connection: Connection) -> SchemaNotMigratedError:
    """Return the error of a partition that was detached."""
    with pytest.raises(SchemaNotMigratedError) as refused:
        encrypted_tables(connection)
    return refused.value
