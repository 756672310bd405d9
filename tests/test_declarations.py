"""What cannot work is refused when it is declared, and says what to do; what is refused in a database names table and column."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column
from sqlalchemy.sql.elements import quoted_name

from tests.declarations.strategies import HAS_STORAGE_OPTIONS
from voiceassist_db import Database, Record, Repository, create_engine, record, uuid7
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.models import EncryptedRow, Kind, PatientRow, blind_index_column, encrypted_column, table_of
from voiceassist_db.models.declaration import declared_tables, floor_constraint, format_constraint
from voiceassist_db.models.names import NAME_BYTES, default_context, fitted

SSN = {"ssn_encrypted": encrypted_column(Kind.TEXT)}


def model(
    columns: dict[str, Any] | None = None,
    *,
    name: str = "visits",
    schema: str | None = None,
    key: Any = None,
    args: Any = None,
    bases: tuple[type, ...] = (EncryptedRow,),
) -> type[DeclarativeBase]:
    """Return a model of a base of its own."""
    base: Any = type("OwnBase", (DeclarativeBase,), {})
    body: dict[str, Any] = {"__tablename__": name, "__module__": __name__}
    body["id"] = mapped_column(sa.Uuid, primary_key=True) if key is None else key
    if columns is None:
        columns = {"ssn_encrypted": encrypted_column(Kind.TEXT)}
    options = {"schema": schema} if schema else {}
    if args is not None or options:
        body["__table_args__"] = (*(args or ()), options)
    made: type[DeclarativeBase] = type("Row", (*bases, base), body | columns)
    return made


def repository(row: type[DeclarativeBase], fields: dict[str, Any], *, lookup: tuple[str, ...] = ()) -> Any:
    """Return a repository of a model and of a record with these fields."""
    made: Any = record(type("Visit", (Record,), {"__annotations__": fields, "__module__": __name__}))
    return type("Visits", (Repository,), {"model": row, "record": made, "lookup": lookup})


def plain(type_: Any = sa.Text, *args: Any, **options: Any) -> MappedColumn[Any]:
    """Return an ordinary column."""
    return mapped_column(type_, *args, **{"nullable": True} | options)


def ssn(**options: Any) -> MappedColumn[Any]:
    """Return an encrypted column of text."""
    return encrypted_column(Kind.TEXT, **options)


def declare(
    columns: dict[str, Any] | None = None,
    *,
    lookup: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """Declare a model with these columns, a record of all that it needs, and their repository."""
    row = model(columns, **options)
    names = [
        each.name for each in table_of(row).c if each.name not in {"key_version", "created_at", "updated_at", *without}
    ]
    fields = [name.removesuffix("_encrypted") for name in names if not name.endswith("_index")]
    repository(row, dict.fromkeys(fields, Any), lookup=lookup)


# --- the model ------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a plain column beside the encrypted one": (
        lambda: declare({"ssn": plain(), "ssn_encrypted": ssn()}),
        "field ssn and the column ssn share a name",
    ),
    "and in other case": (lambda: declare({"SSN": plain(), "ssn_encrypted": ssn()}), "column SSN share a name"),
    "a field like the version": (lambda: declare({"key_version_encrypted": ssn()}), "column key_version share"),
    "a field like a token": (
        lambda: declare({"a_encrypted": ssn(), "a_index": blind_index_column("exact"), "a_index_encrypted": ssn()}),
        "column a_index share a name",
    ),
    "an unknown normaliser": (
        lambda: blind_index_column("fax"),
        "no normaliser 'fax'; there are date, email, exact, integer, mrn",
    ),
    "a part of another form": (lambda: blind_index_column("name:0"), "no normaliser 'name:0'"),
    "a part that is unique": (lambda: blind_index_column("name:3", unique=True), "compares a part of values only"),
    "an unknown kind": (lambda: encrypted_column("phone"), "'phone' is not a valid Kind"),  # type: ignore[arg-type]
    "an index of no field": (
        lambda: declare({"ssn_encrypted": ssn(), "mrn_index": blind_index_column("mrn")}),
        "mrn_index is the blind index of visits.mrn, but no encrypted column",
    ),
    "two indexes of one field": (
        lambda: declare(
            {
                "ssn_encrypted": ssn(),
                "ssn_index": blind_index_column("ssn"),
                "other_index": blind_index_column("exact", context="visits.ssn"),
            }
        ),
        "other_index and ssn_index are both the blind index",
    ),
    "an index of a moment": (
        lambda: declare({"at_encrypted": encrypted_column(Kind.DATETIME), "at_index": blind_index_column("date")}),
        "at has a blind index, which only text, dates and integers can have",
    ),
    "an index of text for a date": (
        lambda: declare({"day_encrypted": encrypted_column(Kind.DATE), "day_index": blind_index_column("exact")}),
        "day_index: the normaliser exact is for values of kind text, and not for date",
    ),
    "a month of a text": (
        lambda: declare({"a_encrypted": ssn(), "a_index": blind_index_column("name:month")}),
        "only the normaliser date has the part month",
    ),
    "first characters of a date": (
        lambda: declare({"day_encrypted": encrypted_column(Kind.DATE), "day_index": blind_index_column("date:4")}),
        "only text has first characters",
    ),
    "two indexes of one part": (
        lambda: declare(
            {
                "a_encrypted": ssn(),
                "b_index": blind_index_column("name:3", of="a"),
                "c_index": blind_index_column("name:3", of="a"),
            }
        ),
        "c_index and b_index are both the blind index",
    ),
    "an index that is searched like a field": (
        lambda: declare({"a_encrypted": ssn(), "b_encrypted": ssn(), "b_index": blind_index_column("name:3", of="a")}),
        "b_index is searched by the name b, which is a field's",
    ),
    "two fields of one context": (
        lambda: declare({"a_encrypted": ssn(), "b_encrypted": ssn(context="visits.a")}),
        "b_encrypted and a_encrypted have the same context",
    ),
    "a quote in a context": (lambda: ssn(context="a'b"), 'context "a\'b": it may have'),
    "a colon in a context": (lambda: ssn(context="a:b"), "context 'a:b'"),
    "a context of another script": (lambda: ssn(context="größe"), "context 'größe'"),
    "an empty context": (lambda: ssn(context=""), "context ''"),
    "a line break after a context": (lambda: blind_index_column("ssn", context="a\n"), "context 'a"),
    "a dot in a table's name": (lambda: declare(name="a.b"), "no default context: give the column one of its own"),
    "a dot in a schema's name": (lambda: declare(schema="a.b"), "no default context"),
    "a field that is no identifier": (
        lambda: declare({"a b_encrypted": ssn()}),
        "'a b' cannot be the name of a record's field",
    ),
    "a field that is a keyword": (lambda: declare({"class_encrypted": ssn()}), "'class' cannot be"),
    "a field not in normal form": (lambda: declare({"ﬁeld_encrypted": ssn()}), "NFKC"),
    "a suffix alone": (lambda: declare({"_encrypted": ssn()}), "must be the field's name followed by '_encrypted'"),
    "a column too long": (
        lambda: declare({"x" * 54 + "_encrypted": ssn()}),
        "has 64 bytes, of which PostgreSQL keeps 63",
    ),
    "bytes and not characters": (lambda: declare({"é" * 27 + "_encrypted": ssn()}), "has 64 bytes"),
    "a table's name too long": (lambda: declare(name="t" * 64), "has 64 bytes"),
    "a schema's name too long": (lambda: declare(schema="s" * 64), "has 64 bytes"),
    "a plain column too long": (lambda: declare({"c" * 64: plain(), "ssn_encrypted": ssn()}), "has 64 bytes"),
    "a NUL in a name": (lambda: declare(name="a\x00b"), "NUL"),
    "half a character": (lambda: declare(name="a\ud800b"), "surrogate"),
    "a name that is folded": (lambda: declare(name=quoted_name("Visits", quote=False)), "leave out quote=False"),
    "a constraint's name too long": (
        lambda: declare(args=(sa.CheckConstraint("true", name="é" * 32),)),
        "of a constraint or index has more than 63 bytes",
    ),
    "a name of ours": (lambda: declare(name="encryption_keys"), "taken by a table of voiceassist-db"),
    "a schema of the system": (lambda: declare(schema="pg_catalog"), "schema pg_catalog is not for tables"),
    "a system column": (
        lambda: declare({"xmin": plain(), "ssn_encrypted": ssn()}),
        "xmin has the name of a column that every",
    ),
    "a key that is not the name": (lambda: declare({"a": plain(key="b"), "ssn_encrypted": ssn()}), "leave out key="),
    "a temporary table": (
        lambda: declare({"__table_args__": {"prefixes": ["TEMPORARY"]}, "ssn_encrypted": ssn()}),
        "temporary tables are never rotated",
    ),
    "an undeclared binary column": (
        lambda: declare({"scan_encrypted": plain(sa.LargeBinary), "ssn_encrypted": ssn()}, without=("scan_encrypted",)),
        "scan_encrypted is named as encrypted, but not declared",
    ),
    "a version that may be missing": (
        lambda: declare({"key_version": plain(sa.Integer), "ssn_encrypted": ssn()}, bases=()),
        "key_version must be an Integer, NOT NULL",
    ),
    "a version of text": (
        lambda: declare({"key_version": plain(nullable=False), "ssn_encrypted": ssn()}, bases=()),
        "key_version must be an Integer",
    ),
    "a version in the key": (
        lambda: declare(
            {"key_version": plain(sa.Integer, primary_key=True, nullable=False), "ssn_encrypted": ssn()}, bases=()
        ),
        "key_version is in the primary key",
    ),
    "no version": (lambda: declare({"ssn_encrypted": ssn()}, bases=()), "needs a primary key and a column key_version"),
    "a date of change that is a number": (
        lambda: declare({"updated_at": plain(sa.Integer), "ssn_encrypted": ssn()}),
        "updated_at is written by the repository",
    ),
    "a date of creation that nobody writes": (
        lambda: declare({"created_at": plain(sa.DateTime(timezone=True), nullable=False), "ssn_encrypted": ssn()}),
        "created_at is not written when a row is added",
    ),
    "a date of change in the key": (
        lambda: declare(
            {
                "created_at": plain(sa.Date, primary_key=True, nullable=False, server_default=sa.func.now()),
                "ssn_encrypted": ssn(),
            }
        ),
        "created_at of the primary key is written by the server",
    ),
    "a generated key": (
        lambda: declare(key=plain(sa.BigInteger, sa.Identity(always=True), primary_key=True, nullable=False)),
        "id of the primary key is generated by the server",
    ),
    "a computed key": (
        lambda: declare(
            {"a": plain(sa.Integer), "ssn_encrypted": ssn()},
            key=mapped_column(sa.Integer, sa.Computed("a + 1"), primary_key=True),
        ),
        "id of the primary key is generated",
    ),
    "a key that moves with another": (
        lambda: declare(key=plain(sa.Uuid, sa.ForeignKey(PatientRow.id, onupdate="cascade"), primary_key=True)),
        "id of the primary key changes with the key that it refers to",
    ),
    "a collation of one's own": (
        lambda: declare(key=mapped_column(sa.Text(collation="nocase"), primary_key=True)),
        "collation 'nocase', by which different texts may be equal",
    ),
    "a unique index beside ours": (
        lambda: declare(
            {"ssn_encrypted": ssn(), "ssn_index": blind_index_column("ssn")}, args=(sa.UniqueConstraint("ssn_index"),)
        ),
        "ssn_index is unique by a constraint that a rotation",
    ),
    "a lookup without regard to case": (
        lambda: declare({"email": plain(CITEXT, unique=True), "ssn_encrypted": ssn()}, lookup=("email",)),
        "rows cannot be named by email, which is of type CITEXT",
    ),
    "a lookup by a number with places": (
        lambda: declare({"a": plain(sa.Numeric, unique=True), "ssn_encrypted": ssn()}, lookup=("a",)),
        "rows cannot be named by a",
    ),
    "a lookup of a collation of one's own": (
        lambda: declare({"a": plain(sa.Text(collation="nocase"), unique=True), "ssn_encrypted": ssn()}, lookup=("a",)),
        "column a has the collation 'nocase'",
    ),
    "a generated column in the record": (
        lambda: declare({"a": plain(sa.Integer, sa.Computed("1 + 1")), "ssn_encrypted": ssn()}),
        "column a is generated by the server: leave it out of the record",
    ),
    "a default that only the ORM applies": (
        lambda: declare({"a": plain(default=lambda: "x"), "ssn_encrypted": ssn()}, without=("a",)),
        "column a has a default that is computed in Python",
    ),
    "a change that only the ORM applies": (
        lambda: declare({"a": plain(onupdate=lambda: "x"), "ssn_encrypted": ssn()}),
        "column a has an onupdate that is computed in Python",
    ),
    "a field that unmasks the rest": (lambda: declare({"shown_encrypted": ssn()}), "cannot have a field 'shown'"),
    "a plain column that unmasks the rest": (
        lambda: declare({"shown": plain(), "ssn_encrypted": ssn()}),
        "a field 'shown'",
    ),
    "a field that Python mangles": (
        lambda: declare({"x": mapped_column("__x", sa.Text), "ssn_encrypted": ssn()}),
        "'__x'",
    ),
    "a plain column not in normal form": (
        lambda: repository(model(), {"id": UUID, "ssn": str, "E\u0301": str}),
        "by which no code could read it",
    ),
    "a field self": (lambda: declare({"self_encrypted": ssn()}), "cannot have a field 'self'"),
}
REFUSED |= {
    f"a key of type {type_!r}": (
        functools.partial(lambda type_: declare(key=mapped_column(type_, primary_key=True)), type_),
        "cannot be bound to a primary key of type",
    )
    for type_ in (
        *(CITEXT(), sa.CHAR(8), sa.Numeric(), sa.Float(), sa.DateTime(timezone=True), sa.Boolean(), sa.LargeBinary()),
        sa.Enum("low", "high", name="grade"),
        *(sa.Uuid(as_uuid=False), sa.JSON(), sa.Interval(), sa.Time()),
    )
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_when_it_is_declared(case: str) -> None:
    """No such declaration gets as far as a table, and each message says what is wrong with which name."""
    attempt, why = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as refused:
        attempt()
    assert why in str(refused.value)


def test_two_models_of_one_context_are_refused() -> None:
    """By the second one's repository, whichever table that is; a context of its own helps."""
    row = model({"ssn_encrypted": ssn(context="persons.ssn")})
    other = type(
        "Other",
        (EncryptedRow, row.__mro__[2]),
        {
            "__tablename__": "others",
            "id": mapped_column(sa.Uuid, primary_key=True),
            "ssn_encrypted": ssn(context="persons.ssn"),
        },
    )
    for each in (row, other):
        with pytest.raises(ValueError, match=r"has the same context persons\.ssn"):
            repository(each, {"id": UUID, "ssn": str})
    with pytest.raises(ValueError, match=r"others\.ssn_encrypted and visits\.ssn_encrypted have the same context"):
        declared_tables(row.metadata)


# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "table", "field", "context"),
    [
        (None, "patient_data", "ssn", "patient_data.ssn"),
        ("clinic", "visits_2026", "note", "clinic.visits_2026.note"),
        (None, "Visits", "firstName", "Visits.firstName"),
        (None, "größe", "ß", "gr-c3-b6-c3-9fe.-c3-9f"),
        ("A team", "visits: 5%", "x", "A-20team.visits-3a-205-25.x"),
        (None, "it's-\"", "x", "it-27s-2d-22.x"),
    ],
)
def test_default_contexts_stay_what_they_are(schema: str | None, table: str, field: str, context: str) -> None:
    """They are part of stored values: a change of the rule would make data unreadable."""
    assert default_context(schema, table, field) == context


def test_names_that_fit_stay_what_they_are() -> None:
    """Constraints of databases that exist are found; a longer name keeps its suffix, fits, and is one name's alone."""
    assert format_constraint("patient_data", "ssn_encrypted") == "patient_data_ssn_encrypted_format"
    assert floor_constraint("patient_data") == "patient_data_key_version_floor"
    assert floor_constraint("t" * 45) == "t" * 45 + "_key_version_floor"
    names = [format_constraint("t" * 60, f"{column}_encrypted") for column in "ab"] + [floor_constraint("é" * 31)]
    assert all(len(name.encode()) <= NAME_BYTES for name in names)
    assert len(set(names)) == 3
    assert [name.rpartition("_")[2] for name in names] == ["format", "format", "floor"]
    assert names[2].endswith("_key_version_floor")
    assert fitted("t" * 45 + "a", "_key_version_floor") != fitted("t" * 45 + "b", "_key_version_floor")


