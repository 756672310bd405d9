"""The database's schema as a whole: bring it up to date, and fit its format checks to the schemes in use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import alembic.command
import alembic.config
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


def migrations_directory() -> Path:
    """Return where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def migrate(engine: Engine) -> None:
    """Bring a database to the newest version of the schema, as ``alembic upgrade head`` does.

    Raises:
        MigrationError: A migration needs something first; the message says what.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    problem = None
    with _ALEMBIC, translated(), engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            alembic.command.upgrade(config, "head")
        except CommandError as error:
            problem = escaped_sql(str(error))
    if problem is not None:
        raise MigrationError(problem)


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
