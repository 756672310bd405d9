"""Which tables are found in a database, told by nothing but their own comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL, Connection, Engine, text

from voiceassist_db import create_engine
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.models import EncryptedTable, Kind, PatientRow

THEIRS = """
CREATE TABLE {table} (
    visit bigint NOT NULL, day date NOT NULL, reason_encrypted bytea, scan_encrypted bytea, reason_index bytea,
    key_version integer NOT NULL, {key}
){options};
COMMENT ON COLUMN {table}.reason_encrypted IS 'encrypted {context}.reason as text';
COMMENT ON COLUMN {table}.scan_encrypted IS 'encrypted {context}.scan as bytes';
COMMENT ON COLUMN {table}.reason_index IS 'blind index of {context}.reason by exact';
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


def create(connection: Connection, table: str, *, key: str = "PRIMARY KEY (visit, day)", options: str = "") -> None:
    """Create another team's table, in plain SQL."""
    context = table.replace('"', "").replace(" ", "_")
    connection.execute(text(THEIRS.format(table=table, key=key, options=options, context=context)))


def found(connection: Connection) -> dict[str, EncryptedTable]:
    """Return what the catalogue finds, by name."""
    tables = encrypted_tables(connection)
    assert [each.name for each in tables] == sorted({each.name for each in tables})
    return {each.name: each for each in tables}


def described(connection: Connection) -> dict[str, list[str]]:
    """Return the columns, fields and indexes of what the catalogue finds, by name."""
    return {
        name: [
            *(f"{each.name} {each.type}" for each in table.table.c),
            *(str(dataclasses.astuple(each)) for each in table.fields.values()),
            *sorted(f"{each.name} {each.unique}" for each in table.table.indexes),
        ]
        for name, table in found(connection).items()
    }


def test_our_tables_are_found_as_the_models_declare_them(connection: Connection) -> None:
    """What is read from the database is what the model says: key, fields, kinds, contexts and indexes."""
    tables = found(connection)
    assert set(tables) == {"patient_data", "clinical_notes"}
    declared = EncryptedTable.of(PatientRow.__table__)  # type: ignore[arg-type]  # a declarative model's is a Table
    assert list(tables["patient_data"].fields) == list(declared.fields)
    for name, field in declared.fields.items():
        assert dataclasses.astuple(tables["patient_data"].fields[name]) == dataclasses.astuple(field)
    assert [each.name for each in tables["patient_data"].key] == ["id"]
    assert [each.name for each in tables["clinical_notes"].key] == ["patient", "id"]
    assert tables["clinical_notes"].version.name == "key_version"


def test_a_table_made_in_sql_is_found(connection: Connection) -> None:
    """Comments are all that it takes: no model of ours knows this table."""
    create(connection, "visits")
    theirs = found(connection)["visits"]
    fields = [
        (each.name, each.kind, [(index.column, index.normaliser) for index in each.indexes])
        for each in theirs.fields.values()
    ]
    assert fields == [("reason", Kind.TEXT, [("reason_index", "exact")]), ("scan", Kind.BYTES, [])]
    assert {each.context for each in theirs.fields.values()} == {"visits.reason", "visits.scan"}
    assert [each.name for each in theirs.key] == ["visit", "day"]


def test_a_table_of_another_schema_is_found_by_its_full_name(connection: Connection) -> None:
    """Also where its name is one of ours; and its context is its own, whatever the table is called."""
    for schema in ("A team", "team"):
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        create(connection, f'"{schema}".patient_data')
    tables = found(connection)
    assert set(tables) == {"patient_data", "clinical_notes", "A team.patient_data", "team.patient_data"}
    assert set(tables["team.patient_data"].fields) == {"reason", "scan"}


def test_tables_are_found_whatever_the_search_path(connection: Connection) -> None:
    """A session that looks elsewhere by default finds the same tables, each under a name that it can use."""
    connection.execute(text("CREATE SCHEMA team"))
    create(connection, "team.visits")
    connection.execute(text("SET LOCAL search_path = team"))
    tables = found(connection)
    assert len(tables) == 3
    for table in tables.values():
        assert connection.execute(table.table.select()).all() == []


def test_tables_are_found_where_every_name_is_quoted(connection: Connection) -> None:
    """`quote_all_identifiers` writes types in a way that SQLAlchemy does not know; afterwards it is on again."""
    create(connection, "visits")
    expected = described(connection)
    connection.execute(text("SET LOCAL quote_all_identifiers = on"))
    assert described(connection) == expected
    assert connection.scalar(text("SHOW quote_all_identifiers")) == "on"


