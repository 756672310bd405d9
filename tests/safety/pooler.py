"""A real pgbouncer before a server, in transaction mode: each transaction may be another session of the server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.process import (
    HOST,
    GuardedProcess,
    free_port,
    log_tail,
    poll,
    temporary_home,
    write_private,
)

READY_S = 20.0
BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

CONFIGURATION = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {sessions}
logfile = {log}
verbose = 2
admin_users = {user}
"""


class Pooler:
    """pgbouncer, as an account that is not root.

    Args:
        url: The server's address, with the role and the password that clients and the pooler use.
        sessions: How many sessions of the server all clients share.
    """

    def __init__(self, url: URL, *, sessions: int = 1) -> None:
        self._url = url
        self._sessions = sessions
        self._account = server_account()
        self._guard = GuardedProcess()
        self._port = free_port()
        self._home = temporary_home("pgbouncer", self._account)

    @property
    def url(self) -> URL:
        """Address of the database through the pooler."""
        return self._url.set(port=self._port)

    @property
    def log(self) -> Path:
        """What it has to say."""
        return self._home / "pgbouncer.log"

    def __enter__(self) -> Self:
        assert BINARY is not None
        self._guard.claim(temporary=self._home)
        if self._account is not None:
            os.chown(self._home, self._account.uid, self._account.gid)
        users, configuration = self._home / "users.txt", self._home / "pgbouncer.ini"
        write_private(users, f'"{self._url.username}" "{self._url.password}"\n', account=self._account)
        text = CONFIGURATION.format(
            host=HOST,
            server_port=self._url.port,
            port=self._port,
            users=users,
            log=self.log,
            sessions=self._sessions,
            user=self._url.username,
        )
        write_private(configuration, text, account=self._account)
        output = self._home / "output"
        self._guard.run(
            [BINARY, str(configuration)],
            env={"PATH": os.environ["PATH"]},
            stdout=output,
            stderr=output,
            account=self._account,
        )
        for _ in poll(READY_S):
            if self.log.exists() and "process up" in self.log.read_text(encoding="utf-8"):
                return self
            if self._guard.exit_code(0.01) is not None:
                break
        raise AssertionError(f"pgbouncer did not start: {log_tail(output)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.close()