# --- what is accepted, and was not, or lost its constraints ------------------------------------------------------------------


def options_of(row: type[DeclarativeBase]) -> Any:
    """Return the storage options of a model's table."""
    return table_of(row).dialect_options["postgresql"]["with"]


def test_a_table_that_is_created_at_once_has_room(empty_url: URL) -> None:
    """`create_all` gives it its fillfactor in SQLAlchemy 2.0 as well, where a table cannot say so; names are quoted."""
    name = 'Order "s": %s'
    rows = [model(), model({"ssn_encrypted": encrypted_column(Kind.TEXT, context="orders.ssn")}, name=name)]
    copied = table_of(rows[1]).to_metadata(sa.MetaData(), schema="public", name=f"{name} 2")
    engine = create_engine(empty_url)
    for table in (*(table_of(row) for row in rows), copied):
        table.create(engine)
    with engine.connect() as connection:
        query = text("SELECT reloptions FROM pg_class WHERE relname = :name")
        for table in (*(table_of(row) for row in rows), copied):
            assert connection.scalar(query, {"name": table.name}) == ["fillfactor=75"]
    engine.dispose()


@pytest.mark.skipif(not HAS_STORAGE_OPTIONS, reason="a table of SQLAlchemy 2.0 has no such options")
def test_the_applications_own_table_arguments_keep_room_for_rotation() -> None:
    """Whatever a model says about its table, it has our fillfactor unless it says another; a partitioned table has none."""
    assert options_of(model()) == {"fillfactor": "75"}
    assert options_of(model(args=(sa.Index("ix", "id"),))) == {"fillfactor": "75"}
    with_options = model({"ssn_encrypted": ssn(), "__table_args__": {"postgresql_with": {"autovacuum_enabled": "off"}}})
    assert options_of(with_options) == {"autovacuum_enabled": "off", "fillfactor": "75"}
    own = model({"ssn_encrypted": ssn(), "__table_args__": {"postgresql_with": {"FillFactor": 90}}})
    assert options_of(own) == {"FillFactor": 90}
    assert not options_of(model({"ssn_encrypted": ssn(), "__table_args__": {"postgresql_partition_by": "HASH (id)"}}))


