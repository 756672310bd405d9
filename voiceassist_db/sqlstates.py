"""What PostgreSQL's error codes mean, in one table: for each SQLSTATE a sentence that says what happened, and a remedy.

Owns these words, for all commands and for the library. It shows nothing of the server's own text, which can hold values of a row.
It reads that text in one case only: libpq reports no SQLSTATE when a connection cannot be opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from voiceassist_db.commands import MIGRATE
from voiceassist_db.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    PgcryptoMissingError,
    SchemaNotMigratedError,
    TransactionConflictError,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """What an SQLSTATE means.

    Attributes:
        kind: Class of the error.
        happened: What happened. ``{table}`` is the table, ``{of}`` and ``{on}`` the table with a word before it, or nothing.
        remedy: What to do.
        source: The function of the server that reports it; None where each function means the same.
    """

    kind: type[DatabaseError]
    happened: str
    remedy: str
    source: str | None = None

    def error(self, sqlstate: str | None, table: str) -> DatabaseError:
        """Return the error."""
        code = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        named = {
            "table": table or "a table",
            "of": f" of {table}" if table else "",
            "on": f" on {table}" if table else "",
        }
        return self.kind(f"{self.happened.format(**named)}{code}: {self.remedy.format(**named)}", sqlstate=sqlstate)


_AGAIN: Final = "try it again"

_REFUSED: Final = Condition(
    DatabaseUnavailableError,
    "the database refused or ended the connection",
    "check that the server runs, see its log, and check DATABASE_URL",
)
_LOGIN: Final = Condition(
    DatabaseUnavailableError,
    "the database refused the login",
    "check the user and the password of DATABASE_URL, whether the role may log in, and the rules of pg_hba.conf",
)
_NO_DATABASE: Final = Condition(
    DatabaseUnavailableError,
    "the server has no database of this name",
    "check the database's name in DATABASE_URL, or create it",
)
_FULL: Final = Condition(
    DatabaseUnavailableError,
    "the server, the database or the role has no connection left",
    "wait until others end theirs, make the pools of the applications smaller, or raise max_connections or the CONNECTION LIMIT. "
    "The address and the login of DATABASE_URL are right",
)
_NOT_READY: Final = Condition(
    DatabaseUnavailableError,
    "the server accepts no connections now: it is starting, stopping or recovering",
    f"wait until it is ready, and {_AGAIN}; its log says how far it is. The login of DATABASE_URL was not looked at yet",
)
_NOBODY: Final = Condition(
    DatabaseUnavailableError,
    "no server answers at the address of DATABASE_URL",
    "check its host and its port, and that the server runs and listens there",
)
_TLS: Final = Condition(
    DatabaseUnavailableError,
    "the connection could not be encrypted as DATABASE_URL asks for it",
    "check sslmode and sslrootcert, and the server's certificate and key",
)
_LOST: Final = Condition(
    DatabaseUnavailableError,
    "the connection to the database was lost in the middle of the work",
    f"check that the server runs and see its log (DATABASE_URL names it), then {_AGAIN}",
)
_UNKNOWN: Final = Condition(
    DatabaseUnavailableError,
    "the database cannot be reached, refused the connection, or lost it",
    "check that it runs and has connections left, and the host, login, database and TLS settings of DATABASE_URL",
)
_ENDED: Final = Condition(
    DatabaseUnavailableError,
    "an administrator ended this session, or the server stops",
    f"{_AGAIN} when the server is ready",
)
_CRASHED: Final = Condition(
    DatabaseUnavailableError,
    "the server ended all sessions, because one of its processes crashed",
    f"see the server's log, and {_AGAIN} when it has recovered",
)
_NO_PGCRYPTO: Final = Condition(
    PgcryptoMissingError,
    "pgcrypto is not installed in the schema pgcrypto, or this role may not use it",
    f"run `{MIGRATE}`, which says what to ask an administrator for",
)
_NOT_MIGRATED: Final = Condition(
    SchemaNotMigratedError,
    "{table} is not in the database, is not in the search_path of this role, or is older than this version",
    f"run `{MIGRATE}`, with --with-patient-tables if it lacks the patients' tables only; where the table is in another schema, name that schema in "
    "the role's search_path instead",
)
_MEMORY: Final = Condition(
    DatabaseError,
    "the server has too little memory for a statement{on}",
    "nothing of the statement was kept. Run fewer statements at once (`--workers`), lower work_mem, or give the server more memory; "
    "then run it again",
)

STANDBY: Final = "PreventCommandDuringRecovery"
"""The function of a standby that refuses what only a primary can do. It does not report each statement that is refused there."""

READ_ONLY: Final = "25006"

CONDITIONS: Final[dict[str, tuple[Condition, ...]]] = {
    # Connections.
    "08": (_REFUSED,),
    "28": (_LOGIN,),
    "3D000": (_NO_DATABASE,),
    "53300": (_FULL,),
    "57P01": (_ENDED,),
    "57P02": (_CRASHED,),
    "57P03": (_NOT_READY,),
    "57P05": (
        Condition(
            DatabaseUnavailableError,
            "the server ended this session, which was idle for longer than idle_session_timeout",
            f"{_AGAIN}; or ALTER ROLE … SET idle_session_timeout = 0",
        ),
    ),
    "25P03": (
        Condition(
            DatabaseUnavailableError,
            "the server ended this session, whose transaction was idle for longer than idle_in_transaction_session_timeout",
            f"{_AGAIN}. The process stood still, or does something else between its statements",
        ),
    ),
    # Transactions.
    "25P04": (
        Condition(
            TransactionConflictError,
            "the server ended the transaction{on}, which took longer than transaction_timeout",
            f"{_AGAIN} with less work in it; or ALTER ROLE … SET transaction_timeout = 0 for the role that rotates, imports or verifies",
        ),
    ),
    "40001": (
        Condition(
            TransactionConflictError,
            "the transaction{on} met another one that changed the same rows, and both are serializable or read one snapshot",
            _AGAIN,
        ),
    ),
    "40P01": (
        Condition(
            TransactionConflictError,
            "the transaction{on} and another one waited for each other (a deadlock), and the server ended this one",
            _AGAIN,
        ),
    ),
    "55P03": (
        Condition(
            TransactionConflictError,
            "the transaction{on} waited for a lock of another transaction for longer than lock_timeout",
            f"{_AGAIN} when that one has ended; pg_blocking_pids() names it",
        ),
    ),
    "57014": (
        Condition(
            TransactionConflictError,
            "the statement{on} was cancelled: it took longer than statement_timeout, or an administrator cancelled it",
            f"{_AGAIN}; where it is the timeout, raise statement_timeout for this role",
        ),
    ),
    "0A000": (
        Condition(
            TransactionConflictError,
            "a column's type was changed while this connection had a statement prepared for the type before",
            "roll back, and try the transaction again",
            source="RevalidateCachedQuery",
        ),
    ),
    READ_ONLY: (
        Condition(
            DatabaseError,
            "this server is a standby, which accepts no writes{on}",
            "set DATABASE_URL to the primary (with several hosts, target_session_attrs=read-write). Nothing was changed",
            source=STANDBY,
        ),
        Condition(
            DatabaseError,
            "the server accepts no writes{on}: it is a standby, or transactions are read-only by default",
            "name the primary in DATABASE_URL (with several hosts, target_session_attrs=read-write); on the primary, see "
            "default_transaction_read_only. Nothing was changed",
        ),
    ),
    # The server's resources.
    "53100": (
        Condition(
            DatabaseError,
            "the server's disk is full, and a statement{on} could not be finished",
            "nothing of the statement was kept. Free space on the disk of the data directory, of the tablespace or of temporary files; "
            "then run it again",
        ),
    ),
    "53200": (
        Condition(
            DatabaseError,
            "the server's table of locks is full, and a statement{on} could not be finished",
            "raise max_locks_per_transaction, as for a table of many partitions; the server must start anew for it",
            source="LockAcquireExtended",
        ),
        _MEMORY,
    ),
    "53400": (
        Condition(
            DatabaseError,
            "a statement{on} needs more temporary space than temp_file_limit gives it",
            "raise temp_file_limit for this role, or lower the work of the statement",
        ),
    ),
    "55000": (
        Condition(
            DatabaseError,
            "a publication replicates {table}, whose REPLICA IDENTITY identifies no row, so the server refuses to change its rows",
            "ALTER TABLE … REPLICA IDENTITY DEFAULT, for the table and for each of its partitions, or take it out of the publication",
            source="CheckCmdReplicaIdentity",
        ),
    ),
    # Rights and names.
    "3F000": (_NO_PGCRYPTO,),
    "42P01": (_NOT_MIGRATED,),
    "42703": (_NOT_MIGRATED,),
    "42501": (
        Condition(
            DatabaseError,
            "row-level security of {table} hides rows from this role, and none may be left out",
            "ALTER ROLE … BYPASSRLS, as `voiceassist-db provision` does for the rotator of such tables. No grant helps",
            source="check_enable_rls",
        ),
        Condition(
            DatabaseError,
            "this role may not do that to {table}",
            "run this as a role that may: `voiceassist-db provision` makes an owner, a rotator and an auditor beside the application's role, "
            "and gives them their grants again after a migration; only the tables' owner sets constraints",
        ),
    ),
    # Values.
    "22P05": (
        Condition(
            DatabaseError,
            "a text for {table} has a character that the encoding of the database lacks",
            "nothing was written. Leave the character out, or move the data to a database of encoding UTF8",
        ),
    ),
}
"""Meanings by SQLSTATE, or by its class of two characters; the first whose ``source`` fits counts."""

_OPENING: Final = (
    (re.compile(r"due to transaction timeout"), "25P04"),
    (re.compile(r"due to idle-in-transaction timeout"), "25P03"),
    (re.compile(r"due to idle-session timeout"), "57P05"),
    (re.compile(r"due to administrator command"), "57P01"),
    (re.compile(r"too many clients|remaining connection slots|too many connections for"), "53300"),
    (
        re.compile(r"the database system is |is not accepting connections|is not currently accepting connections"),
        "57P03",
    ),
    (re.compile(r"out of memory|out of shared memory"), "53200"),
    (re.compile(r'FATAL: +database "'), "3D000"),
    (
        re.compile(
            r"authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects|not permitted to log in|FATAL: +role "
        ),
        "28",
    ),
)
"""Texts of a server that refuses or ends a connection, in English, and what they mean."""

_OPENING_OF_LIBPQ: Final = (
    (
        re.compile(
            r"server closed the connection|consuming input failed|the connection is (lost|closed)|terminating connection"
        ),
        _LOST,
    ),
    (re.compile(r"\bSSL\b|certificate"), _TLS),
    (
        re.compile(
            r"Connection refused|No such file or directory|translate host name|timeout expired|unreachable|No route"
        ),
        _NOBODY,
    ),
)

_RAISED_BY: Final = re.compile(r"PL/pgSQL function ([^\n(]+)\(")


def condition(sqlstate: str, source: str | None = None) -> Condition | None:
    """Return what an SQLSTATE means, reported by this function of the server; None where the table does not have it."""
    for known in (CONDITIONS.get(sqlstate, ()), CONDITIONS.get(sqlstate[:2], ())):
        for each in known:
            if each.source in {None, source}:
                return each
    return None


def read_only(*, is_standby: bool) -> DatabaseError:
    """Return the error of a server that accepts no writes, found before one was tried."""
    known = condition(READ_ONLY, STANDBY if is_standby else None)
    assert known is not None
    return known.error(READ_ONLY, "")


def described(original: object, sqlstate: str, table: str) -> DatabaseError:
    """Return the error of a statement that the server refused.

    Args:
        original: The driver's error.
        sqlstate: Its code.
        table: Name of the table that the statement is about; empty where it is about none.
    """
    diagnostics = getattr(original, "diag", None)
    source = getattr(diagnostics, "source_function", None)
    message = str(getattr(diagnostics, "message_primary", "") or "")
    if sqlstate in {"42883", "42501"} and "pgcrypto" in message and source != "check_enable_rls":
        return _NO_PGCRYPTO.error(sqlstate, table)
    if known := condition(sqlstate, source):
        return known.error(sqlstate, table)
    if sqlstate.startswith("P0") or source == "exec_stmt_raise":
        return _raised(original, sqlstate, table)
    return DatabaseError(
        f"a statement{f' on {table}' if table else ''} failed (SQLSTATE {sqlstate}): the server's log has its own words",
        sqlstate=sqlstate,
    )


def unopened(message: str, table: str) -> DatabaseError:
    """Return the error of a connection that could not be opened, or was lost.

    Args:
        message: What libpq says; it is read, and not shown.
        table: Name of the table that the statement was about.
    """
    for pattern, sqlstate in _OPENING:
        source = "LockAcquireExtended" if "out of shared memory" in message else None
        if pattern.search(message) and (known := condition(sqlstate, source)):
            return known.error(None if len(sqlstate) == 2 else sqlstate, table)
    for pattern, known in _OPENING_OF_LIBPQ:
        if pattern.search(message):
            return known.error(None, table)
    return _UNKNOWN.error(None, table)


def raised_by(original: object) -> str | None:
    """Return the name of the function in PL/pgSQL that raised an error; None where it is not known."""
    found = _RAISED_BY.match(str(getattr(getattr(original, "diag", None), "context", None) or ""))
    return found[1] if found else None


def _raised(original: object, sqlstate: str, table: str) -> DatabaseError:
    name = raised_by(original)
    who = f"the function {name}" if name else "a trigger or a function"
    return DatabaseError(
        f"{who} raised an error in a statement{f' on {table}' if table else ''} (SQLSTATE {sqlstate}): nothing of the statement was kept. "
        "Its text is not shown here, because it can hold values; the server's log has it. Change or drop the trigger that calls it",
        sqlstate=sqlstate,
    )
