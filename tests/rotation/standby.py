"""A server and a real streaming replica of it, for tests of what a rotation does to replicas."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy import URL

from tests.conftest import FAST, in_memory, plain
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.embedded.process import HOST, GuardedProcess, free_port, log_tail, poll, temporary_home

READY_S = 60.0
NAME = "standby_of_test"


class Standby:
    """A streaming replica, in a directory of its own, made from the binaries and run as the account of its primary.

    Args:
        primary: What it follows.
        name: What its primary knows it by.
    """

    def __init__(self, primary: EmbeddedPostgres, name: str = NAME) -> None:
        self._primary = primary
        self._name = name
        self._account = server_account()
        self._bin = find_postgres(self._account).directory
        self._port = free_port()
        self._guard: GuardedProcess | None = None
        self._home = GuardedProcess()
        with in_memory():
            self._directory = temporary_home("standby", self._account)

    @property
    def url(self) -> URL:
        """Address of the replica, as the superuser."""
        return self._primary.url().set(port=self._port)

    @property
    def log(self) -> Path:
        """What the replica, or the copy that it began as, has to say."""
        return self._directory / "standby.log"

    def __enter__(self) -> Self:
        self._home.claim(temporary=self._directory)
        if self._account is not None:
            os.chown(self._directory, self._account.uid, self._account.gid)
        copying = GuardedProcess()
        command = [str(self._bin / "pg_basebackup"), "-D", str(self._directory / "data"), "-R", "-X", "stream"]
        command += [
            "-c",
            "fast",
            "--no-sync",
            "-d",
            f"host={HOST} port={self._primary.port} application_name={self._name}",
        ]
        environment = {"PGUSER": self._primary.user, "PGPASSWORD": self._primary.password, "LC_ALL": "C"}
        try:
            copying.run(command, env=environment, stdout=self.log, stderr=self.log, account=self._account)
            assert copying.exit_code(READY_S) == 0, log_tail(self.log)
        finally:
            copying.close()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._home.close()

    def start(self) -> None:
        """Start it, and wait until it streams."""
        self._guard = GuardedProcess()
        settings = {**FAST, "listen_addresses": HOST, "port": str(self._port), "unix_socket_directories": ""}
        settings |= {"timezone": "GMT", "log_timezone": "GMT", "wal_retrieve_retry_interval": "100ms"}
        settings |= {"wal_receiver_status_interval": "1s"}
        command = [str(self._bin / "postgres"), "-D", str(self._directory / "data")]
        command += [f"--{name}={value}" for name, value in settings.items()]
        self._guard.run(command, env={"LC_ALL": "C"}, stdout=self.log, stderr=self.log, account=self._account)
        with psycopg.connect(plain(self._primary.url()), autocommit=True) as watcher:
            streaming = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND application_name = %s"
            for _ in poll(READY_S):
                if watcher.execute(streaming, [self._name]).rowcount:
                    return
                assert self._guard.exit_code(0.05) is None, log_tail(self.log)
        raise AssertionError(f"the replica does not stream: {log_tail(self.log)}")

    def stop(self) -> None:
        """Stop it; a second call does nothing."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def execute(self, statement: str) -> None:
        """Execute a statement on the replica."""
        with psycopg.connect(plain(self.url), autocommit=True) as connection:
            connection.execute(statement.encode())
