"""A rotation turns no value into NULL: it rewrites a row exactly, or leaves it byte for byte, names it, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, null, text
from sqlalchemy.engine import URL

from tests.nulls.keyed import KEYS, SHORT_FIELDS, Table, run
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.pgcrypto import expressions
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, RotationReport, retire, rotate, rotate_index_key
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.verification import TableReport, verify

OPTIONS: Final = {
    "as they are": "",
    "others": "-c DateStyle=ISO,DMY -c TimeZone=Pacific/Kiritimati -c IntervalStyle=sql_standard -c bytea_output=escape "
    "-c array_nulls=off -c transform_null_equals=on -c extra_float_digits=-15 -c backslash_quote=on -c quote_all_identifiers=on",
}
"""Settings of the rotation's sessions."""

PARAMETERS: Final = [each if each == "" else pytest.param(each, marks=pytest.mark.wide) for each in OPTIONS.values()]
PATIENTS: Final = 30


@pytest.fixture(params=PARAMETERS, ids=list(OPTIONS))
def adopted(
    request: pytest.FixtureRequest, engine: Engine, database_url: URL, new_provider: Callable[..., VaultKeyProvider]
) -> Iterator[Database]:
    """A database of scheme ``direct`` with patients, whose sessions have such settings."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
    made = create_engine(database_url, connect_args={"options": request.param})
    with Database(made, provider) as database:
        with database.transaction() as tx:
            tx.patients.add_many(Patient(patient_id=f"PT-{n}", name=f"Zoë {n}") for n in range(PATIENTS))
        yield database
    made.dispose()


def filled(database: Database, tables: list[Table]) -> None:
    """Make tables, and fill them as a bare ``pgp_sym_encrypt`` does."""
    key = database.keys.provider.fetch().key.expose().decode()
    with database.engine.begin() as connection:
        for table in tables:
            table.create(connection)
            table.fill(connection, key)


def column_keys(database: Database, table: Table) -> dict[str, str]:
    """Return the current key of each field, which is of scheme ``bound``."""
    key = database.keys.provider.fetch().key
    return {each: key.derive(f"{table.name}.{each}").expose().decode() for each in table.fields}


def check_rotated(database: Database, table: Table, left: dict[int, Any]) -> None:
    """All is as it was: what is left byte for byte, the others under the new key, and none is NULL that was not."""
    others = [n for n in range(len(table.keys)) if n not in left]
    with database.engine.connect() as connection:
        assert table.nulls(connection) == table.absent()
        assert table.as_stored(connection, list(left)) == list(left.values())
        opened = table.opened(connection, column_keys(database, table), others)
        assert opened == {n: [table.bound(n, each) for each in table.fields] for n in others}


def stored(database: Database, table: Table, rows: list[int]) -> dict[int, Any]:
    """Return rows as they are."""
    with database.engine.connect() as connection:
        return dict(zip(rows, table.as_stored(connection, rows), strict=True))


def recorded(database: Database) -> set[tuple[str, str]]:
    """Return the tables of the rows that the newest runs put down, and how they failed."""
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT table_name, row_id, sqlstate FROM key_rotation_failures")).all()
    assert all(row.row_id for row in found)
    return {(row.table_name, row.sqlstate) for row in found}


def found_in(database: Database, table: Table) -> TableReport:
    """Return what verification finds in a table."""
    (report,) = (each for each in verify(database.engine, database.keys) if each.table == table.name)
    return report


def repair(connection: Connection, table: Table) -> None:
    """Give each row a key that Python can hold, as its administrator does."""
    for n in table.unheld():
        changes = [
            f"k{at} = CAST('20{10 + at}-01-01' AS date) + n" for at, each in enumerate(table.types) if each == "date"
        ]
        connection.execute(text(f"UPDATE {table.name} SET {', '.join(changes)} WHERE n = {n}"))


def check_quarantine(report: RotationReport, rows: int) -> None:
    """Everything is done but these rows."""
    assert (report.quarantined, report.remaining, report.verified) == (rows, rows, True)
    assert report.done_but_quarantined == (rows > 0)
    assert report.done == (rows == 0)


@pytest.mark.wide
def test_rows_whose_key_python_cannot_hold_are_left_and_named(adopted: Database) -> None:
    """From `direct` to `bound`; once their keys are corrected, they are rotated like the others."""
    check_quarantine_of(adopted, [Table("days", SHORT_FIELDS), Table("dated", SHORT_FIELDS, is_required=True)])


@pytest.mark.wide
@pytest.mark.parametrize("pages", [1, 512])
@pytest.mark.parametrize("is_required", [False, True], ids=["nullable", "required"])
def test_rows_of_every_type_of_key(
    adopted: Database, is_required: bool, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of tables of each type, and of each kind of value, whatever the pages are that a proof reads."""
    monkeypatch.setattr("voiceassist_db.rotation.work.PROOF_PAGES", pages)
    check_quarantine_of(adopted, [Table(each, is_required=is_required) for each in KEYS])


