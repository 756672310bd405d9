"""The Alembic plugin in an application's own environment: what it writes runs, is complete, and goes back."""

from __future__ import annotations

import ast
import io
import logging
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import alembic
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, MetaData, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import voiceassist_db.alembic
from tests.conftest import plain
from tests.test_migrations import dump
from voiceassist_db import Database, Record, Repository, create_engine, field, record, uuid7
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import gaps, set_floor, validate
from voiceassist_db.models import EncryptedInPlace, EncryptedRow, Kind, blind_index_column, encrypted_column
from voiceassist_db.models.declaration import IN_PLACE_COMMENT
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.schema import allow_direct_format

voiceassist_db.alembic.install()

ROOT: Final = Path(__file__).parents[1]
HAS_PLUGINS: Final = hasattr(alembic, "runtime") and (Path(alembic.__file__).parent / "runtime" / "plugins.py").exists()
PLUGINS: Final = ["alembic.autogenerate.*", "voiceassist_db"]
BY_NAME: Final = (Path(alembic.__file__).parent / "ext" / "checkconstraint_byname.py").exists()
CONVENTION: Final = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
wide = pytest.mark.wide


def base() -> type[DeclarativeBase]:
    """Return an application's own base, with a naming convention of its own."""

    class TheirBase(DeclarativeBase):
        metadata = MetaData(naming_convention=CONVENTION)

    return TheirBase


def before() -> MetaData:
    """Return the application's tables as they were: one, with nothing encrypted."""

    class Visit(base()):  # type: ignore[misc]
        __tablename__ = "visits"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        note: Mapped[str | None]

    return Visit.metadata  # type: ignore[no-any-return]


ORDERS: Final = 'Order "s": %s'
CIPHERTEXT: Final = b"\xc3\x0c\x04\x09\x01\x08 8 bytes\xd2"
"""What begins as every value does."""


def after(*, is_searched: bool = True, orders: str = ORDERS) -> MetaData:
    """Return them as they shall be: two more columns, and a table of their own."""
    their = base()

    class Visit(EncryptedInPlace, their):  # type: ignore[misc, valid-type]
        __tablename__ = "visits"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        note: Mapped[str | None]
        reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
        if is_searched:
            reason_index: Mapped[bytes | None] = blind_index_column("exact")

    class Order(EncryptedRow, their):  # type: ignore[misc, valid-type]
        __tablename__ = orders
        id: Mapped[UUID] = mapped_column(primary_key=True)
        drug_encrypted: Mapped[bytes] = encrypted_column(Kind.TEXT, nullable=False, context="orders.drug")
        drug_index: Mapped[bytes | None] = blind_index_column("exact", context="orders.drug", unique=True)

    return their.metadata


