"""What must hold of a connection before a key may pass through it, and how to mend what does not.

A bind parameter is not a secret place: a server can log it, and a wire without TLS shows it. Owns the rules, which
``engine`` applies to each connection, ``provisioning`` brings about and ``checking`` reports. Decides nothing itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from voiceassist_db.config import is_this_machine

SETTINGS: Final[Mapping[str, str]] = {
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "plan_cache_mode": "force_generic_plan",
    "auto_explain.log_min_duration": "-1",
    "auto_explain.log_parameter_max_length": "0",
    "pgaudit.log_parameter": "off",
}
"""The only value of each setting under which no parameter reaches a log. A custom plan has parameters folded into it as
constants, which auto_explain and debug_print_plan print: hence plan_cache_mode."""

FIXED: Final = frozenset({"user", "database user", "database", "global", "client", "command line"})
"""Sources of a setting (``pg_settings.source``) that stay as they are for as long as a session lives. A value of the
configuration file can change under it, and one that was SET belongs to the next client behind a pooler."""

_NAMES: Final = ", ".join(f"'{name}'" for name in SETTINGS)

# Operators and functions are named with their schema: these statements run before it is known whose the search path is.
SESSION: Final = f"""
    SELECT session_user, pg_catalog.current_database(), pg_catalog.pg_backend_pid(),
        pg_catalog.host(pg_catalog.inet_client_addr()), pg_catalog.host(pg_catalog.inet_server_addr()),
        (SELECT s.ssl FROM pg_catalog.pg_stat_ssl s WHERE s.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),
        ARRAY(SELECT ARRAY[s.name, s.setting, s.source] FROM pg_catalog.pg_settings s
              WHERE s.name OPERATOR(pg_catalog.=) ANY (ARRAY[{_NAMES}]::pg_catalog.text[])),
        pg_catalog.current_schemas(false)::pg_catalog.text[],
        ARRAY(SELECT t.relname::pg_catalog.text FROM pg_catalog.pg_class t JOIN pg_catalog.pg_class c
              ON c.relname OPERATOR(pg_catalog.=) t.relname AND c.oid OPERATOR(pg_catalog.<>) t.oid
              WHERE t.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())
"""  # noqa: S608  # of constants
"""What a connection is asked of itself. A module's settings are absent where it is not loaded."""

NOT_TRUSTED: Final = """NOT EXISTS (
        SELECT FROM pg_catalog.pg_roles trusted WHERE trusted.oid OPERATOR(pg_catalog.=) {role}
          AND (trusted.rolsuper OR trusted.rolname OPERATOR(pg_catalog.=) 'pg_database_owner'::pg_catalog.name
            OR pg_catalog.has_database_privilege(trusted.oid, pg_catalog.current_database()::pg_catalog.text, 'CREATE')))"""
"""The condition that a role may not create schemas in this database. Whoever may could put anything anywhere, and so must be
trusted; nobody else may have something where this role's statements find it by its name."""

_PATH: Final = """pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.name
    AND n.nspname OPERATOR(pg_catalog.=) ANY (
        pg_catalog.array_append(pg_catalog.current_schemas(false), 'pgcrypto'::pg_catalog.name))"""

SCHEMAS: Final = f"""
    WITH path AS (SELECT n.oid, n.nspname, n.nspowner, n.nspacl FROM {_PATH})
    SELECT 'database'::pg_catalog.text AS subject, 'PUBLIC may create schemas in it'::pg_catalog.text AS problem,
        pg_catalog.format('REVOKE CREATE ON DATABASE %I FROM PUBLIC;', pg_catalog.current_database()) AS remedy
    WHERE pg_catalog.has_database_privilege('public', pg_catalog.current_database()::pg_catalog.text, 'CREATE')
    UNION ALL
    SELECT pg_catalog.format('schema %s', p.nspname), pg_catalog.format('%s owns it', pg_catalog.pg_get_userbyid(p.nspowner)),
        pg_catalog.format('ALTER SCHEMA %I OWNER TO CURRENT_USER;', p.nspname)
    FROM path p WHERE {NOT_TRUSTED.format(role="p.nspowner")}
    UNION ALL
    SELECT pg_catalog.format('schema %s', p.nspname),
        pg_catalog.format('%s may create in it what this role''s statements find by name', coalesce(r.rolname, 'PUBLIC')),
        pg_catalog.format('REVOKE CREATE ON SCHEMA %I FROM %s;', p.nspname, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC'))
    FROM path p CROSS JOIN LATERAL pg_catalog.aclexplode(p.nspacl) a
    LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) a.grantee
    WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND a.grantee OPERATOR(pg_catalog.<>) p.nspowner
      AND {NOT_TRUSTED.format(role="a.grantee")}
    UNION ALL
    SELECT DISTINCT pg_catalog.format('schema %s', p.nspname),
        pg_catalog.format('%s owns functions or operators in it', pg_catalog.pg_get_userbyid(o.owner)),
        'Drop them, or give them to an owner who may create schemas in this database.'
    FROM path p JOIN (
        SELECT f.pronamespace AS schema, f.proowner AS owner FROM pg_catalog.pg_proc f
        UNION SELECT f.oprnamespace, f.oprowner FROM pg_catalog.pg_operator f
    ) o ON o.schema OPERATOR(pg_catalog.=) p.oid
    WHERE {NOT_TRUSTED.format(role="o.owner")}
    UNION ALL
    SELECT DISTINCT pg_catalog.format('table %s.%s', p.nspname, c.relname),
        pg_catalog.format('%s owns it, and it has the name of another one in the search path', pg_catalog.pg_get_userbyid(c.relowner)),
        'Drop it, or take its schema out of the search path.'
    FROM path p JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) p.oid
    JOIN pg_catalog.pg_class other ON other.relname OPERATOR(pg_catalog.=) c.relname AND other.oid OPERATOR(pg_catalog.<>) c.oid
    JOIN path q ON q.oid OPERATOR(pg_catalog.=) other.relnamespace
    WHERE {NOT_TRUSTED.format(role="c.relowner")} AND c.relkind::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{{r,v,m,p,f}}'::pg_catalog.text[])
"""  # noqa: S608  # of constants
"""What is wrong with the schemas in which this role's statements look for functions and tables (as CVE-2018-1058 has it)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a connection that would let keys or patients' values be seen.

    Attributes:
        subject: The setting, or what else it is about.
        problem: What is wrong.
        remedy: The statement that mends it, or what to do.
    """

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class Session:
    """What the server says of a connection: the row of :data:`SESSION`.

    Attributes:
        role: Who logged in; settings come with the login, and not with SET ROLE.
        database: Name of the database.
        pid: The server process that answered.
        client: The address that the server sees the connection come from; None: a socket.
        server: The server's own address.
        is_encrypted: Whether the server's end of the connection is TLS.
        settings: Value and source of each of :data:`SETTINGS` that the server has.
        path: The schemas in which names are looked up.
        hidden: Names of tables that a temporary one of this session hides.
    """

    role: str
    database: str
    pid: int
    client: str | None
    server: str | None
    is_encrypted: bool
    settings: Mapping[str, tuple[str, str]]
    path: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Session:
        """Read the row."""
        role, database, pid, client, server, is_encrypted, settings, path, hidden = row
        known = {name: (value, source) for name, value, source in settings}
        return cls(role, database, pid, client, server, bool(is_encrypted), known, tuple(path), tuple(hidden))


Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def is_pooled(connection: Driver, session: Session) -> bool:
    """Say whether something stands between, such as pgbouncer: the process that answers is not the one that was connected to."""
    return connection.info.backend_pid != session.pid


