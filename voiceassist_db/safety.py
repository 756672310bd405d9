"""What must hold of a connection before a key may pass through it, and how to mend what does not.

A bind parameter is not a secret place: a server can log it, and a wire without TLS shows it. Owns the rules, which
``engine`` applies to each connection, ``provisioning`` brings about and ``checking`` reports. Decides nothing itself.
"""

from __future__ import annotations

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
SQL: Final = f"""
    SELECT session_user, current_database(), pg_backend_pid(), inet_client_addr()::text, inet_server_addr()::text,
        (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()),
        ARRAY(SELECT ARRAY[name, setting, source] FROM pg_catalog.pg_settings WHERE name IN ({_NAMES}))
"""  # noqa: S608  # of constants
"""What a connection is asked. A module's settings are absent where it is not loaded."""


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
    """What the server says of a connection: the row of :data:`SQL`.

    Attributes:
        role: Who logged in; settings come with the login, and not with SET ROLE.
        database: Name of the database.
        pid: The server process that answered.
        client: The address that the server sees the connection come from; None: a socket.
        server: The server's own address.
        is_encrypted: Whether the server's end of the connection is TLS.
        settings: Value and source of each of :data:`SETTINGS` that the server has.
    """

    role: str
    database: str
    pid: int
    client: str | None
    server: str | None
    is_encrypted: bool
    settings: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Session:
        """Read the row."""
        role, database, pid, client, server, is_encrypted, settings = row
        known = {name: (value, source) for name, value, source in settings}
        return cls(role, database, pid, client, server, is_encrypted=bool(is_encrypted), settings=known)


Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def is_pooled(connection: Driver, session: Session) -> bool:
    """Say whether something stands between, such as pgbouncer: the process that answers is not the one that was connected to."""
    return connection.info.backend_pid != session.pid


def unsafe_settings(session: Session) -> list[Finding]:
    """Return what is wrong with the server's settings for this role."""
    role = '"' + session.role.replace('"', '""') + '"'
    findings = []
    for name, safe in SETTINGS.items():
        value, source = session.settings.get(name, (safe, "database user"))
        if value != safe:
            problem = f"is {value}, so that parameters can reach the server's log"
        elif source not in FIXED:
            problem = f"is {value}, but by {_SOURCES.get(source, source)}"
        else:
            continue
        findings.append(Finding(name, problem, f"ALTER ROLE {role} SET {name} = {safe};"))
    return findings


_SOURCES: Final = {
    "configuration file": "the configuration file, which can change it under this connection",
    "default": "default only, which the configuration file can change under this connection",
    "session": "a SET of this session, which a pooler carries to others",
}


def unsafe_transport(connection: Driver) -> list[Finding]:
    """Return what is wrong with the way to the server: TLS that verifies it, unless it is on this machine."""
    host, address = connection.info.host, connection.info.hostaddr
    if host.startswith(("/", "@")) or is_this_machine(address):
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
    return [Finding(f"the connection to {host}", problem, remedy)]


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
    return session.client == session.server or is_this_machine((session.client or "").partition("/")[0])


def described(findings: Iterable[Finding]) -> str:
    """Return findings as the lines of a message."""
    return "\n".join(f"  {finding}" for finding in findings)
