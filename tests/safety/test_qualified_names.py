"""No statement of ours lets the search path, and so whoever may create something in it, decide what a name means."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg._queries import PostgresQuery
from sqlalchemy import bindparam, column, func, select
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import Session

from tests.repositories import test_in_place as in_place
from tests.repositories import test_server_keys as server_keys
from tests.safety.names import looked_up
from voiceassist_db import AsyncDatabase, ClinicalNote, Database, Patient, create_async_engine
from voiceassist_db.checking import check
from voiceassist_db.importing import import_patients
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.models import REGISTRY_ROWS, PatientRow
from voiceassist_db.prepared import Prepared
from voiceassist_db.provisioning import Roles, statements
from voiceassist_db.qualified import compiled
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key
from voiceassist_db.schema import allow_direct_format, require_bound_format
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

TABLES = frozenset(
    (
        *("patient_data", "clinical_notes", *in_place.Base.metadata.tables, *server_keys.METADATA.tables),
        *("voiceassist_version", "alembic_version", *(row.__tablename__ for row in REGISTRY_ROWS)),
    )
)
"""Tables are found by the search path, as the application's own are."""

SYSTEM_PATH = "pg_catalog, pg_temp"

SQLALCHEMYS = {"select current_schema()"}
"""What SQLAlchemy asks on an engine's first connection, before ours has looked at it."""


class Recorder:
    """Keeps the text of each statement that is sent, unless its names are looked up in the system's schema only.

    Attributes:
        sent: The statements, as the server gets them.
    """

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self._path = ""

    def keep(self, sql: bytes, parameters: Any) -> None:
        """Keep a statement."""
        statement = sql.decode()
        if isinstance(parameters, dict) and "search_path" in statement:
            self._path = parameters.get("path", self._path)
        if self._path != SYSTEM_PATH and statement not in SQLALCHEMYS:
            self.sent.add(statement)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder of all that psycopg sends in the test, whatever the way of execution."""
    made = Recorder()
    convert = PostgresQuery.convert

    def kept(query: Any, sql: Any, parameters: Any) -> None:
        convert(query, sql, parameters)
        made.keep(query.query, parameters)

    monkeypatch.setattr(PostgresQuery, "convert", kept)
    return made


def read_and_write(database: Database) -> None:
    """Call each method of the repositories."""
    with database.transaction() as tx:
        one, *others = [
            Patient(patient_id=f"PT-{n}", ssn=f"12345678{n}", mrn=f"M{n}", name=f"Name {n}", address={"city": "Ulm"})
            for n in range(5)
        ]
        tx.patients.add(one)
        tx.patients.add_many(others)
        tx.clinical_notes.add(ClinicalNote(patient=one.id, note="a note"))
        assert tx.patients.get("PT-0").ssn == "123456780"
        assert len(tx.patients.get_many(["PT-1", "PT-2"])) == 2
        assert len(tx.patients.page(after=one, limit=2)) == 2
        assert len(tx.patients.page(limit=900)) == 5
        assert tx.patients.find_by_mrn("M3") == others[2]
        assert tx.patients.with_mrns(["M3", "M4"])
        assert tx.patients.find_by_ssn("123-45-6780")
        assert tx.patients.find_by_name("NAME 1")
        assert tx.patients.find(name="name 1", ssn="123456781", mrn=["M1", "M2"])
        assert len(tx.patients.select(order_by=PatientRow.patient_id.desc(), after=("PT-3", others[2].id))) == 3
        last = tx.patients.get("PT-3")
        assert len(tx.patients.select(order_by=[PatientRow.created_at, PatientRow.patient_id.desc()], after=last)) == 3
        assert (tx.patients.count(), tx.patients.exists()) == (5, True)
        note = tx.clinical_notes.of_patient(one.id)[0]
        assert tx.clinical_notes.of_patient(one.id, after=note) == []
        tx.clinical_notes.update(one.id, note.id, note="another", metadata={"by": "me"})
        tx.patients.update("PT-1", name="Another", ssn="999999999")
        tx.patients.update("PT-1", **dict.fromkeys(("ssn", "mrn", "name", "date_of_birth", "address")))
        tx.patients.delete("PT-4")


def read_and_write_other_forms(database: Database) -> None:
    """Do the same in a table with encrypted columns in place, and in tables whose keys the server makes."""
    with database.transaction() as tx:
        assert isinstance(tx.session, Session)
        tx.session.add(in_place.Person(phone="1"))
        persons = tx.repository(in_place.PersonSecrets)
        assert persons.get(1).ssn is None
        persons.update(1, ssn="123456789")
        assert persons.find(ssn="123456789")
        kinds: tuple[Any, ...] = (server_keys.Numbered, server_keys.Always, server_keys.Drawn)
        for kind in kinds:
            rows = tx.repository(kind)
            assert rows.get(rows.add(kind(note="a note"))).note == "a note"
            assert rows.add_many([kind(note="a note"), kind()]) == 2


def run_everything(database: Database) -> None:
    """Do what the package can do in a database, in this process."""
    read_and_write(database)
    read_and_write_other_forms(database)
    import_patients(database, io.BytesIO(b"patient_id,ssn,mrn,name\nPT-9,123-45-6789,M9,Zoe\nPT-10,,M0,Max\n"))
    plan(database.engine, database.keys)
    assert rotate(database.engine, database.keys).done
    assert verify(database.engine, database.keys)
    retire(database.engine, database.keys, grace_days=0)
    rotate_index_key(database.engine, database.keys)
    with database.engine.begin() as connection:
        allow_direct_format(connection)
        require_bound_format(connection)
        read_status(connection)
        check(connection)
        statements(connection, Roles())
        initialise_keys(database.keys.provider, connection)


@pytest.mark.wide
def test_every_statement_that_is_sent_names_its_schemas(recorder: Recorder, database: Database) -> None:
    """Functions, types, operators and collations, in all that the package does; tables are the application's."""
    in_place.Base.metadata.create_all(database.engine)
    server_keys.METADATA.create_all(database.engine)
    recorder.sent.clear()
    run_everything(database)
    assert len(recorder.sent) > 80
    assert {sql: found for sql in recorder.sent if (found := list(looked_up(sql, tables=TABLES)))} == {}


