"""The database's schema as a whole: bring it up to date, and fit its format checks to the schemes in use."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import Gap, complete, set_format, validate
from voiceassist_db.errors import MigrationError
from voiceassist_db.escaping import escaped_sql
from voiceassist_db.execution import execute, translated
from voiceassist_db.forks import ProcessLock
from voiceassist_db.history import (
    VERSION_TABLE,
    Place,
    leave_out_patients,
    migrating,
    place_of,
    record,
    require_no_other,
)
from voiceassist_db.models.names import problem_with_schema
from voiceassist_db.safety import quoted

_ALEMBIC: Final = ProcessLock()
"""Alembic keeps what it works on in module globals: one thread of a process at a time."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration.

    Attributes:
        id: Its revision id.
        summary: What it does, in a sentence.
    """

    id: str
    summary: str


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did, or would do.

    Attributes:
        before: Revisions that the database was at; none for a database without this package's tables.
        after: Revisions that it is at now.
        steps: The migrations between them, in order.
        registry_only: Whether the patients' tables are left out.
        kept: A row of ``alembic_version`` that recorded the revisions before, and was kept: it may be of another history.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    steps: tuple[Revision, ...]
    registry_only: bool
    kept: str | None


def migrations_directory() -> Path:
    """Return where the migrations are: inside the installed package, or beside it in a checkout without symbolic links."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def migrate(
    engine: Engine, *, schema: str | None = None, registry_only: bool | None = None, dry_run: bool = False
) -> Migrated:
    """Bring a database to the newest version of this package's tables.

    What it did is recorded in the table ``voiceassist_version``. An application's own Alembic history is not touched.

    Args:
        engine: An engine of the role that owns the tables.
        schema: The schema for the tables, which is created if it is missing; None: the first one of the search path.
        registry_only: Whether to leave the patients' tables out; None: as it was asked for before in this database, at first not.
        dry_run: Whether to change nothing, and only return what would be done.

    Returns:
        What was done, or would be.

    Raises:
        MigrationError: A migration needs something first; the message says what.
        ValueError: The schema cannot have this name.
    """
    if schema is not None and (problem := problem_with_schema(schema)):
        raise ValueError(f"schema {schema!r} {problem}")
    return _done(engine, _Task(schema, registry_only), dry_run=dry_run)[0]


def migration_sql(engine: Engine, *, schema: str | None = None, registry_only: bool | None = None) -> str:
    """Return the SQL that :func:`migrate` would run in this database as it is now, and change nothing.

    Args:
        engine: As for :func:`migrate`.
        schema: As for :func:`migrate`.
        registry_only: As for :func:`migrate`.

    Raises:
        MigrationError, ValueError: As for :func:`migrate`.
    """
    if schema is not None and (problem := problem_with_schema(schema)):
        raise ValueError(f"schema {schema!r} {problem}")
    return _done(engine, _Task(schema, registry_only), dry_run=True, prints=True)[1]


@dataclass(frozen=True, slots=True)
class _Task:
    schema: str | None
    registry_only: bool | None

    def leaves_patients_out(self, place: Place) -> bool:
        return place.registry_only if self.registry_only is None else self.registry_only


def _done(engine: Engine, task: _Task, *, dry_run: bool, prints: bool = False) -> tuple[Migrated, str]:
    problem = ""
    with _ALEMBIC, translated(), engine.connect() as connection, migrating(connection, schema=task.schema):
        try:
            place = place_of(connection)
            require_no_other(connection, place)
            steps = _steps(place, registry_only=task.leaves_patients_out(place))
            if prints:
                return _migrated(place, steps, task), _printed(place, steps, task)
            if not dry_run:
                _prepare(connection, place, task)
                _run(connection, steps)
                leave_out_patients(connection, registry_only=task.leaves_patients_out(place))
                connection.commit()
            return _migrated(place, steps, task), ""
        except CommandError as error:
            problem = escaped_sql(str(error))
    raise MigrationError(problem)


