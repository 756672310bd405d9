"""A PostgreSQL server that another user of the machine runs where the real one is expected, and that logs what it is given."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy import URL

from tests.conftest import FAST
from tests.safety.conftest import ROLES, Deployment
from voiceassist_db import create_engine
from voiceassist_db.embedded.accounts import Account, server_account
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.embedded.process import HOST, GuardedProcess, free_port, log_tail, poll, temporary_home
from voiceassist_db.provisioning import provision
from voiceassist_db.schema import migrate

READY_S = 60.0
DATABASE = "postgres"
MARK = "captured:"

CAPTURE = f"""
    CREATE OR REPLACE FUNCTION pgcrypto.pgp_sym_encrypt(text, text, text) RETURNS bytea LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} % %', $1, $2; RETURN NULL; END $$;
    CREATE OR REPLACE FUNCTION pgcrypto.pgp_sym_decrypt(bytea, text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} %', $2; RETURN NULL; END $$;
"""


def other_account() -> Account | None:
    """Return the user nobody, where this process may run programs as others; else None."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


class Rogue:
    """The server: it has the deployment's schema, roles and registry, and functions that log keys and values.

    Args:
        deployment: What it imitates.

    Attributes:
        account: Who runs it; None: this process's own user.
        directory: Where its socket is.
        port: Its port, on loopback and of the socket.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.account = other_account()
        self._bin = find_postgres(self.account or server_account()).directory
        self._guard = GuardedProcess()
        self._home = GuardedProcess()
        self.directory = temporary_home("rogue", self.account)
        self.port = free_port()

    def url(self, role: str = ROLES.app) -> URL:
        """Return its address on loopback; every login is let in without a password."""
        return URL.create("postgresql+psycopg", role, "x", HOST, self.port, DATABASE, {"sslmode": "disable"})

    def socket_url(self, role: str = ROLES.app) -> URL:
        """Return its address by the socket."""
        query = {"host": str(self.directory), "port": str(self.port)}
        return URL.create("postgresql+psycopg", role, database=DATABASE, query=query)

    def captured(self) -> list[str]:
        """Return what it was given."""
        return [line for line in self._log.read_text(encoding="utf-8").splitlines() if MARK in line]

    @property
    def _log(self) -> Path:
        return self.directory / "rogue.log"

    def __enter__(self) -> Self:
        self._home.claim(temporary=self.directory)
        if self.account is not None:
            os.chown(self.directory, self.account.uid, self.account.gid)
        data, output = self.directory / "data", self.directory / "initdb.log"
        preparing = GuardedProcess()
        command = [str(self._bin / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
        preparing.run(
            [*command, "--encoding=UTF8", "--locale=C"],
            env={"LC_ALL": "C"},
            stdout=output,
            stderr=output,
            account=self.account,
        )
        assert preparing.exit_code(READY_S) == 0, log_tail(output)
        preparing.close()
        settings = FAST | {"listen_addresses": HOST, "port": str(self.port), "timezone": "GMT", "log_timezone": "GMT"}
        settings["unix_socket_directories"] = str(self.directory)
        command = [str(self._bin / "postgres"), "-D", str(data)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        self._guard.run(command, env={"LC_ALL": "C"}, stdout=self._log, stderr=self._log, account=self.account)
        for _ in poll(READY_S):
            if self._log.exists() and "ready to accept connections" in self._log.read_text(encoding="utf-8"):
                break
            assert self._guard.exit_code(0.02) is None, log_tail(self._log)
        self._imitate()
        return self

    def _imitate(self) -> None:
        engine = create_engine(self.url("postgres"))
        migrate(engine)
        with engine.begin() as connection:
            provision(connection, ROLES)
        engine.dispose()
        with psycopg.connect(host=HOST, port=self.port, user="postgres", dbname=DATABASE, autocommit=True) as admin:
            for table in ("encryption_keys", "index_keys"):
                with (
                    self._deployment.admin.cursor().copy(f"COPY {table} TO STDOUT") as real,
                    admin.cursor().copy(f"COPY {table} FROM STDIN") as copied,
                ):
                    for rows in real:
                        copied.write(rows)
            admin.execute(CAPTURE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.close()
        self._home.close()