def check_quarantine_of(adopted: Database, tables: list[Table]) -> None:
    """Rotate tables, look which rows are left, correct their keys, and rotate these."""
    filled(adopted, tables)
    left = {table.name: stored(adopted, table, table.unheld()) for table in tables}
    report = rotate(adopted.engine, adopted.keys, pace=Pace(workers=2))
    check_quarantine(report, sum(map(len, left.values())))
    assert recorded(adopted) == {(name, "22008") for name, rows in left.items() if rows}
    for table in tables:
        check_rotated(adopted, table, left[table.name])
        found = found_in(adopted, table)
        assert (found.rows, found.failed) == (len(table.keys), len(table.unheld()))
        assert {each.field for each in found.failures} <= {f"k{at}" for at in range(len(table.types))}
    assert rotate_index_key(adopted.engine, adopted.keys).done
    with adopted.engine.begin() as connection:
        for table in tables:
            repair(connection, table)
    check_quarantine(rotate(adopted.engine, adopted.keys), 0)
    with adopted.engine.connect() as connection:
        assert all(table.nulls(connection) == table.absent() for table in tables)
    assert not any(each.failed for each in verify(adopted.engine, adopted.keys))
    with adopted.transaction() as tx:
        assert [each.name for each in tx.patients.page()] == [f"Zoë {n}" for n in range(PATIENTS)]


@pytest.mark.wide
@pytest.mark.parametrize("adopted", [""], indirect=True)
@pytest.mark.parametrize(
    "day",
    [
        "infinity",
        *(pytest.param(each, marks=pytest.mark.wide) for each in ("-infinity", "0044-03-15 BC", "12000-01-01")),
    ],
)
def test_a_bound_row_whose_key_became_infinite_is_left(adopted: Database, day: str) -> None:
    """From `bound` to `bound`: no value is proven there, so none is written; with its key back, the row is rotated."""
    table = Table("date", SHORT_FIELDS, only_held=True)
    filled(adopted, [table])
    assert rotate(adopted.engine, adopted.keys).done
    retire(adopted.engine, adopted.keys, grace_days=0)
    change = text("UPDATE kept_date SET k0 = CAST(:day AS date) WHERE n = 3")
    with adopted.engine.begin() as connection:
        connection.execute(change, {"day": day})
    left = stored(adopted, table, [3])
    check_quarantine(rotate(adopted.engine, adopted.keys), 1)
    check_rotated(adopted, table, left)
    assert [(each.row_id, each.field) for each in found_in(adopted, table).failures] == [(day, "k0")]
    with adopted.engine.begin() as connection:
        connection.execute(change, {"day": table.keys[3][0].sql})
    check_quarantine(rotate(adopted.engine, adopted.keys), 0)
    check_rotated(adopted, table, {})


@pytest.mark.wide
@pytest.mark.parametrize("adopted", [""], indirect=True)
def test_a_run_that_can_only_sweep_leaves_them_too(adopted: Database) -> None:
    """A run that is continued, with few rows left, goes from key to key."""
    tables = [Table(each, SHORT_FIELDS) for each in ("date", "dated")]
    filled(adopted, tables)
    first = rotate(adopted.engine, adopted.keys)
    with adopted.engine.begin() as connection:
        left = {
            table.name: dict(zip(table.unheld(), table.as_stored(connection, table.unheld()), strict=True))
            for table in tables
        }
    again = rotate(adopted.engine, adopted.keys)
    assert first.quarantined == again.quarantined > 0
    check_quarantine(again, again.quarantined)
    for table in tables:
        check_rotated(adopted, table, left[table.name])


