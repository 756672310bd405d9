"""Enable pgcrypto in a schema of its own, where nobody else can put a function of the same name.

Revision ID: voiceassist_0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "voiceassist_0001"
down_revision = None
branch_labels = "voiceassist"
depends_on = None

INSTALLED_IN = sa.text(
    "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
    "WHERE e.extname = 'pgcrypto'"
)
RECORDED = """
this database has the tables of voiceassist-db already, which `voiceassist-db migrate` made and recorded in {table}. Nothing was changed.
To go on in this history, record them here, and then run the migration again:
  alembic stamp {revisions}
  DROP TABLE {table};"""
UNRECORDED = """
this database has the tables of voiceassist-db already, and nothing records by which migrations. Nothing was changed.
Run `voiceassist-db migrate`, which records them, and then this migration again."""
OWN_TABLE = "voiceassist_version"
FOUND = sa.text(
    "SELECT CAST(pg_catalog.to_regclass(name) AS pg_catalog.text) AS name FROM pg_catalog.unnest(ARRAY['voiceassist_version', 'encryption_keys']) "
    "AS t (name) WHERE pg_catalog.to_regclass(name) IS NOT NULL"
)
ASK = """
{problem}
Ask an administrator to run this in the database {database}, then run the migration again:
{statements}"""


def upgrade() -> None:
    if context.is_offline_mode():
        op.execute("CREATE SCHEMA IF NOT EXISTS pgcrypto")
        op.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto SCHEMA pgcrypto")
        return
    connection = op.get_bind()
    _require_unrecorded(connection)
    installed_in = connection.scalar(INSTALLED_IN)
    if installed_in is None:
        _create(connection)
    elif installed_in != "pgcrypto":
        raise _ask(
            connection,
            f"pgcrypto is installed in the schema {_on_one_line(installed_in)}, not in a schema of its own.",
            "CREATE SCHEMA IF NOT EXISTS pgcrypto;",
            "ALTER EXTENSION pgcrypto SET SCHEMA pgcrypto;",
            "-- which needs a superuser. Without one, and where nothing uses pgcrypto yet, instead of that line:",
            "-- DROP EXTENSION pgcrypto; CREATE EXTENSION pgcrypto SCHEMA pgcrypto;",
            _grant(connection),
        )
    elif not connection.scalar(sa.text("SELECT pg_catalog.has_schema_privilege('pgcrypto', 'USAGE')")):
        raise _ask(connection, "This role may not use the schema pgcrypto.", _grant(connection))


def _require_unrecorded(connection: sa.Connection) -> None:
    """Refuse to begin in an application's own history where the tables are there already."""
    if op.get_context().version_table == OWN_TABLE:
        return
    found = {name.rpartition(".")[2]: name for name in connection.scalars(FOUND)}
    if "encryption_keys" not in found:
        return
    if OWN_TABLE in found:
        rows = sorted(connection.scalars(sa.text(f"SELECT version_num FROM {found[OWN_TABLE]}")))  # noqa: S608  # a name of ours
        if rows:
            raise CommandError(RECORDED.format(table=found[OWN_TABLE], revisions=" ".join(rows)).strip())
    raise CommandError(UNRECORDED.strip())


def _create(connection: sa.Connection) -> None:
    try:
        with connection.begin_nested():
            connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS pgcrypto"))
            connection.execute(sa.text("CREATE EXTENSION pgcrypto SCHEMA pgcrypto"))
        refused = False
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        refused = True
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in {"0A000", "58P01"}:
            raise
        problem = "The server does not have the extension pgcrypto."
        raise _ask(connection, problem, "-- install PostgreSQL's contrib package (postgresql-contrib) first") from None
    if refused:
        raise _ask(
            connection,
            "This role may not create the extension pgcrypto.",
            "CREATE SCHEMA IF NOT EXISTS pgcrypto;",
            "CREATE EXTENSION pgcrypto SCHEMA pgcrypto;",
            _grant(connection),
        )


def _grant(connection: sa.Connection) -> str:
    return f"GRANT USAGE ON SCHEMA pgcrypto TO {connection.scalar(sa.text('SELECT pg_catalog.quote_ident(current_user)'))};"


def _on_one_line(name: object) -> str:
    return str(name).replace("\n", "\\n")


def _ask(connection: sa.Connection, problem: str, *statements: str) -> CommandError:
    database = _on_one_line(connection.scalar(sa.text("SELECT pg_catalog.current_database()")))
    return CommandError(
        ASK.format(problem=problem, database=database, statements="\n".join(f"  {line}" for line in statements)).strip()
    )


def downgrade() -> None:
    # An extension that an administrator installed, or that others have come to use, is not ours to drop.
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.extname = 'pgcrypto'
                       AND pg_catalog.pg_get_userbyid(e.extowner) = current_user) THEN
                DROP EXTENSION pgcrypto;
                DROP SCHEMA pgcrypto;
            END IF;
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            RAISE NOTICE 'pgcrypto stays: others use it, or own its schema';
        END $$
        """
    )