def _prepare(connection: Connection, place: Place, task: _Task) -> None:
    if task.schema is not None:
        execute(connection, text(_create_schema(task.schema).replace(":", r"\:")), table=task.schema)
    record(connection, place)
    connection.commit()


def _create_schema(schema: str) -> str:
    return f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"


def _script(*folders: str) -> ScriptDirectory:
    directory = migrations_directory()
    return ScriptDirectory(str(directory), version_locations=[str(directory / each) for each in folders])


def _steps(place: Place, *, registry_only: bool) -> list[Any]:
    """Return the migrations that a database lacks, as Alembic describes them."""
    every, registry = _script("versions", "guide"), _script("versions")
    known = {each.revision for each in registry.walk_revisions()}
    if registry_only and (more := [each for each in place.revisions if each not in known]):
        raise MigrationError(
            f"the database is at {', '.join(more)}, so it has the patients' tables: migrate it without --registry-only"
        )
    script = registry if registry_only else every
    found: list[Any] = script._upgrade_revs("heads", place.revisions)  # type: ignore[arg-type]  # noqa: SLF001  # as alembic.command does
    return found


def _migrated(place: Place, steps: Sequence[Any], task: _Task) -> Migrated:
    registry_only = task.leaves_patients_out(place)
    after = tuple(_script("versions", *(() if registry_only else ("guide",))).get_heads())
    revisions = tuple(Revision(each.revision.revision, each.revision.doc) for each in steps)
    kept = None if place.is_former_ours else place.former
    return Migrated(place.revisions, after if steps else place.revisions, revisions, registry_only, kept)


def _run(connection: Connection, steps: Sequence[Any]) -> None:
    script = _script("versions", "guide")
    with EnvironmentContext(Config(), script, fn=lambda _before, _context: steps) as context:
        context.configure(connection=connection, version_table=VERSION_TABLE, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


def _printed(place: Place, steps: Sequence[Any], task: _Task) -> str:
    out = io.StringIO()
    first = [] if task.schema is None else [_create_schema(task.schema), f"SET search_path = {quoted(task.schema)}"]
    out.writelines(f"{escaped_sql(statement)};\n\n" for statement in (*first, *place.statements()))
    script = _script("versions", "guide")
    with EnvironmentContext(Config(), script, fn=lambda _before, _context: steps, as_sql=True) as context:
        context.configure(
            dialect_name="postgresql",
            version_table=VERSION_TABLE,
            literal_binds=True,
            output_buffer=out,
            starting_rev=place.revisions or None,  # type: ignore[arg-type]  # of several heads
        )
        with context.begin_transaction():
            context.run_migrations()
    return out.getvalue()


def complete_tables(connection: Connection) -> list[Gap]:
    """Add the CHECKs and the fillfactor that encrypted tables lack, as those do whose encrypted columns were added later.

    Needs the tables' owner. The caller commits. A migration may call it with ``op.get_bind()`` after ``op.add_column``.

    Args:
        connection: A connection of the tables' owner.

    Returns:
        What was missing.

    Raises:
        ConstraintError: A column holds something else than ciphertext.
    """
    return [gap for table in encrypted_tables(connection) for gap in complete(connection, table)]


def allow_direct_format(connection: Connection) -> None:
    """Let the encrypted columns hold any password-encrypted OpenPGP message, as data of scheme ``direct`` is.

    Needs the tables' owner. The caller commits.
    """
    for table in encrypted_tables(connection):
        set_format(connection, table, bound_only=False)
        validate(connection, table)


def require_bound_format(connection: Connection) -> None:
    """Let the encrypted columns hold scheme ``bound``'s format only, which is also how they are created.

    Needs the tables' owner. The caller commits.
    """
    for table in encrypted_tables(connection):
        set_format(connection, table, bound_only=True)
        validate(connection, table)
