"""Our migrations beside those of an application: whatever its history is, it stays as it is, and ours runs."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import alembic.command
import psycopg
import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, text

from tests.conftest import plain
from tests.test_migrations import alembic_config, asked_for, dump, tables
from voiceassist_db import Database, create_engine
from voiceassist_db.errors import MigrationError, SchemaNotMigratedError
from voiceassist_db.execution import execute
from voiceassist_db.history import PATIENT_TABLES, VERSION_TABLE
from voiceassist_db.models import REGISTRY_ROWS
from voiceassist_db.schema import Migrated, migrate, migration_sql, migrations_directory

REGISTRY: Final = {row.__tablename__ for row in REGISTRY_ROWS}
OURS: Final = {VERSION_TABLE, *PATIENT_TABLES, *REGISTRY}
HEAD: Final = "voiceassist_0006"

REVISION: Final = """
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = {revision!r}, {down!r}, None, {depends!r}

def upgrade():
    op.create_table("theirs_{revision}", sa.Column("id", sa.Integer(), primary_key=True), schema={schema!r})
    op.create_index("ix_theirs_{revision}", "theirs_{revision}", ["id"], schema={schema!r})

def downgrade():
    op.drop_table("theirs_{revision}", schema={schema!r})
"""

CATALOGUE: Final = """
    SELECT n.nspname, c.relname, c.relkind::text, c.reloptions, c.relacl::text, pg_get_userbyid(c.relowner), a.attname,
           format_type(a.atttypid, a.atttypmod), a.attnotnull, col_description(c.oid, a.attnum), k.conname, pg_get_constraintdef(k.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_constraint k ON k.conrelid = c.oid
    WHERE (c.relname LIKE '%theirs%' OR c.relname LIKE 'alembic_version%') ORDER BY 1, 2, 7, 11"""


@dataclass
class Application:
    """An application with an Alembic history of its own, in the usual table.

    Attributes:
        directory: Where its revisions are.
        revisions: Its revisions with the one before; None for a first one.
        schema: Where its tables are; None for the usual schema.
    """

    directory: Path
    revisions: dict[str, str | None]
    schema: str | None = None
    depends_on: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.directory / "versions").mkdir()
        for revision, down in self.revisions.items():
            self.add(revision, down)

    def add(self, revision: str, down: str | None) -> None:
        """Write one more revision."""
        self.revisions[revision] = down
        code = REVISION.format(revision=revision, down=down, schema=self.schema, depends=self.depends_on.get(revision))
        (self.directory / "versions" / f"{revision}_.py").write_text(code)

    def upgrade(self, connection: Connection) -> None:
        """Run its migrations as its own tool does, which knows nothing of ours."""
        if self.schema is not None:
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {self.schema}"))
        script = ScriptDirectory(str(self.directory))

        def steps(before: Any, _context: Any) -> Any:
            return script._upgrade_revs("heads", before)

        with EnvironmentContext(Config(), script, fn=steps) as context:
            context.configure(connection=connection, version_table_schema=self.schema)
            with context.begin_transaction():
                context.run_migrations()
        connection.commit()

    def seen(self, connection: Connection) -> list[tuple[Any, ...]]:
        """Return all that the catalogue says of its tables, and its version rows."""
        where = f"{self.schema}." if self.schema else ""
        rows = [tuple(row) for row in connection.execute(text(CATALOGUE))]
        versions = connection.execute(text(f"SELECT version_num FROM {where}alembic_version ORDER BY 1")).all()
        connection.commit()
        return [*rows, *(tuple(row) for row in versions)]


HISTORIES: Final[dict[str, tuple[dict[str, str | None], str | None]]] = {
    "0001": ({"0001": None}, None),
    "0002": ({"0001": None, "0002": "0001"}, None),
    "0003": ({"0001": None, "0002": "0001", "0003": "0002"}, None),
    "0005": ({"0005": None}, None),
    "hash": ({"1975ea83b712": None}, None),
    "two heads": ({"0003": None, "0004": "0003", "0005": None}, None),
    "another schema": ({"0001": None, "0002": "0001"}, "theirs"),
}
wide = pytest.mark.wide


def revisions(connection: Connection, table: str = VERSION_TABLE) -> list[str]:
    """Return the rows of a version table."""
    found = list(connection.execute(text(f"SELECT version_num FROM {table} ORDER BY 1")).scalars())
    connection.commit()
    return found


@contextmanager
def connected(url: URL) -> Iterator[tuple[Engine, Connection]]:
    """An engine and a connection to a database."""
    engine = create_engine(url)
    with engine.connect() as connection:
        yield engine, connection
    engine.dispose()


@pytest.mark.parametrize("name", [pytest.param(each, marks=[] if each == "0003" else wide) for each in HISTORIES])
def test_a_foreign_history_stays_as_it_is(name: str, empty_url: URL, tmp_path: Path) -> None:
    """Migrate, downgrade, migrate: the application's tables and version rows are the same, and its own tool goes on."""
    application = Application(tmp_path, dict(HISTORIES[name][0]), HISTORIES[name][1])
    with connected(empty_url) as (engine, connection):
        application.upgrade(connection)
        before = application.seen(connection)
        assert len(before) > len(application.revisions)
        done = migrate(engine)
        assert (done.before, done.after, done.kept) == ((), (HEAD,), None)
        assert (tables(connection) & OURS, revisions(connection)) == (OURS, [HEAD])
        assert application.seen(connection) == before
        alembic.command.downgrade(alembic_config(connection), "base")
        assert tables(connection) & OURS == {VERSION_TABLE}
        assert application.seen(connection) == before
        assert migrate(engine).after == (HEAD,)
        assert application.seen(connection) == before
        application.add(
            "ffff", next(iter(application.revisions)) if name == "hash" else next(reversed(application.revisions))
        )
        application.upgrade(connection)
        assert [row for row in application.seen(connection) if row in before or "ffff" in str(row)]
        assert migrate(engine).steps == ()


# --- databases of the time before -----------------------------------------------------------------------------------

FORMER: Final = {
    "0002": ("voiceassist_0002",),
    "0003": ("voiceassist_0003",),
    "0004": ("voiceassist_0003", "voiceassist_0004"),
    "0005": (HEAD,),
}


def make_former(connection: Connection, number: str, *others: str) -> None:
    """Make a database as it was at a revision before this package had a version table of its own."""
    for revision in FORMER[number]:
        alembic.command.upgrade(alembic_config(connection), revision)
    connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
    for row in (number, *others):
        connection.execute(text("INSERT INTO alembic_version VALUES (:row)"), {"row": row})
    connection.commit()


@pytest.fixture
def fresh(template: str, new_database: Callable[[str | None], URL]) -> dict[str, list[tuple[Any, ...]]]:
    """What the catalogue says of a database that was migrated today."""
    with connected(new_database(template)) as (_, connection):
        return dump(connection)


def without(found: dict[str, list[tuple[Any, ...]]], *names: str) -> dict[str, set[str]]:
    """Leave some tables out of what the catalogue says; PostgreSQL's order of columns may differ."""
    return {
        what: {str(row) for row in rows if not any(name in str(row) for name in names)} for what, rows in found.items()
    }


@pytest.mark.parametrize("number", [pytest.param(each, marks=[] if each == "0003" else wide) for each in FORMER])
def test_a_database_of_the_time_before_is_taken_over(
    number: str, empty_url: URL, fresh: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Where nothing but our tables is there, our row moves, and the schema becomes that of a new database."""
    with connected(empty_url) as (engine, connection):
        make_former(connection, number)
        planned = migrate(engine, dry_run=True)
        assert (planned.before, revisions(connection, "alembic_version")) == (FORMER[number], [number])
        assert migrate(engine) == planned
        assert (revisions(connection), revisions(connection, "alembic_version")) == ([HEAD], [])
        assert without(dump(connection), "alembic_version") == without(fresh)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param(["0005"], "0005", id="one row, of whom nobody knows"),
        pytest.param(["0005", "1975ea83b712"], "0005", id="both", marks=wide),
        pytest.param([], None, id="nobody's", marks=wide),
    ],
)
def test_beside_tables_of_others_no_row_is_touched(rows: list[str], kept: str | None, empty_url: URL) -> None:
    """Our tables are recognised by themselves. A row that may be the application's is kept, and named."""
    with connected(empty_url) as (engine, connection):
        make_former(connection, "0005")
        connection.execute(text("DELETE FROM alembic_version"))
        for row in rows:
            connection.execute(text("INSERT INTO alembic_version VALUES (:row)"), {"row": row})
        connection.execute(text("CREATE TABLE theirs (id integer PRIMARY KEY)"))
        connection.commit()
        assert migrate(engine) == Migrated((HEAD,), (HEAD,), (), registry_only=False, kept=kept)
        assert (revisions(connection), revisions(connection, "alembic_version")) == ([HEAD], sorted(rows))
        assert migrate(engine).kept is None


@wide
@pytest.mark.parametrize("row", ["1975ea83b712", "0003"])
def test_where_only_theirs_is_recorded_a_person_decides(row: str, empty_url: URL) -> None:
    """Our migrations may be a part of their history, under a revision that depends on ours. The error has the statements for either case."""
    with connected(empty_url) as (engine, connection):
        make_former(connection, "0005")
        connection.execute(text("UPDATE alembic_version SET version_num = :row"), {"row": row})
        connection.commit()
        with pytest.raises(MigrationError, match="alembic upgrade heads") as refused:
            migrate(engine)
        assert revisions(connection, "alembic_version") == [row]
        for statement in asked_for(str(refused.value)):
            connection.execute(text(statement))
        connection.commit()
        assert migrate(engine).steps == ()
        assert (revisions(connection), revisions(connection, "alembic_version")) == ([HEAD], [row])


@wide
def test_a_version_table_that_may_not_be_read_is_none_of_ours(empty_url: URL) -> None:
    """The application's version table may belong to a role whose tables ours may not read."""
    with connected(empty_url) as (engine, connection):
        make_former(connection, "0005")
        connection.execute(text("REVOKE ALL ON alembic_version FROM CURRENT_USER"))
        connection.execute(text("ALTER TABLE alembic_version RENAME COLUMN version_num TO something"))
        connection.commit()
        assert migrate(engine).kept is None
        assert revisions(connection) == [HEAD]


@pytest.mark.parametrize("table", ["patient_data", pytest.param("clinical_notes", marks=wide)])
def test_a_downgrade_that_would_delete_patients_is_refused(table: str, engine: Engine) -> None:
    """It changes nothing, unless somebody says that the data may go; the printed SQL refuses as well."""
    with engine.connect() as connection:
        connection.execute(
            text("INSERT INTO patient_data (id, patient_id, key_version) VALUES (gen_random_uuid(), 'a', 1)")
        )
        if table == "clinical_notes":
            connection.execute(text("ALTER TABLE clinical_notes DROP CONSTRAINT clinical_notes_note_encrypted_format"))
            insert = "INSERT INTO clinical_notes (patient, id, note_encrypted, key_version) SELECT id, id, '', 1 FROM patient_data"
            connection.execute(text(insert))
        connection.commit()
        before = dump(connection)
        connection.commit()
        config = alembic_config(connection)
        with pytest.raises(CommandError, match="-x drop-encrypted-data"):
            alembic.command.downgrade(config, "voiceassist_0002")
        assert tables(connection) >= set(PATIENT_TABLES)
        connection.commit()
        alembic.command.upgrade(config, "head")
        assert dump(connection) == before
        connection.commit()
        out = io.StringIO()
        config.output_buffer = out
        alembic.command.downgrade(config, f"{HEAD}:voiceassist_0002", sql=True)
        refused = pytest.raises(psycopg.errors.RaiseException, match="drop-encrypted-data")
        with refused, psycopg.connect(plain(engine.url), autocommit=True) as administrator:
            administrator.execute(out.getvalue().encode())
        config.cmd_opts = Namespace(x=["drop-encrypted-data"])
        alembic.command.downgrade(config, "voiceassist_0002")
        assert not tables(connection) & set(PATIENT_TABLES)


@wide
def test_a_registry_that_is_used_is_not_dropped(database: Database) -> None:
    """An application's own tables need it. Its first step back keeps the identity of the database as well."""
    with database.engine.connect() as connection:
        before = [connection.execute(text(f"TABLE {name}")).all() for name in ("encryption_keys", "database_identity")]
        connection.commit()
        config = alembic_config(connection)
        with pytest.raises(CommandError, match="the registry has keys.*-x drop-encrypted-data"):
            alembic.command.downgrade(config, "voiceassist_0002")
        assert "voiceassist_0005" in revisions(connection)
        alembic.command.upgrade(config, "head")
        after = [connection.execute(text(f"TABLE {name}")).all() for name in ("encryption_keys", "database_identity")]
        connection.commit()
        assert (after, len(after[1])) == (before, 1)
        for steps in ("voiceassist_0005:voiceassist_0004", "voiceassist_0002:voiceassist_0001"):
            config.output_buffer = out = io.StringIO()
            alembic.command.downgrade(config, steps, sql=True)
            refused = pytest.raises(psycopg.errors.RaiseException, match="drop-encrypted-data")
            with refused, psycopg.connect(plain(database.engine.url), autocommit=True) as administrator:
                administrator.execute(out.getvalue().encode())
        config.cmd_opts = Namespace(x=["drop-encrypted-data"])
        alembic.command.downgrade(config, "base")
        assert not tables(connection) & REGISTRY


# --- without the patients' tables, and in another schema --------------------------------------------------------------


@wide
def test_the_registry_alone(empty_url: URL) -> None:
    """An application with a table clinical_notes of its own keeps it, and the choice is remembered."""
    with connected(empty_url) as (engine, connection):
        connection.execute(text("CREATE TABLE clinical_notes (id integer PRIMARY KEY)"))
        connection.commit()
        with pytest.raises(MigrationError, match="--registry-only"):
            migrate(engine)
        done = migrate(engine, registry_only=True)
        assert (done.after, done.registry_only) == (("voiceassist_0005",), True)
        assert tables(connection) == {"clinical_notes", VERSION_TABLE, *REGISTRY}
        assert migrate(engine).steps == ()
        with pytest.raises(SchemaNotMigratedError, match="migrate`, with --with-patient-tables if"):
            execute(connection, text("SELECT FROM patient_data"), table="patient_data")
        connection.rollback()
        connection.execute(text("DROP TABLE clinical_notes"))
        connection.commit()
        assert migrate(engine, registry_only=False).after == (HEAD,)
        assert tables(connection) == OURS
        with pytest.raises(MigrationError, match="without --registry-only"):
            migrate(engine, registry_only=True)
        assert migrate(engine).registry_only is False


@wide
def test_a_table_in_the_place_of_the_registry_is_named(empty_url: URL) -> None:
    """It is not ours by its name alone."""
    with connected(empty_url) as (engine, connection):
        connection.execute(text("CREATE TABLE index_keys (id integer PRIMARY KEY)"))
        connection.commit()
        with pytest.raises(MigrationError, match="a table index_keys already"):
            migrate(engine)
        assert migrate(engine, schema="vault").after == (HEAD,)


@wide
@pytest.mark.parametrize("schema", ["vault", 'Team"s: %s'])
def test_another_schema(schema: str, empty_url: URL, fresh: dict[str, list[tuple[Any, ...]]]) -> None:
    """Everything is in it, the version table as well, and the schema public is as it was."""
    with connected(empty_url) as (engine, connection):
        connection.execute(text("CREATE TABLE clinical_notes (id integer PRIMARY KEY)"))
        connection.commit()
        assert migrate(engine, schema=schema, dry_run=True).before == ()
        assert migrate(engine, schema=schema).after == (HEAD,)
        assert tables(connection) == {"clinical_notes"}
        query = text("SELECT tablename FROM pg_tables WHERE schemaname = :schema")
        assert set(connection.execute(query, {"schema": schema}).scalars()) == OURS
        assert migrate(engine, schema=schema).steps == ()
        assert connection.scalar(text("SHOW search_path")) == '"$user", public'
        for other in (None, "third"):  # a forgotten --schema, and a second application
            with pytest.raises(
                MigrationError,
                match="has this package's tables in the schema (vault|.Team).*none where this command looked.*Give --schema",
            ):
                migrate(engine, schema=other, registry_only=True)
        assert tables(connection) == {"clinical_notes"}
        for refused, problem in (
            ("$user", "another schema for each role"),
            ("pg_temp", "not for tables"),
            ("pgcrypto", "not for tables"),
        ):
            with pytest.raises(ValueError, match=problem):
                migrate(engine, schema=refused)
        with pytest.raises(ValueError, match="63"):
            migrate(engine, schema="x" * 64)
        assert fresh["schemas"]


# --- SQL for somebody else to run -------------------------------------------------------------------------------------


@wide
@pytest.mark.parametrize("number", ["", "0003", "0004"])
def test_the_printed_sql_does_the_same(number: str, empty_url: URL, fresh: dict[str, list[tuple[Any, ...]]]) -> None:
    """`--sql` fits the database as it is, former rows included, and changes nothing itself."""
    with connected(empty_url) as (engine, connection):
        if number:
            make_former(connection, number)
        before = dump(connection)
        connection.commit()
        script = migration_sql(engine)
        assert dump(connection) == before
        connection.commit()
        with psycopg.connect(plain(empty_url), autocommit=True) as administrator:
            administrator.execute(script.encode())
        assert without(dump(connection), "alembic_version") == without(fresh)
        connection.commit()
        assert migrate(engine).steps == ()
        assert revisions(connection) == [HEAD]


# --- one common history -----------------------------------------------------------------------------------------------

INI: Final = """
[alembic]
script_location = %(here)s
path_separator = newline
version_locations =
    %(here)s/versions
    voiceassist_db:_migrations/versions
    {guide}
"""
ENV: Final = """
import os
from alembic import context
from sqlalchemy import MetaData, NullPool, create_engine
import voiceassist_db.models

theirs = MetaData()
engine = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=voiceassist_db.models.Base.metadata,
        include_name=lambda name, kind, _: kind != "table" or not name.startswith("theirs"),
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""


@wide
@pytest.mark.parametrize("guide", ["voiceassist_db:_migrations/guide", ""])
def test_one_common_history(guide: str, empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that names our folders runs both histories by its own tool, which can go up, tell, check and go down."""
    application = Application(tmp_path, {}, depends_on={"1975ea83b712": "voiceassist_0005"})
    application.add("1975ea83b712", None)
    (tmp_path / "alembic.ini").write_text(INI.format(guide=guide))
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "script.py.mako").write_text((migrations_directory() / "script.py.mako").read_text())

    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))

    def run(name: str, *arguments: str) -> str:
        out = io.StringIO()
        getattr(alembic.command, name)(Config(str(tmp_path / "alembic.ini"), stdout=out), *arguments)
        return out.getvalue()

    run("upgrade", "heads")
    head = HEAD if guide else "voiceassist_0005"
    with connected(empty_url) as (engine, connection):
        assert tables(connection) >= {"theirs_1975ea83b712", *REGISTRY}
        current = run("current")
        assert "1975ea83b712 (head)" in current
        if guide:
            assert f"{head} (head)" in current
            run("check")
        with pytest.raises(MigrationError, match="alembic upgrade heads"):
            migrate(engine)
        run("downgrade", "1975ea83b712@base")
        assert "theirs_1975ea83b712" not in tables(connection)
        connection.commit()
        run("upgrade", "heads")
        run("downgrade", "base")
        assert tables(connection) == {"alembic_version"}
        connection.commit()
        # From a version table of our own to one common history, as the message says.
        migrate(engine, registry_only=not guide)
        before = dump(connection)
        connection.commit()
        with pytest.raises(CommandError, match=f"alembic stamp {head}\n  DROP TABLE {VERSION_TABLE};$"):
            run("upgrade", "heads")
        assert without(dump(connection), "alembic_version") == without(before, "alembic_version")
        connection.execute(text(f"ALTER TABLE {VERSION_TABLE} RENAME TO aside"))
        connection.commit()
        with pytest.raises(CommandError, match="Run `voiceassist-db migrate`, which records them"):
            run("upgrade", "heads")
        connection.execute(text(f"ALTER TABLE aside RENAME TO {VERSION_TABLE}"))
        connection.commit()
        run("stamp", head)
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        connection.commit()
        run("upgrade", "heads")
        assert tables(connection) >= {"theirs_1975ea83b712", *REGISTRY}
        if guide:
            run("check")


def test_the_folders_have_one_head_each() -> None:
    """`alembic upgrade head` works with both folders and with the registry alone; each revision says whose it is."""
    directory = migrations_directory()
    for folders, head in ((["versions", "guide"], HEAD), (["versions"], "voiceassist_0005")):
        script = ScriptDirectory(str(directory), version_locations=[str(directory / each) for each in folders])
        assert script.get_heads() == [head]
        for revision in script.walk_revisions():
            assert revision.revision.startswith("voiceassist_")
            assert "voiceassist" in revision.branch_labels
