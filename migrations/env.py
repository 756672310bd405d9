"""How Alembic runs here: one transaction per migration, one migrator at a time, and never a long wait for a lock.

Takes an open connection from ``config.attributes["connection"]`` (the package's own commands and tests), else the
address from ``DATABASE_URL``.
"""

from __future__ import annotations

from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text

from voiceassist_db.config import database_url
from voiceassist_db.engine import create_engine
from voiceassist_db.errors import ConfigurationError, DatabaseError
from voiceassist_db.escaping import escaped, escaped_sql
from voiceassist_db.execution import translated
from voiceassist_db.models import Base

LOCK_TIMEOUT = "4s"
"""A migration that cannot get its lock gives up, rather than make every query behind it wait."""

STATEMENT_TIMEOUT = "15min"

ADVISORY_LOCK = 0x766F6963
"""Any fixed number ("voic"): a second migrator waits for the first, and then finds nothing left to do."""


def run(connection: Connection) -> None:
    """Run the migrations on an open connection, whose settings are afterwards what they were."""
    before = {name: str(connection.scalar(text(f"SHOW {name}"))) for name in ("statement_timeout", "lock_timeout")}
    # The wait for another migrator is not one for a table's lock, and nobody queues behind it.
    _set(connection, statement_timeout=STATEMENT_TIMEOUT, lock_timeout="0")
    connection.execute(text("SELECT pg_catalog.pg_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK})
    _set(connection, lock_timeout=LOCK_TIMEOUT)
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_catalog.pg_advisory_unlock(:lock)"), {"lock": ADVISORY_LOCK})
        _set(connection, **before)
        connection.commit()


def _set(connection: Connection, **settings: str) -> None:
    for name, value in settings.items():
        connection.execute(text("SELECT pg_catalog.set_config(:name, :value, false)"), {"name": name, "value": value})


def main() -> None:
    """Run, or with ``--sql`` print, the migrations."""
    config = context.config
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    if (given := config.attributes.get("connection")) is not None:
        run(given)
        return
    if config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    try:
        engine = create_engine(database_url())
    except ConfigurationError as error:
        raise CommandError(str(error)) from None
    problem = None
    try:
        with translated(), engine.connect() as connection:
            run(connection)
    except DatabaseError as error:
        problem = str(error)
    except CommandError as error:
        problem = escaped(escaped_sql(str(error)), keep="\n")  # a schema or a role of any name
    finally:
        engine.dispose()
    if problem is not None:
        raise CommandError(problem)


main()
