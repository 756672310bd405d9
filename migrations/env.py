"""How Alembic runs in a checkout: one transaction per migration, one migrator at a time, and never a long wait for a lock.

Takes an open connection from ``config.attributes["connection"]`` (the tests), else the address from ``DATABASE_URL``. An installed
package has no need of this file: ``voiceassist-db migrate`` does the same.
"""

from __future__ import annotations

from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from voiceassist_db.config import database_url
from voiceassist_db.engine import create_engine
from voiceassist_db.errors import ConfigurationError, VoiceAssistDBError
from voiceassist_db.escaping import escaped, escaped_sql
from voiceassist_db.execution import translated
from voiceassist_db.history import VERSION_TABLE, migrating, place_of, record
from voiceassist_db.models import Base


def run(connection: Connection) -> None:
    """Run the migrations on an open connection, whose settings are afterwards what they were."""
    with migrating(connection):
        record(connection, place_of(connection))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            version_table=VERSION_TABLE,
            # Autogenerate would drop the tables of everybody else, since no model here declares them.
            include_name=lambda name, kind, _parents: kind != "table" or name in Base.metadata.tables,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


def main() -> None:
    """Run, or with ``--sql`` print, the migrations."""
    config = context.config
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql",
            target_metadata=Base.metadata,
            version_table=VERSION_TABLE,
            literal_binds=True,
        )
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
    except VoiceAssistDBError as error:
        problem = str(error)
    except CommandError as error:
        problem = escaped(escaped_sql(str(error)), keep="\n")  # a schema or a role of any name
    finally:
        engine.dispose()
    if problem is not None:
        raise CommandError(problem)


main()