def test_a_naming_convention_leaves_our_constraints_alone() -> None:
    """Rotation finds them by their names."""

    class Base(DeclarativeBase):
        metadata = sa.MetaData(
            naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s", "ix": "%(table_name)s_ix"}
        )

    class Row(EncryptedRow, Base):
        __tablename__ = "visits"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        ssn_encrypted: Mapped[bytes | None] = ssn()

    names = {each.name for each in table_of(Row).constraints if isinstance(each, sa.CheckConstraint)}
    assert names == {"visits_ssn_encrypted_format"}


def test_an_index_has_a_name_whatever_the_convention() -> None:
    """Without a rule for indexes SQLAlchemy could not create ours; a name that PostgreSQL would cut is made shorter."""

    class Base(DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s"})

    class Row(EncryptedRow, Base):
        __tablename__ = "visits"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        ssn_encrypted: Mapped[bytes | None] = ssn()
        ssn_index: Mapped[bytes | None] = blind_index_column("ssn")

    assert {each.name for each in table_of(Row).indexes} == {"ix_visits_ssn_index"}
    field = "é" * 24
    (index,) = table_of(model({f"{field}_encrypted": ssn(), f"{field}_index": blind_index_column("exact")})).indexes
    assert len(str(index.name).encode()) <= NAME_BYTES
    assert str(index.name).endswith("_index")


@pytest.mark.parametrize("value", ["abcde ", "abcdef", "é" * 6])
def test_a_key_that_the_server_would_cut_is_refused(database: Database, value: str) -> None:
    """PostgreSQL cuts blanks off the end of a text that is too long for varchar(n): its values would be bound to another key."""
    row = model(key=mapped_column(sa.String(5), primary_key=True))
    visits = repository(row, {"id": str, "ssn": str})
    with database.engine.begin() as connection:
        row.metadata.create_all(connection)
    with database.transaction() as tx:
        held = tx.repository(visits)
        for write in (held.add, lambda each: held.add_many([each])):
            with pytest.raises(ValueError, match="id must have at most 5 characters, not 6"):
                write(visits.record(id=value, ssn="1"))
        held.add(visits.record(id="ab   ", ssn="1"))
        assert held.get("ab   ").ssn == "1"


def test_a_padded_lookup_is_given_in_full(database: Database) -> None:
    """char(n) gives a shorter text back with blanks, so that is the only form in which a row is named."""
    row = model({"code": plain(sa.CHAR(5), unique=True, nullable=False), "ssn_encrypted": ssn()})
    visits = repository(row, {"id": UUID, "code": str, "ssn": str}, lookup=("code",))
    with database.engine.begin() as connection:
        row.metadata.create_all(connection)
    with database.transaction() as tx:
        held = tx.repository(visits)
        with pytest.raises(ValueError, match="code must have exactly 5 characters, not 2"):
            held.add(visits.record(id=uuid7(), code="ab", ssn="1"))
        held.add(visits.record(id=uuid7(), code="ab   ", ssn="1"))
        assert held.get("ab   ").ssn == "1"


# --- what stands in a database ----------------------------------------------------------------------------------------------


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


VISITS = """
CREATE TABLE visits (id {type}, note_encrypted bytea, other text, key_version integer NOT NULL, PRIMARY KEY (id));
COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
"""

FOUND: dict[str, tuple[str, str, str]] = {
    "a domain": ("d", "CREATE DOMAIN d AS text", "primary key of type"),
    "char": ("char(8)", "", "primary key of type"),
    "name": ("name", "", "primary key"),
    "numeric": ("numeric", "", "primary key of type"),
    "an enumeration": ("e", "CREATE TYPE e AS ENUM ('a')", "primary key of type"),
    "a moment": ("timestamptz", "", "primary key of type"),
    "the system's char": ('"char"', "", "primary key"),
    "a nondeterministic collation": (
        "text COLLATE nocase",
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "the primary key column id has the collation nocase, by which different texts are equal",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_key_that_sql_compares_otherwise_is_named(connection: Connection, case: str) -> None:
    """Types and collations count as they are in the database, whatever a model says."""
    type_, before, why = FOUND[case]
    try:
        connection.execute(text(before or "SELECT 1"))
    except sa.exc.NotSupportedError:
        pytest.skip("this server was built without ICU, so that it has no such collation; Debian's has")
    connection.execute(text(VISITS.format(type=type_)))
    with pytest.raises(SchemaNotMigratedError, match=why) as refused:
        encrypted_tables(connection)
    assert "visits" in str(refused.value)


def test_a_copy_of_a_table_is_named_beside_it(connection: Connection) -> None:
    """Values could be moved from one to the other unnoticed; without its comments the copy is named as undeclared."""
    connection.execute(text("CREATE TABLE backup (LIKE patient_data INCLUDING ALL)"))
    with pytest.raises(
        SchemaNotMigratedError, match=r"backup\.ssn_encrypted and patient_data\.ssn_encrypted have the same context"
    ):
        encrypted_tables(connection)


def test_inheritance_is_refused_and_partitions_are_not(connection: Connection) -> None:
    """A child's rows are found in its parent, where another row may have the same key; a partition is a part of one table."""
    connection.execute(text(VISITS.format(type="bigint")))
    connection.execute(text("CREATE TABLE emergencies (urgency text) INHERITS (visits)"))
    connection.execute(text("COMMENT ON COLUMN emergencies.note_encrypted IS 'encrypted emergencies.note as text'"))
    connection.execute(text("ALTER TABLE emergencies ADD PRIMARY KEY (id)"))
    with pytest.raises(
        SchemaNotMigratedError, match=r"table emergencies: it inherits from, or is inherited by, public\.visits"
    ):
        encrypted_tables(connection)
    connection.execute(text("DROP TABLE emergencies"))
    assert "visits" in {each.name for each in encrypted_tables(connection)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("COMMENT ON COLUMN visits.other IS 'encrypted visits.other as text'", r"visits\.other is declared as encrypted, but is not of type bytea"),
        ("COMMENT ON COLUMN visits.other IS 'blind index of visits.note by exact'", r"visits\.other is declared as encrypted, but is not"),
        ("ALTER TABLE visits ADD x bytea; COMMENT ON COLUMN visits.x IS 'blind index of visits.x by exact'", r"visits\.x is the blind index of visits\.x, but no"),
        ("ALTER TABLE visits ADD x_encrypted bytea; COMMENT ON COLUMN visits.x_encrypted IS 'encrypted visits.note as text'", "same context"),
        ("CREATE DOMAIN a AS bytea; CREATE DOMAIN b AS a; ALTER TABLE visits ADD x_encrypted b", r"visits\.x_encrypted: named as encrypted"),
        (
            "CREATE TABLE bills (id bigint PRIMARY KEY, total text); COMMENT ON COLUMN bills.total IS 'encrypted bills.total as text'",
            r"column bills\.total is declared",
        ),
    ],
)  # fmt: skip
def test_a_bad_declaration_is_named_precisely(connection: Connection, change: str, why: str) -> None:
    """Whoever made it, the message names the table and the column."""
    connection.execute(text(VISITS.format(type="bigint")))
    connection.execute(text(change))
    with pytest.raises(SchemaNotMigratedError, match=why):
        encrypted_tables(connection)


def test_what_may_stay_as_it_is_stays(connection: Connection) -> None:
    """A plain column beside the encrypted one, a missing format check, an extension's type elsewhere: tools go on."""
    connection.execute(text(VISITS.format(type="bigint")))
    connection.execute(
        text(
            "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; ALTER TABLE visits ADD mail ext.citext, ADD note text"
        )
    )
    (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
    assert list(table.fields) == ["note"]
    connection.execute(text("ALTER TABLE visits DROP CONSTRAINT visits_pkey, ADD PRIMARY KEY (id, mail)"))
    with pytest.raises(SchemaNotMigratedError, match=r"primary key of type .*\(mail\)"):
        encrypted_tables(connection)
