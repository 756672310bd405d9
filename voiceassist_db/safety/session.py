"""What a connection is asked about its own session: role, settings, search path, temporary objects.

Behind a pooler each transaction is asked again, because each may be another session. So this is one query, and a cheap one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from voiceassist_db.safety.finding import Finding, quoted
from voiceassist_db.safety.settings import SETTINGS

SEARCH_PATH: Final = "search_path"
_CATALOG: Final = "pg_catalog"
_TEMPORARY: Final = "pg_temp_"
"""Prefix of the schemas of temporary objects, one for each session. PostgreSQL reserves names with ``pg_``."""

_SHOWN: Final = 5
"""How many temporary objects a message names."""

_IDENTIFIER: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s]+))\s*(?:,|$)')

_NAMES: Final = ", ".join(f"'{name}'" for name in (*SETTINGS, SEARCH_PATH))

# All names are qualified: this statement runs before it is known whose objects the search path leads to.
SESSION: Final = f"""
    SELECT session_user, pg_catalog.current_database(), pg_catalog.pg_backend_pid(),
        pg_catalog.host(pg_catalog.inet_client_addr()), pg_catalog.host(pg_catalog.inet_server_addr()),
        (SELECT s.ssl FROM pg_catalog.pg_stat_ssl s WHERE s.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),
        ARRAY(SELECT ARRAY[s.name, s.setting, s.source] FROM pg_catalog.pg_settings s
              WHERE s.name OPERATOR(pg_catalog.=) ANY (ARRAY[{_NAMES}]::pg_catalog.text[])),
        pg_catalog.current_schemas(true)::pg_catalog.text[],
        ARRAY(SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0) FROM pg_catalog.pg_depend d
              WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
                AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() LIMIT {_SHOWN + 1}),
        pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
"""  # noqa: S608  # of constants
"""The question. A module's settings are absent where it is not loaded. Every object of every kind depends on its schema."""


@dataclass(frozen=True, slots=True)
class Session:
    """What the server says about a connection's session: the row of :data:`SESSION`.

    Attributes:
        role: Who logged in; settings come with the login, and not with SET ROLE.
        database: Name of the database.
        pid: The server process that answered.
        client: The address that the server sees the connection come from; None: a socket.
        server: The server's own address.
        is_encrypted: Whether the server's end of the connection is TLS.
        settings: Value and source of ``search_path`` and of each of :data:`SETTINGS` that the server has.
        path: The schemas in which names are looked up, in this order; without that of temporary objects.
        temporary: Descriptions of the session's temporary objects, up to one more than a message names.
        has_citus: Whether the database has Citus.
    """

    role: str
    database: str
    pid: int
    client: str | None
    server: str | None
    is_encrypted: bool
    settings: Mapping[str, tuple[str, str]]
    path: tuple[str, ...] = (_CATALOG,)
    temporary: tuple[str, ...] = ()
    has_citus: bool = False

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Session:
        """Read the row."""
        role, database, pid, client, server, is_encrypted, settings, path, temporary, has_citus = row
        known = {name: (value, source) for name, value, source in settings}
        found = tuple(name for name in path if not name.startswith(_TEMPORARY))
        return cls(
            role, database, pid, client, server, bool(is_encrypted), known, found, tuple(temporary), bool(has_citus)
        )


Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def is_pooled(connection: Driver, session: Session) -> bool:
    """Say whether something stands between, such as pgbouncer: the process that answers is not the one that was connected to."""
    return connection.info.backend_pid != session.pid


def unsafe_names(session: Session) -> list[Finding]:
    """Return what in the session itself lets a name lead to something else than the system's own object."""
    return [*_late_catalog(session), *_temporary_objects(session)]


def schemas_named(search_path: str) -> tuple[str, ...]:
    """Return the names in a setting of search_path as PostgreSQL reads it: in lower case where they are not in quotes."""
    return tuple(
        found[1].replace('""', '"') if found[1] is not None else found[2].lower()
        for found in _IDENTIFIER.finditer(search_path)
    )


def _late_catalog(session: Session) -> list[Finding]:
    # Of the setting as well: the path lacks schemas that are not there yet, or that this role may not use yet.
    named = schemas_named(session.settings.get(SEARCH_PATH, ("", ""))[0])
    first = next((each for each in (named, session.path) if _CATALOG in each and each[0] != _CATALOG), None)
    if first is None:
        return []
    before = ", ".join(first[: first.index(_CATALOG)])
    problem = f"finds names in {before} before pg_catalog, so that a type or function there replaces the system's own"
    role, database = quoted(session.role), quoted(session.database)
    remedies = {
        "user": f"ALTER ROLE {role} RESET search_path;",
        "database user": f"ALTER ROLE {role} IN DATABASE {database} RESET search_path;",
        "database": f"ALTER DATABASE {database} RESET search_path;",
        "global": "ALTER ROLE ALL RESET search_path;",
        "client": "Take it out of the connection's options (DATABASE_URL, PGOPTIONS).",
        "session": "RESET search_path;",
    }
    source = session.settings.get(SEARCH_PATH, ("", ""))[1]
    return [
        Finding(SEARCH_PATH, problem, remedies.get(source, "Leave pg_catalog out of search_path, or name it first."))
    ]


def _temporary_objects(session: Session) -> list[Finding]:
    if not session.temporary:
        return []
    names = ", ".join(session.temporary[:_SHOWN]) + (", and more" if len(session.temporary) > _SHOWN else "")
    problem = f"holds {names}: PostgreSQL finds temporary tables and types before all others"
    remedy = (
        "DISCARD TEMP; removes them. Create temporary tables ON COMMIT DROP, after the transaction's first statement, or in "
        "connections that send no key."
    )
    return [Finding("pg_temp", problem, remedy)]