# --- a fault in the expressions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adopted", [""], indirect=True)
def test_a_value_that_would_become_null_is_left(adopted: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the server to give NULL for a ciphertext, the row would not be written: the statement itself compares."""
    encrypt = expressions.encrypt

    def lossy(kind: Any, value: Any, key: Any) -> Any:
        return null() if "kept_uuid.scan" in str(value) else encrypt(kind, value, key)

    table = Table("uuid", SHORT_FIELDS)
    filled(adopted, [table])
    left = stored(adopted, table, [0, 1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(expressions, "encrypt", lossy)
        check_quarantine(rotate(adopted.engine, adopted.keys), 3)
    assert recorded(adopted) == {(table.name, "22004")}
    check_rotated(adopted, table, left)
    check_quarantine(rotate(adopted.engine, adopted.keys), 0)
    check_rotated(adopted, table, {})


@pytest.mark.parametrize("adopted", [""], indirect=True)
def test_what_the_server_cannot_say_proves_nothing(adopted: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that is NULL, neither true nor false, is a failure."""
    filled(adopted, [Table("uuid", SHORT_FIELDS)])
    monkeypatch.setattr("voiceassist_db.rotation.statements.is_bound_to_row", lambda table, field: null())
    report = rotate(adopted.engine, adopted.keys)
    assert (report.remaining, report.verified, report.done) == (0, False, False)
    monkeypatch.undo()
    assert rotate(adopted.engine, adopted.keys).done


# --- the index key ---------------------------------------------------------------------------------------------------------

NAMED: Final = """
CREATE TABLE named (day date PRIMARY KEY, name_encrypted bytea, name_index bytea, key_version integer NOT NULL);
COMMENT ON COLUMN named.name_encrypted IS 'encrypted named.name as text';
COMMENT ON COLUMN named.name_index IS 'blind index of named.name by name';
"""


@pytest.mark.parametrize("adopted", PARAMETERS, ids=list(OPTIONS), indirect=True)
def test_the_index_key_rotates_around_them(adopted: Database) -> None:
    """Rows with a value or a token are left and recorded, rows without any do not count, and all others get their token."""
    key = adopted.keys.provider.fetch().key.expose().decode()
    insert = text(
        "INSERT INTO named VALUES (CAST(:day AS date), pgcrypto.pgp_sym_encrypt(CAST(:name AS text), :key), CAST(:token AS bytea), 1)"
    )
    rows: dict[str, tuple[str | None, bytes | None]] = {
        "-infinity": ("Zoë", None),
        "0044-03-15 BC": ("Zoë", b"an older token"),
        "2026-01-02": ("Zoë", None),
        "2026-01-03": (None, None),
        "12000-01-01": (None, None),
        "infinity": ("Zoë", b"an older token"),
    }
    given = [{"day": day, "name": name, "token": token, "key": key} for day, (name, token) in rows.items()]
    with adopted.engine.begin() as connection:
        for statement in NAMED.strip().split("\n"):
            run(connection, statement)
        connection.execute(insert, given)
    report = rotate_index_key(adopted.engine, adopted.keys)
    assert (report.quarantined, report.remaining, report.done_but_quarantined) == (3, 3, True)
    with adopted.engine.connect() as connection:
        failures = connection.execute(text("SELECT row_id, sqlstate FROM key_rotation_failures")).all()
        tokens = connection.execute(text("SELECT name_index FROM named ORDER BY day")).scalars().all()
    assert set(failures) == {(day, "22008") for day in ("-infinity", "0044-03-15 BC", "infinity")}
    made = dict(zip(rows, tokens, strict=True))
    assert made.pop("2026-01-02") is not None
    assert made == {day: rows[day][1] for day in made}
