"""The way to the server: where it leads, and whether anybody on it could read what is sent."""

from __future__ import annotations

import os
import socket

from voiceassist_db.config import is_this_machine
from voiceassist_db.safety.finding import Finding
from voiceassist_db.safety.session import Driver, Session


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