def unsafe_settings(session: Session) -> list[Finding]:
    """Return what is wrong with the server's settings for this role."""
    findings = []
    for name, safe in SETTINGS.items():
        if name in session.settings:
            value, source = session.settings[name]
        elif "." in name:  # of a module that is not loaded
            continue
        else:
            value, source = "not there", "default"
        if value != safe:
            problem = f"is {value}, so that parameters can reach the server's log"
        elif source not in FIXED:
            problem = f"is {value}, but by {_SOURCES.get(source, source)}"
        else:
            continue
        where = f" IN DATABASE {quoted(session.database)}" if source == "database user" else ""
        remedy = f"ALTER ROLE {quoted(session.role)}{where} SET {name} = {safe};"
        if source == "client":
            remedy = "Take it out of the connection's options (DATABASE_URL, PGOPTIONS)."
        findings.append(Finding(name, problem, remedy))
    return findings


def quoted(name: str) -> str:
    """Return a name as SQL writes it in quotes."""
    return '"' + name.replace('"', '""') + '"'


_SOURCES: Final = {
    "configuration file": "the configuration file, which can change it under this connection",
    "default": "default only, which the configuration file can change under this connection",
    "session": "a SET of this session, which a pooler carries to others",
}


def unsafe_schemas(rows: Iterable[tuple[Any, ...]]) -> list[Finding]:
    """Return what is wrong with where statements find functions and tables, of the rows of :data:`SCHEMAS`."""
    return [Finding(*row) for row in rows]


def hidden_tables(session: Session) -> list[Finding]:
    """Return which tables a temporary one takes the place of, as another client's can behind a pooler."""
    problem = "is hidden by a temporary one of this session"
    return [Finding(f"table {name}", problem, f"DROP TABLE pg_temp.{quoted(name)};") for name in session.hidden]


def unsafe_transport(connection: Driver) -> list[Finding]:
    """Return what is wrong with the way to the server: TLS that verifies it, unless it is on this machine."""
    if _is_on_this_machine(connection):
        return []
    modes = [each.val for each in connection.pgconn.info if each.keyword == b"sslmode"]
    mode = (modes[0] or b"prefer").decode()
    if not connection.pgconn.ssl_in_use:
        problem = "is not encrypted"
    elif mode != "verify-full":
        problem = f"is encrypted, but sslmode={mode} does not verify whom it speaks to"
    else:
        return []
    remedy = "Add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL."
    return [Finding(f"the connection to {connection.info.hostaddr or connection.info.host}", problem, remedy)]


def _is_on_this_machine(connection: Driver) -> bool:
    # Of the socket itself: what was asked for (host, hostaddr, PGHOSTADDR, a service file) need not be where it leads.
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        return wire.family == socket.AF_UNIX or is_this_machine(wire.getpeername()[0])


def unsafe_hop(connection: Driver, session: Session) -> list[Finding]:
    """Return what is wrong behind a pooler: its own connection to the server, and transactions that are none."""
    findings = []
    if session.client is not None and not session.is_encrypted and not _is_same_machine(session):
        problem = f"of the pooler, from {session.client} to the server, is not encrypted"
        findings.append(Finding("the connection", problem, "Set server_tls_sslmode = verify-full in pgbouncer.ini."))
    if connection.autocommit:
        problem = "behind a pooler may be another server's session with each statement"
        findings.append(Finding("autocommit", problem, "Use transactions."))
    return findings


def _is_same_machine(session: Session) -> bool:
    return session.client == session.server or is_this_machine(session.client or "")


def described(findings: Iterable[Finding]) -> str:
    """Return findings as the lines of a message."""
    return "\n".join(f"  {finding}" for finding in findings)