@dataclass
class Environment:
    """An application's Alembic environment on a connection.

    Attributes:
        connection: The connection.
        plugins: Which plugins its ``env.py`` names.
    """

    connection: Connection
    plugins: list[str]

    def context(self, metadata: MetaData) -> MigrationContext:
        """Return Alembic's context."""
        options: dict[str, Any] = {"target_metadata": metadata, "include_schemas": False}
        if HAS_PLUGINS:
            options["autogenerate_plugins"] = self.plugins
        return MigrationContext.configure(self.connection, opts=options)

    def written(self, metadata: MetaData) -> tuple[str, str]:
        """Return the upgrade and the downgrade that autogenerate writes."""
        made = produce_migrations(self.context(metadata), metadata)
        assert made.upgrade_ops is not None
        assert made.downgrade_ops is not None
        return render_python_code(made.upgrade_ops), render_python_code(made.downgrade_ops)

    def run(self, code: str, **arguments: str) -> None:
        """Run code of a migration as Alembic does, with these arguments of ``-x``."""
        config = Config(cmd_opts=SimpleNamespace(x=[f"{name.replace('_', '-')}" for name in arguments]))  # type: ignore[arg-type]
        with EnvironmentContext(config, None) as environment:  # type: ignore[arg-type]
            environment.configure(connection=self.connection)
            context = environment.get_context()
            names: dict[str, Any] = {"op": Operations(context), "sa": sa, "postgresql": postgresql}
            exec(f"def run():\n    {code}", names)  # noqa: S102  # Alembic's own
            names["run"]()
        self.connection.commit()

    def differences(self, metadata: MetaData) -> list[Any]:
        """Return what `alembic check` would find."""
        found: list[Any] = compare_metadata(self.context(metadata), metadata)
        return found

    def seen(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return what the catalogue says."""
        found = dump(self.connection)
        self.connection.commit()
        # A column that was dropped keeps its number.
        found["columns"] = [(*row[:2], *row[3:]) for row in found["columns"]]
        return found


@pytest.fixture
def environment(engine: Engine) -> Iterator[Environment]:
    """An environment on a database with our tables and the application's table, which has a row."""
    with engine.connect() as connection:
        before().create_all(connection)
        connection.execute(text("INSERT INTO visits (id, note) VALUES (gen_random_uuid(), 'a')"))
        connection.commit()
        yield Environment(connection, PLUGINS)


def names_in(code: str) -> set[str]:
    """Return the names that code of a migration takes from anywhere."""
    return {node.id for node in ast.walk(ast.parse(f"def run():\n    {code}")) if isinstance(node, ast.Name)}


def test_a_migration_is_short_complete_and_goes_back(environment: Environment) -> None:
    """CHECKs, comments, room, storage and token indexes are there; `alembic check` is clean; down undoes all, and up comes back."""
    first = environment.seen()
    up, down = environment.written(after())
    assert "op.add_encrypted_column('visits', 'reason_encrypted', 'text', context='visits.reason')" in up
    assert "op.complete_encrypted_table('visits', versions=['reason_encrypted'], fillfactor=75)" in up
    assert "op.drop_encrypted_column('visits', 'reason_encrypted')" in down
    assert "op.drop_encrypted_table('Order" in down
    assert names_in(up) | names_in(down) <= {"op", "sa", "postgresql"}
    assert "drop_table" not in up
    environment.run(up)
    assert environment.differences(after()) == []
    found = {table.name: table for table in encrypted_tables(environment.connection)}
    assert {"visits", ORDERS} <= set(found)
    assert [gap for table in found.values() for gap in gaps(environment.connection, table)] == []
    second = environment.seen()
    storage = {(row[0], row[1]): row[4] for row in second["columns"]}
    assert storage["visits", "reason_encrypted"] == storage[ORDERS, "drug_encrypted"] == "e"
    assert {"ix_visits_reason_index"} <= {row[1] for row in second["indexes"]}
    environment.run(down)
    assert environment.seen() == first
    environment.run(up)
    assert environment.seen() == second


def test_a_migration_runs_under_every_sqlalchemy(environment: Environment) -> None:
    """One that was written under 2.1 names no option that 2.0 refuses, in either direction, and the table has its room."""
    up, down = environment.written(after())
    environment.run(up)
    rooms = environment.connection.execute(
        text("SELECT reloptions FROM pg_class WHERE relname = :name"), {"name": ORDERS}
    )
    assert rooms.scalar_one() == ["fillfactor=75"]
    gone, back = environment.written(before())
    assert [code for code in (up, down, gone, back) if "postgresql_with" in code] == []
    completed = f"op.complete_encrypted_table({ORDERS!r}, external=['drug_encrypted'], fillfactor=75)"
    assert (up.count(completed), back.count(completed)) == (1, 1)
    environment.connection.rollback()


@wide
def test_what_is_written_is_what_is_executed(environment: Environment) -> None:
    """Operations that are invoked as they are, without being written first, do the same."""
    metadata = after(is_searched=False)
    made = produce_migrations(environment.context(metadata), metadata)
    assert made.upgrade_ops is not None
    operations = Operations(environment.context(metadata))
    stack: list[Any] = [*made.upgrade_ops.ops]
    for each in stack:
        for operation in getattr(each, "ops", [each]):
            operations.invoke(operation)
    environment.connection.commit()
    assert environment.differences(metadata) == []
    assert all(not gaps(environment.connection, table) for table in encrypted_tables(environment.connection))


@wide
def test_columns_that_were_added_without_their_check_get_it(environment: Environment) -> None:
    """As an environment without the plugin adds them: one operation brings what is missing."""
    if HAS_PLUGINS:
        environment.plugins = PLUGINS[:1]
        up, _ = environment.written(after())
        assert "op.drop_table('patient_data')" in up, "without the plugin, our tables would be dropped"
        environment.plugins = PLUGINS
    metadata = after()
    environment.connection.execute(
        text("ALTER TABLE visits ADD reason_encrypted bytea, ADD reason_index bytea, ADD key_version integer")
    )
    environment.connection.execute(
        text("COMMENT ON COLUMN visits.reason_encrypted IS 'encrypted visits.reason as text'")
    )
    environment.connection.execute(text(f"COMMENT ON COLUMN visits.key_version IS '{IN_PLACE_COMMENT}'"))
    environment.connection.execute(
        text("COMMENT ON COLUMN visits.reason_index IS 'blind index of visits.reason by exact'")
    )
    environment.connection.execute(text("CREATE INDEX ix_visits_reason_index ON visits (reason_index)"))
    metadata.tables[ORDERS].create(environment.connection)
    environment.connection.commit()
    first = environment.seen()
    up, down = environment.written(metadata)
    assert up.strip().splitlines()[1].strip() == (
        "op.complete_encrypted_table('visits', checks=['reason_encrypted'], versions=['reason_encrypted'], "
        "external=['reason_encrypted'], fillfactor=75)"
    )
    environment.run(up)
    assert environment.differences(metadata) == []
    environment.run(down)
    assert environment.seen() == first


@pytest.mark.parametrize("what", ["column", pytest.param("table", marks=wide)])
def test_encrypted_data_is_dropped_only_when_somebody_says_so(
    what: str, environment: Environment, empty_url: URL
) -> None:
    """Autogenerate writes a drop that looks for values first, and undoes nothing else when it is refused."""
    up, _ = environment.written(after())
    environment.run(up)
    table = {column: after().tables[name] for column, name in (("column", "visits"), ("table", ORDERS))}[what]
    shown = {"column": "visits holds", "table": '"Order ""s"": %s" holds'}[what]
    row = {"drug_encrypted" if what == "table" else "reason_encrypted": CIPHERTEXT, "key_version": 1}
    environment.connection.execute(sa.insert(table).values(id=uuid7(), **row))
    environment.connection.commit()
    down, again = environment.written(before())
    assert f"op.drop_encrypted_{what}" in down
    assert "add_encrypted_column" in again
    before_drop = environment.seen()
    with pytest.raises(CommandError, match="-x drop-encrypted-data") as refused:
        environment.run(down)
    assert shown in str(refused.value)
    environment.connection.rollback()
    assert environment.seen() == before_drop
    environment.run(down, drop_encrypted_data="")
    assert environment.differences(before()) == []
    environment.run(again)
    assert environment.differences(after()) == []


@wide
def test_the_printed_sql_refuses_as_well(environment: Environment, database_url: URL) -> None:
    """`--sql` writes statements that do the same, and a drop that looks for values when somebody runs it."""
    metadata = after(orders="orders")  # Alembic doubles a percent sign in what it prints
    up, down = environment.written(metadata)

    def printed(code: str) -> str:
        buffer = io.StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer, "literal_binds": True}
        )
        names: dict[str, Any] = {"op": Operations(context), "sa": sa, "postgresql": postgresql}
        exec(f"def run():\n    {code}", names)  # noqa: S102  # Alembic's own
        names["run"]()
        return str(buffer.getvalue())

    first = environment.seen()
    with psycopg.connect(plain(database_url), autocommit=True) as administrator:
        administrator.execute(printed(up).encode())
        assert environment.differences(metadata) == []
        assert all(not gaps(environment.connection, table) for table in encrypted_tables(environment.connection))
        environment.connection.execute(
            text("UPDATE visits SET reason_encrypted = :value, key_version = 1"), {"value": CIPHERTEXT}
        )
        environment.connection.commit()
        with pytest.raises(psycopg.errors.RaiseException, match="drop-encrypted-data"):
            administrator.execute(printed(down).encode())
        environment.connection.execute(text("UPDATE visits SET reason_encrypted = NULL"))
        environment.connection.commit()
        administrator.execute(printed(down).encode())
    assert environment.seen() == first