def test_a_partitioned_table_is_found_once(connection: Connection) -> None:
    """The parent stands for its partitions, however deep."""
    create(connection, "visits", options=" PARTITION BY RANGE (day)")
    connection.execute(
        text(
            """
            CREATE TABLE visits_2026 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
                PARTITION BY RANGE (visit);
            CREATE TABLE visits_2026_a PARTITION OF visits_2026 FOR VALUES FROM (0) TO (1000);
            CREATE TABLE visits_rest PARTITION OF visits DEFAULT;
            """
        )
    )
    assert set(found(connection)) == {"patient_data", "clinical_notes", "visits"}


@pytest.mark.parametrize(
    "comment", [None, "the reason", "encrypted", "encrypted visits.reason", "encrypted visits.reason as text, mostly"]
)
def test_a_column_that_only_looks_encrypted_is_never_passed_over(connection: Connection, comment: str | None) -> None:
    """Its name promises encryption, so without the exact declaration it is an error that names it."""
    create(connection, "visits")
    literal = "NULL" if comment is None else f"'{comment}'"
    connection.execute(text(f"COMMENT ON COLUMN visits.scan_encrypted IS {literal}"))
    with pytest.raises(SchemaNotMigratedError, match=r"visits\.scan_encrypted: named as encrypted"):
        encrypted_tables(connection)


def test_an_undeclared_column_of_another_schema_is_named_in_full(connection: Connection) -> None:
    """Every such column of every schema is in the message."""
    connection.execute(text("CREATE SCHEMA team"))
    connection.execute(text("CREATE TABLE team.a (x_encrypted bytea)"))
    connection.execute(text("CREATE TABLE b (y_encrypted bytea)"))
    with pytest.raises(SchemaNotMigratedError, match=r"^b\.y_encrypted, team\.a\.x_encrypted: "):
        encrypted_tables(connection)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("ALTER TABLE visits DROP COLUMN key_version", "key_version"),
        ("ALTER TABLE visits DROP CONSTRAINT visits_pkey", "primary key"),
        (
            "ALTER TABLE visits DROP CONSTRAINT visits_pkey, ADD COLUMN at timestamptz, ADD PRIMARY KEY (at)",
            "primary key of type",
        ),
        ("COMMENT ON COLUMN visits.scan_encrypted IS 'encrypted visits.scan as picture'", "picture"),
        ("ALTER TABLE visits RENAME COLUMN scan_encrypted TO scan", "'scan'"),
        ("COMMENT ON COLUMN visits.reason_index IS 'blind index of visits.reason by date'", "normaliser date is for"),
    ],
)
def test_a_declaration_that_cannot_be_followed_is_our_error(connection: Connection, change: str, why: str) -> None:
    """Whatever is wrong with a team's table, a command says so in a line, and does not skip the table."""
    create(connection, "visits")
    connection.execute(text(change))
    with pytest.raises(SchemaNotMigratedError, match=why) as refused:
        encrypted_tables(connection)
    assert "visits" in str(refused.value)


def test_what_is_not_ours_to_rotate_is_ignored(connection: Connection) -> None:
    """Temporary tables, views, other types, other names and a comment that happens to begin alike are no concern."""
    connection.execute(
        text(
            """
            CREATE TEMPORARY TABLE scratch (x_encrypted bytea);
            CREATE VIEW seen AS SELECT ssn_encrypted FROM patient_data;
            CREATE MATERIALIZED VIEW kept AS SELECT ssn_encrypted FROM patient_data;
            CREATE TABLE fernet (x_encrypted text);
            CREATE TABLE notencrypted (xencrypted bytea, encrypted bytea);
            CREATE TABLE remark (blob bytea);
            COMMENT ON COLUMN remark.blob IS 'encrypted by somebody, somehow';
            CREATE TABLE dropped (x_encrypted bytea, y integer);
            ALTER TABLE dropped DROP COLUMN x_encrypted;
            """
        )
    )
    assert set(found(connection)) == {"patient_data", "clinical_notes"}


def test_a_renamed_table_keeps_its_context(connection: Connection) -> None:
    """The comment, not the name, says what values are bound to, so that they still open after a rename."""
    connection.execute(text("ALTER TABLE clinical_notes RENAME TO notes_2026"))
    fields = found(connection)["notes_2026"].fields
    assert [each.context for each in fields.values()] == ["clinical_notes.note", "clinical_notes.metadata"]
