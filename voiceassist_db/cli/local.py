"""A whole deployment on this machine: PostgreSQL and OpenBao up, a migrated database, keys made and registered.

Owns what ``demo`` and ``dev`` share. Nothing of it outlives the process, but the data where a directory is given.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from sqlalchemy import URL

from voiceassist_db import config
from voiceassist_db.embedded import EmbeddedOpenBao, EmbeddedPostgres
from voiceassist_db.engine import create_engine
from voiceassist_db.execution import translated
from voiceassist_db.keyring import initialise_keys
from voiceassist_db.schema import migrate

NAME: Final = "voiceassist"
"""Of the database and of the role that owns it, which is no superuser."""


@contextmanager
def local_deployment(directory: Path | None = None) -> Iterator[dict[str, str]]:
    """Start everything, and give the environment variables that lead to it.

    Args:
        directory: Where to keep the data for next time; None keeps nothing.
    """
    postgres = EmbeddedPostgres(directory / "postgres" if directory else None)
    openbao = EmbeddedOpenBao(directory / "openbao" if directory else None)
    with postgres, openbao:
        url = _database(postgres)
        environment = {
            config.DATABASE_URL: url.set(drivername="postgresql").render_as_string(hide_password=False),
            "VAULT_ADDR": openbao.address,
            "VAULT_TOKEN": openbao.root_token,
        }
        engine = create_engine(url)
        try:
            migrate(engine)
            with translated(), engine.begin() as connection:
                initialise_keys(config.key_provider(environment), connection)
        finally:
            engine.dispose()
        yield environment


def _database(postgres: EmbeddedPostgres) -> URL:
    """Create the role and the database where they are not there yet; the role gets a new password at each start."""
    password = secrets.token_urlsafe(24)
    admin_url = postgres.url().set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        # Sent as SCRAM's verifier, so that the password itself is in no statement and no log.
        verifier = admin.pgconn.encrypt_password(password.encode(), NAME.encode(), b"scram-sha-256").decode()
        name = sql.Identifier(NAME)
        if (
            admin.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) %s", [NAME]).rowcount
            == 0
        ):
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(verifier)))
        if (
            admin.execute("SELECT FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) %s", [NAME]).rowcount
            == 0
        ):
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
    return postgres.url(NAME).set(username=NAME, password=password)