def test_a_table_called_by_a_word_of_sql(environment: Environment) -> None:
    """Such a name works only where it is quoted."""
    metadata = after(orders="order")
    up, down = environment.written(metadata)
    environment.run(up)
    assert environment.differences(metadata) == []
    environment.run(down)


@wide
@pytest.mark.skipif(not BY_NAME, reason="this Alembic does not compare CHECKs")
def test_a_floor_is_never_dropped(environment: Environment) -> None:
    """Alembic's own comparison of CHECKs finds one that no model declares: it keeps rows of retired versions out."""
    environment.plugins = [*PLUGINS, "alembic.ext.checkconstraint_byname"]
    up, _ = environment.written(after())
    environment.run(up)
    for table in encrypted_tables(environment.connection):
        set_floor(environment.connection, table, 1)
        validate(environment.connection, table)
    environment.connection.commit()
    assert environment.differences(after()) == []


@wide
def test_a_database_that_adopts_gets_the_general_check(environment: Environment) -> None:
    """While a direct key lives, a new column may hold what a bare pgp_sym_encrypt writes."""
    environment.connection.execute(
        text(
            "INSERT INTO encryption_keys (version, scheme, state, check_value) VALUES (1, 'direct', 'current', '\\x00')"
        )
    )
    allow_direct_format(environment.connection)
    environment.run(environment.written(after())[0])
    assert [
        gap for table in encrypted_tables(environment.connection) for gap in gaps(environment.connection, table)
    ] == []
    query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'visits_reason_encrypted_format'"
    assert "get_byte" in str(environment.connection.scalar(text(query)))


