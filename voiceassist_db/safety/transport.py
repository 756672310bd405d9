"""The way to the server: whether the server has proven which one it is, and whether anybody on the way could read.

An address proves nothing. On this machine any user can listen on a free port, or on a socket in a directory of its own.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import psycopg

from voiceassist_db.addresses import is_this_machine
from voiceassist_db.config import TRUST_LOCAL
from voiceassist_db.safety.finding import Finding
from voiceassist_db.safety.session import Driver, Session

Connected = TypeVar("Connected")

SCRAM: Final = "scram-sha-256"
"""By it the server proves that it knows the password's verifier (RFC 5802), but only where libpq insists: otherwise a server may
break the exchange off and let the client in."""

_NO_PASSWORD: Final = "!password"  # noqa: S105  # libpq's name of a method
"""What a local server that has not proven itself may ask for: anything but the password itself."""

_REQUIRE_AUTH_SINCE: Final = 160000  # libpq's version
_ROOT: Final = 0
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred in socket(7)

VERIFIED: Final = "by TLS with its certificate verified"


def proof(connection: Driver, *, trust_local: bool = False) -> str | None:
    """Return how the server has proven which one it is; None: it has not.

    Args:
        connection: The connection.
        trust_local: Take any server on this machine for the right one.
    """
    options = {each.keyword: each.val for each in connection.pgconn.info}
    if connection.pgconn.ssl_in_use and options.get(b"sslmode") == b"verify-full":
        return VERIFIED
    # Of the socket itself: what was asked for (host, hostaddr, PGHOSTADDR, a service file) need not be where it leads.
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        is_socket = wire.family == socket.AF_UNIX
        if not is_socket and not is_this_machine(wire.getpeername()[0]):
            return None
        owner = _owner(wire) if is_socket else None
    if options.get(b"require_auth") == SCRAM.encode() or options.get(b"channel_binding") == b"require":
        return "on this machine, where it proved by SCRAM that it knows the password"
    if is_socket and options.get(b"requirepeer"):
        return "through a socket of the user that requirepeer names"
    if owner is not None and owner in {_ROOT, os.geteuid()}:
        return "through a socket of root or of this process's own user"
    return f"on this machine, where {TRUST_LOCAL} trusts every server" if trust_local else None


def _owner(wire: socket.socket) -> int | None:
    """Return the user that listens on the other end of a socket; None where this system cannot tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    return int(_CREDENTIALS.unpack(wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


def unsafe_transport(connection: Driver, *, trust_local: bool = False) -> list[Finding]:
    """Return what is wrong with the way to the server.

    Args:
        connection: The connection.
        trust_local: As for :func:`proof`.
    """
    if proof(connection, trust_local=trust_local) is not None:
        return []
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        is_local = wire.family == socket.AF_UNIX or is_this_machine(wire.getpeername()[0])
    subject = f"the connection to {connection.info.hostaddr or connection.info.host}"
    if is_local:
        problem = "the server on this machine has not proven itself, so another user's process may have answered"
        return [Finding(subject, problem, _LOCAL_REMEDY)]
    modes = [each.val for each in connection.pgconn.info if each.keyword == b"sslmode"]
    mode = (modes[0] or b"prefer").decode()
    if not connection.pgconn.ssl_in_use:
        problem = "is not encrypted"
    else:
        problem = f"is encrypted, but sslmode={mode} does not verify whom it speaks to"
    return [Finding(subject, problem, "Add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL.")]


_LOCAL_REMEDY: Final = (
    "Give the role a password, scram-sha-256 in pg_hba.conf, and ?require_auth=scram-sha-256 where your own code connects; or use a "
    "socket and add ?requirepeer=USER, the user that the server runs as; or add ?sslmode=verify-full&sslrootcert=FILE. "
    f"{TRUST_LOCAL}=1 trusts every server on this machine, such as a proxy beside the application."
)

UNPROVEN: Final = (
    f"the server on this machine asked for the password itself before it proved which server it is. {_LOCAL_REMEDY}"
)
"""Message for a connection that :func:`proving` does not make."""


def is_unproven(error: psycopg.Error) -> bool:
    """Say whether a connection failed because the server did not authenticate as :func:`proving` demands."""
    return error.sqlstate is None and any(f'"{method}"' in str(error) for method in (SCRAM, _NO_PASSWORD))


def proving(connect: Callable[..., Connected]) -> Callable[..., Connected]:
    """Return a function that connects as another one does, and lets a server on this machine prove itself by SCRAM.

    Where the server does not, the connection is made all the same, for statements without keys. Then it does not get the password
    itself.

    Args:
        connect: A function that takes libpq's options by name.
    """

    def connected(*args: Any, **options: Any) -> Connected:
        if not _could_prove(options):
            return connect(*args, **options)
        try:
            return connect(*args, **options, require_auth=SCRAM)
        except psycopg.OperationalError as error:
            if not is_unproven(error):
                raise
        return connect(*args, **options, require_auth=_NO_PASSWORD)

    return connected


def _could_prove(options: Mapping[str, Any]) -> bool:
    """Say whether these options lead to this machine, and leave open how its server proves itself."""
    if psycopg.pq.version() < _REQUIRE_AUTH_SINCE:
        return False
    defaults = {each.keyword.decode(): (each.val or b"").decode() for each in psycopg.pq.Conninfo.get_defaults()}

    def given(name: str) -> str:
        return str(options.get(name) or defaults.get(name) or "")

    if given("require_auth") or given("sslmode") == "verify-full" or given("channel_binding") == "require":
        return False
    hosts = (given("hostaddr") or given("host")).split(",")
    if all(not host or host.startswith(("/", "@")) for host in hosts):
        return bool(given("password")) and not given("requirepeer")
    return any(is_this_machine(host) for host in hosts)


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