async def test_every_statement_of_an_event_loop_names_its_schemas(
    recorder: Recorder, database: Database, database_url: sa.URL
) -> None:
    """The same statements go through another cursor there."""
    made = AsyncDatabase(create_async_engine(database_url), database.keys.provider)
    async with made, made.transaction() as tx:
        await tx.run(lambda tx: tx.patients.add(Patient(patient_id="PT-1", ssn="123456789")))
        await tx.run(lambda tx: tx.patients.add_many([Patient(patient_id="PT-2")]))
        assert await tx.run(lambda tx: tx.patients.get("PT-1").ssn) == "123456789"
    assert len(recorder.sent) > 5
    assert {sql: found for sql in recorder.sent if (found := list(looked_up(sql, tables=TABLES)))} == {}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT lower('A')", "function lower"),
        ("SELECT 'A'::text", "type text"),
        ("SELECT CAST($1 AS uuid[])", "type uuid"),
        ("SELECT 1 = 1", "operator ="),
        ("SELECT 1 = ANY (ARRAY[1])", "operator ="),
        ("SELECT (1, 2) > (1, 1)", "operator >"),
        ("SELECT 1 IN (1, 2)", "operator of AEXPR_IN"),
        ("SELECT 1 IN (SELECT 1)", "operator of IN (SELECT …)"),
        ("SELECT 1 IS DISTINCT FROM 2", "operator of AEXPR_DISTINCT"),
        ("SELECT nullif(1, 2)", "operator of AEXPR_NULLIF"),
        ("SELECT 'a' LIKE 'b'", "operator of AEXPR_LIKE"),
        ("SELECT 1 BETWEEN 2 AND 3", "operator of AEXPR_BETWEEN"),
        ("SELECT CASE 1 WHEN 1 THEN 2 END", "operator of CASE with a value"),
        ("SELECT FROM pg_catalog.a JOIN pg_catalog.b USING (c)", "operator of JOIN USING"),
        ("SELECT 1 FROM pg_class", "table pg_class"),
        ("SELECT 'a' COLLATE \"C\"", "collation C"),
    ],
)
def test_a_name_without_a_schema_is_found(sql: str, expected: str) -> None:
    """Otherwise the two tests above would prove nothing."""
    assert list(looked_up(sql)) == [expected]


