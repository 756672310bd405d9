"""A real PostgreSQL server on loopback.

Owns its data directory, its superuser's password and its start. It creates no database, role or extension.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from voiceassist_db.embedded.accounts import Account, blocked_at, server_account
from voiceassist_db.embedded.binaries import POSTGRES_BIN_ENV, PostgresBinaries, find_postgres
from voiceassist_db.embedded.process import (
    HOST,
    POLL_S,
    PORT_ATTEMPTS,
    GuardedProcess,
    free_port,
    log_tail,
    poll,
    temporary_home,
    write_private,
)
from voiceassist_db.errors import EmbeddedServerError
from voiceassist_db.masking import Credential, Opaque

INITDB_TIMEOUT_S = 120.0
START_TIMEOUT_S = 120.0
"""Long, because a server that was killed replays its log before it is ready."""

_USER = "postgres"
_QUIET = {
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "plan_cache_mode": "force_generic_plan",  # a custom plan has parameters in it, which some settings log
    "max_parallel_workers_per_gather": "0",  # a parallel plan copies parameters to its workers, through a file at some settings
}
_OURS = frozenset({"port", "listen_addresses", "unix_socket_directories", "data_directory"})
_OUR_FILES = ("postgres", "openbao")  # what the names in a directory of ours start with
_PORT_TAKEN = "Address already in use"
_ALREADY_RUNS = 'lock file "postmaster.pid" already exists'
_PID_LINE, _STATUS_LINE = 0, 7  # of postmaster.pid: LOCK_FILE_LINE_PID and _PM_STATUS in PostgreSQL's miscadmin.h


class EmbeddedPostgres(Opaque):
    """A PostgreSQL server that lives as long as a ``with`` block, and never longer than this process.

    It listens on 127.0.0.1 alone, on a port of its own choice, asks for a random password (SCRAM-SHA-256), and logs no
    parameter of a statement unless its settings say so. Where this process is root it runs as ``postgres`` or ``nobody``.

    Attributes:
        host: Always 127.0.0.1.
        port: TCP port; another one after each start.
        user: The superuser's name.
        password: The superuser's password.
        log: What the server writes to stderr, since its last start.
        pid: Process id of the server.
    """

    password = Credential()

    def __init__(self, directory: Path | None = None, *, settings: Mapping[str, str] | None = None) -> None:
        """Prepare a server; :meth:`start` starts it.

        Args:
            directory: Where to keep the data for next time; created if absent. It may be shared with an
                EmbeddedOpenBao. Where this process is root, the server's user must be able to enter it, so it cannot
                lie under root's home. None: a temporary directory, removed at the end.
            settings: Settings as in postgresql.conf. They are visible to every user of the machine: no passwords.

        Raises:
            ValueError: A setting is one that this class decides.
        """
        decided = _OURS & set(settings or ())
        if decided:
            raise ValueError(f"EmbeddedPostgres decides these settings itself: {', '.join(sorted(decided))}")
        self._directory = directory
        self._settings = dict(settings or {})
        self._guard: GuardedProcess | None = None
        self.host = HOST
        self.user = _USER
        self.port = 0
        self.pid = 0
        self.password = ""
        self.log = Path(os.devnull)

    def __repr__(self) -> str:
        state = f"on {self.host}:{self.port}" if self._guard is not None else "stopped"
        return f"<EmbeddedPostgres {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, and return when it accepts connections.

        Raises:
            EmbeddedServerError: No binaries; the directory is in use, of another major version or closed to the
                server's user; or the server did not start, and its last log lines say why.
        """
        if self._guard is not None:
            raise EmbeddedServerError(f"{self!r} was started already")
        home = None if self._directory is None else self._directory.resolve()
        account = server_account(home / "postgres-data" if home is not None else None)
        binaries = find_postgres(account)
        self._guard = GuardedProcess()
        try:
            home = self._claim_home(self._guard, home, account)
            self.log = home / "postgres.log"
            data = self._data(self._guard, home, binaries, account)
            self._launch(self._guard, data, binaries, account)
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"Cannot prepare PostgreSQL's directory: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, disconnecting its clients; a second call does nothing."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def url(self, database: str = "postgres") -> URL:
        """Return the address of a database for SQLAlchemy and psycopg 3, with the superuser's password.

        Raises:
            EmbeddedServerError: The server is not started.
        """
        if self._guard is None:
            raise EmbeddedServerError("PostgreSQL has no address: start it first")
        # Said here, so that a PGSSLMODE of the environment, meant for another server, does not ask this one for TLS.
        query = {"sslmode": "disable"}
        return URL.create("postgresql+psycopg", self.user, self.password, self.host, self.port, database, query)

    def _claim_home(self, guard: GuardedProcess, directory: Path | None, account: Account | None) -> Path:
        """Create or lock the directory that holds the data, the password and the log; let the account enter it."""
        if directory is None:
            home = temporary_home("postgres", account)
            guard.claim(temporary=home)
        else:
            home = directory
            if account is not None:
                _require_entry(next(parent for parent in home.parents if parent.exists()), account)
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (home / "PG_VERSION").exists():
                raise EmbeddedServerError(
                    f"{home} is itself a data directory of PostgreSQL: give an empty or a new directory"
                )
            guard.claim(lock=home / "postgres.lock")
        if account is not None:
            if blocked_at(home, account) == home and all(file.name.startswith(_OUR_FILES) for file in home.iterdir()):
                os.chown(home, 0, account.gid)
                home.chmod(0o710)
            _require_entry(home, account)
        return home

    def _data(self, guard: GuardedProcess, home: Path, binaries: PostgresBinaries, account: Account | None) -> Path:
        """Return the data directory, of the right version, initialised the first time; read or choose the password."""
        data, password_file = home / "postgres-data", home / "postgres.password"
        if not data.exists():
            self.password = secrets.token_urlsafe(24)
            write_private(password_file, self.password)
            self._initialise(guard, data, binaries, account)
            return data
        major = (data / "PG_VERSION").read_text().strip()
        if major != str(binaries.major):
            raise EmbeddedServerError(
                f"{data} is of PostgreSQL {major}, and {binaries.directory} has {binaries.version}: name the binaries "
                f"of {major} in {POSTGRES_BIN_ENV}, or give another directory"
            )
        if not password_file.exists():
            raise EmbeddedServerError(
                f"{password_file} is missing, so nobody can log in: restore it, or give another directory"
            )
        self.password = password_file.read_text(encoding="utf-8")
        return data

    def _initialise(
        self, guard: GuardedProcess, data: Path, binaries: PostgresBinaries, account: Account | None
    ) -> None:
        """Run initdb beside the final place and rename, so that a killed initdb is never taken for a database."""
        partial, given, log = data.with_name("postgres-data.partial"), data.with_name("initdb.password"), self.log
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        if account is not None:
            os.chown(partial, account.uid, account.gid)
        write_private(given, self.password, account=account)
        try:
            options = ["-A", "scram-sha-256", f"--pwfile={given}", "--no-instructions", *_locale(binaries.major)]
            if self._directory is None:
                options.append("--no-sync")
            command = [str(binaries.directory / "initdb"), "-D", str(partial), "-U", _USER, *options]
            guard.run(command, env=_environment(), stdout=log, stderr=log, account=account)
            code = guard.exit_code(INITDB_TIMEOUT_S)
            if code != 0:
                problem = f"did not end within {INITDB_TIMEOUT_S:.0f} s" if code is None else f"failed with {code}"
                raise EmbeddedServerError(f"initdb of PostgreSQL {binaries.version} {problem}:\n{log_tail(log)}")
        finally:
            given.unlink(missing_ok=True)
        partial.rename(data)

    def _launch(self, guard: GuardedProcess, data: Path, binaries: PostgresBinaries, account: Account | None) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = free_port()
            settings = {
                "timezone": "GMT",  # the only one that needs no zoneinfo on the machine
                "log_timezone": "GMT",
                **_QUIET,
                **self._settings,
                "listen_addresses": HOST,
                "port": str(self.port),
                "unix_socket_directories": "",
            }
            command = [str(binaries.directory / "postgres"), "-D", str(data)]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            self.pid = guard.run(command, env=_environment(), stdout=self.log, stderr=self.log, account=account)
            problem = self._wait_until_ready(guard, data)
            if problem is None:
                return
            tail = log_tail(self.log)
            if _ALREADY_RUNS in tail:
                raise EmbeddedServerError(f"Another PostgreSQL already runs on {data}: stop it first.\n{tail}")
            if _PORT_TAKEN not in tail or attempt == PORT_ATTEMPTS:
                raise EmbeddedServerError(f"PostgreSQL {binaries.version} {problem}; its log ends with:\n{tail}")

    def _wait_until_ready(self, guard: GuardedProcess, data: Path) -> str | None:
        """Return None when the server is ready, else what became of it."""
        for _ in poll(START_TIMEOUT_S):
            code = guard.exit_code(POLL_S)
            if code is not None:
                return f"ended with {code} instead of starting"
            try:
                lines = (data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                continue
            if (
                len(lines) > _STATUS_LINE
                and lines[_PID_LINE] == str(self.pid)
                and lines[_STATUS_LINE].strip() == "ready"
            ):
                return None
        return f"was not ready within {START_TIMEOUT_S:.0f} s"


def _require_entry(directory: Path, account: Account) -> None:
    blocked = blocked_at(directory, account)
    if blocked is not None:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root, and user {account.name} cannot enter {blocked}: give a directory "
            "elsewhere, such as /var/lib/voiceassist-db, or run this as an ordinary user"
        )


def _locale(major: int) -> list[str]:
    if major >= 17:
        return ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--encoding=UTF8", "--locale=C.UTF-8"]


def _environment() -> dict[str, str]:
    # Nothing else of ours: it may hold tokens, the server runs as another user, and PG* variables would change it.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}
