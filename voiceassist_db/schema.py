"""The database's schema as a whole: bring it up to date, and fit its format checks to the schemes in use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import alembic.config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import Gap, complete, set_format, validate
from voiceassist_db.errors import MigrationError
from voiceassist_db.escaping import escaped_sql
from voiceassist_db.execution import translated
from voiceassist_db.forks import ProcessLock

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
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    steps: tuple[Revision, ...]


def migrations_directory() -> Path:
    """Return where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def migrate(engine: Engine, *, dry_run: bool = False) -> Migrated:
    """Bring a database to the newest version of the schema, as ``alembic upgrade head`` does in a checkout.

    Args:
        engine: An engine of the role that owns the tables.
        dry_run: Whether to change nothing, and only return what would be done.

    Raises:
        MigrationError: A migration needs something first; the message says what.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    problem = ""
    with _ALEMBIC, translated(), engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            return _upgraded(config, is_dry=dry_run)
        except CommandError as error:
            problem = escaped_sql(str(error))
    raise MigrationError(problem)


def _upgraded(config: alembic.config.Config, *, is_dry: bool) -> Migrated:
    script = ScriptDirectory.from_config(config)
    seen: dict[str, Any] = {}

    def steps(before: tuple[str, ...], _context: MigrationContext) -> list[Any]:
        found: list[Any] = script._upgrade_revs("heads", before)  # type: ignore[arg-type]  # noqa: SLF001  # as alembic.command does
        seen.update(before=tuple(before), steps=found)
        return [] if is_dry else found

    with EnvironmentContext(config, script, fn=steps, destination_rev="heads", dont_mutate=is_dry):
        script.run_env()
    revisions = tuple(Revision(each.revision.revision, each.revision.doc) for each in seen["steps"])
    return Migrated(seen["before"], tuple(script.get_heads()) if revisions else seen["before"], revisions)


def complete_tables(connection: Connection) -> list[Gap]:
    """Add the CHECKs and the fillfactor that encrypted tables lack, as those do whose encrypted columns were added later.

    Needs the tables' owner. The caller commits. A migration may call it with ``op.get_bind()`` after ``op.add_column``.

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
