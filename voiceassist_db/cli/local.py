"""A whole deployment on this machine: PostgreSQL and OpenBao up, a migrated database, its roles, keys made and registered.

Owns what ``demo`` and ``dev`` share. Nothing of it outlives the process, but the data where a directory is given.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import URL, Engine

from voiceassist_db import config
from voiceassist_db.addresses import plain
from voiceassist_db.embedded import EmbeddedOpenBao, EmbeddedPostgres
from voiceassist_db.engine import create_engine
from voiceassist_db.execution import translated
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.provisioning import Roles, provision
from voiceassist_db.schema import migrate

NAME: Final = "voiceassist"
"""Of the database."""

ROLES: Final = Roles()
"""Whose names they have; each has a new password at each start."""

OWNER_URL: Final = "OWNER_DATABASE_URL"
ROTATOR_URL: Final = "ROTATOR_DATABASE_URL"
AUDITOR_URL: Final = "AUDITOR_DATABASE_URL"
SUPERUSER_URL: Final = "SUPERUSER_DATABASE_URL"
"""Variables with the addresses of the roles beside the application's, which has ``DATABASE_URL``."""


@contextmanager
def local_deployment(directory: Path | None = None) -> Iterator[dict[str, str]]:
    """Start everything as a deployment has it, and give the environment variables that lead to it.

    The roles are those of ``voiceassist-db provision``, and ``DATABASE_URL`` is the application's.

    Args:
        directory: Where to keep the data for next time; None keeps nothing.
    """
    postgres = EmbeddedPostgres(directory / "postgres" if directory else None)
    openbao = EmbeddedOpenBao(directory / "openbao" if directory else None)
    with postgres, openbao:
        urls = _provisioned(postgres)
        names = (config.DATABASE_URL, OWNER_URL, ROTATOR_URL, AUDITOR_URL)
        roles = (ROLES.app, ROLES.owner, ROLES.rotator, ROLES.auditor)
        environment = dict(zip(names, (plain(urls[role]) for role in roles), strict=True)) | {
            SUPERUSER_URL: plain(postgres.url(NAME)),
            "VAULT_ADDR": openbao.address,
            "VAULT_TOKEN": openbao.root_token,
        }
        with _engine(urls[ROLES.owner]) as engine:
            migrate(engine)
            with translated(), engine.begin() as connection:
                initialise_keys(config.key_provider(environment), connection)
        _provision(postgres)  # again: the rights on tables that the migration made
        yield environment


def _provisioned(postgres: EmbeddedPostgres) -> dict[str, URL]:
    """Create the database and the roles where they are not there yet, and return the address of each role."""
    with psycopg.connect(plain(postgres.url()), autocommit=True) as admin:
        found = "SELECT FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) %s"
        if admin.execute(found, [NAME]).rowcount == 0:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))
        _provision(postgres)
        return {role: postgres.url(NAME).set(username=role, password=_password(admin, role)) for role in ROLES.names()}


def _provision(postgres: EmbeddedPostgres) -> None:
    with _engine(postgres.url(NAME)) as engine, translated(), engine.begin() as connection:
        provision(connection, ROLES)


def _password(admin: psycopg.Connection[Any], role: str) -> str:
    """Give a role a new password, and return it."""
    password = secrets.token_urlsafe(24)
    # Sent as SCRAM's verifier, so that the password itself is in no statement and no log.
    verifier = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))
    return password


@contextmanager
def _engine(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()