def test_our_tables_stay_and_theirs_of_the_same_name_are_theirs(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    """An environment that does not know our models drops nothing of ours, and says so; a table that is only called so is theirs."""
    with caplog.at_level(logging.INFO, "alembic"):
        assert environment.differences(before()) == []
    if HAS_PLUGINS:
        assert [each for each in caplog.messages if "removed" in each] == []
    environment.connection.execute(text("CREATE SCHEMA s"))
    environment.connection.execute(text("SET search_path = s"))
    environment.connection.execute(text("CREATE TABLE s.clinical_notes (id integer PRIMARY KEY)"))
    environment.connection.commit()
    metadata = MetaData()
    assert [each[0] for each in environment.differences(metadata)] == ["remove_table"]


@record
class Visit(Record):
    """A visit of the application's table."""

    note: str | None = None
    reason: str | None = None
    id: UUID = field(default_factory=uuid7)


@wide
def test_a_table_that_the_operations_made_rotates_without_bloat(database: Database) -> None:
    """In a table that was filled before, rows are updated on their own pages once the values are there."""
    metadata = after(is_searched=False)

    class Model(base()):  # type: ignore[misc]
        __table__ = metadata.tables["visits"]

    class Visits(Repository[Visit]):
        model = Model
        record = Visit

    with database.engine.connect() as connection:
        environment = Environment(connection, PLUGINS)
        before().create_all(connection)
        connection.commit()
        environment.run(environment.written(metadata)[0])
        count = 4000
        with database.transaction() as tx:
            tx.repository(Visits).add_many([Visit(note="x" * 50, reason=f"reason {n}") for n in range(count)])
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE visits"))
    report = rotate(database.engine, database.keys)
    assert (report.rows, report.remaining, report.verified) == (count, 0, True)
    assert report.hot_ratio is not None
    assert report.hot_ratio >= 0.95
    assert report.table_growth <= 1.03
    assert retire(database.engine, database.keys, grace_days=0).version == 1


def test_the_entry_point_is_the_plugin() -> None:
    """Alembic finds it by the metadata of the package; both ways to it are one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["alembic.plugins"] == {voiceassist_db.alembic.NAME: "voiceassist_db.alembic"}
    voiceassist_db.alembic.install()
    assert hasattr(Operations, "add_encrypted_column")
    if HAS_PLUGINS:
        from alembic.runtime.plugins import _all_plugins

        assert list(_all_plugins).count(voiceassist_db.alembic.NAME) == 1


@wide
def test_our_checkout_never_drops_a_team_s_table(empty_url: URL) -> None:
    """Our own environment knows no models but ours, so it leaves all other tables out."""
    from alembic.command import check

    from tests.test_migrations import alembic_config, upgrade

    engine = create_engine(empty_url)
    with engine.connect() as connection:
        upgrade(connection)
        before().create_all(connection)
        connection.commit()
        check(alembic_config(connection))
    engine.dispose()