VALUE = column("value", sa.Text)


@pytest.mark.parametrize(
    "condition",
    [
        VALUE.in_(["a", "b"]),
        VALUE.not_in(["a"]),
        VALUE.like("a%"),
        VALUE.ilike("a%"),
        VALUE.startswith("a"),
        VALUE.endswith("a"),
        VALUE.contains("a"),
        VALUE.icontains("a"),
        VALUE.between("a", "b"),
        VALUE.is_distinct_from("a"),
        VALUE.is_not_distinct_from("a"),
        VALUE.regexp_match("a"),
        sa.case({"a": 1}, value=VALUE) == 1,
    ],
    ids=str,
)
def test_what_cannot_name_its_schema_is_not_compiled(condition: Any) -> None:
    """So nobody can write such a statement unawares."""
    with pytest.raises(CompileError, match="search path decides"):
        compiled(select(VALUE).where(condition))


@pytest.mark.parametrize(
    "expression",
    [
        func.lower(VALUE),
        func.count(),
        func.coalesce(VALUE, "a"),
        VALUE + "b",
        VALUE.concat("b").concat("c") == "abc",
        sa.cast(VALUE, JSONB)["a"],
        sa.cast(VALUE, TSVECTOR),
        sa.cast(VALUE, sa.ARRAY(sa.Date)),
        sa.cast(VALUE, sa.ARRAY(sa.Uuid, dimensions=2)),
        sa.tuple_(VALUE, VALUE) > sa.tuple_(bindparam("a"), bindparam("b")),
        sa.tuple_(VALUE, VALUE).in_(select(VALUE, VALUE)),
        VALUE == sa.any_(sa.cast(bindparam("a"), sa.ARRAY(sa.Text))),
        ~((VALUE == "a") & (VALUE != "b")) | (VALUE > "c"),
        -sa.cast(VALUE, sa.Integer) * 2 + 1,
        func.count().filter(VALUE == "a"),
        sa.exists().where(VALUE == "a"),
    ],
    ids=str,
)
def test_any_expression_that_compiles_names_its_schemas(expression: Any) -> None:
    """Whatever the construct of SQLAlchemy's."""
    assert list(looked_up(_numbered(compiled(select(expression))))) == []


def _numbered(made: Any) -> str:
    return str(made) % dict.fromkeys(made.binds, "$1")


ONE, TWO, THREE = (sa.literal_column(str(n), sa.Integer) for n in (1, 2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ONE + TWO * THREE,
        lambda: (ONE + TWO) * THREE,
        lambda: THREE - (TWO - ONE),
        lambda: (ONE + TWO == THREE) & (TWO * TWO > THREE),
        lambda: sa.cast("a", sa.Text).concat("b").concat("c") == "abc",
        lambda: ~(ONE == TWO),
        lambda: (ONE == TWO).is_(None),
        lambda: -ONE + TWO,
    ],
)
def test_parentheses_keep_the_meaning(database: Database, make: Callable[[], Any]) -> None:
    """OPERATOR() binds as tightly whatever the operator is: 1 + 2 * 3 would be 9."""
    expression = make()
    with database.engine.connect() as connection:
        expected = connection.scalar(select(expression))
        bound = dict(compiled(select(expression)).params)
        assert Prepared(select(expression), table="none").rows(connection, bound)[0][0] == expected
