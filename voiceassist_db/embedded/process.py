"""Child processes that die with their parent, and the ports and directories that they use.

Owns the parent's side of ``watcher.py``. It must know nothing about PostgreSQL or OpenBao.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voiceassist_db.embedded.accounts import Account, blocked_at
from voiceassist_db.errors import EmbeddedServerError

HOST = "127.0.0.1"
PORT_ATTEMPTS = 5
"""How many free ports are tried before a start fails: another process may take one between its choice and the bind."""
POLL_S = 0.02

_WATCHER = Path(__file__).with_name("watcher.py")
_ANSWER_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 40.0  # more than all that the watcher grants: its STOP_SIGNALS and REMOVE_TIMEOUT_S
_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 16384


class GuardedProcess:
    """One server under a watcher process, which stops it when this process closes it or dies, kill -9 included.

    The watcher and the server live in sessions of their own, so Ctrl-C in the terminal reaches this process alone. A
    child that this process forks without exec shares the pipe: the server then lives until both are gone.
    """

    def __init__(self) -> None:
        """Start the watcher; there is no server yet.

        Raises:
            EmbeddedServerError: This is Windows, or the interpreter cannot be run again.
        """
        if os.name != "posix":
            raise EmbeddedServerError(
                "Embedded servers need Linux or macOS; on Windows use Docker or a server of your own"
            )
        try:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WATCHER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise EmbeddedServerError(f"Cannot run {sys.executable!r} to watch over a server: {error}") from error
        self._received = b""

    def claim(self, *, temporary: Path | None = None, lock: Path | None = None) -> None:
        """Take a directory and a lock for as long as the watcher lives.

        Args:
            temporary: A directory to create now, with mode 0700, and to remove at the end.
            lock: A file to lock, whose directory exists.

        Raises:
            EmbeddedServerError: Another process holds the lock, or one of them cannot be created.
        """
        paths = {"temporary": temporary and str(temporary), "lock": lock and str(lock)}
        answer = self._ask({"do": "claim", **paths})
        if "locked_by" in answer and lock is not None:
            raise EmbeddedServerError(
                f"Another server already runs on {lock.parent} (started by process {answer['locked_by']}, lock "
                f"{lock.name}): stop it first, or give another directory"
            )

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdout: Path, stderr: Path, account: Account | None = None
    ) -> int:
        """Start a program, with only this environment, and return its process id.

        Args:
            argv: The program and its arguments. Every user of the machine can read them: never a password.
            env: The whole environment.
            stdout: File to write, with mode 0600.
            stderr: File to write, with mode 0600; may be the same as ``stdout``.
            account: Whom to run it as; None: as this process.

        Raises:
            EmbeddedServerError: The program cannot be executed.
        """
        ids = {"uid": account and account.uid, "gid": account and account.gid}
        files = {"stdout": str(stdout), "stderr": str(stderr)}
        pid: int = self._ask({"do": "run", "argv": list(argv), "env": dict(env), **files, **ids})["pid"]
        return pid

    def exit_code(self, timeout_s: float) -> int | None:
        """Wait up to ``timeout_s`` for the program to end; return its exit code, or None while it still runs."""
        answer = self._answer(timeout_s)
        if answer is None:
            return None
        code: int = answer["exit"]
        return code

    def close(self) -> None:
        """Stop the server, remove the temporary directory and free the lock; a second call does nothing.

        Raises:
            EmbeddedServerError: The watcher did not end in time.
        """
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        try:
            self._watcher.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EmbeddedServerError(
                f"The watcher process {self._watcher.pid} does not end: kill its server"
            ) from error
        finally:
            if self._watcher.stdout is not None:
                self._watcher.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._watcher.stdin is not None
        try:
            self._watcher.stdin.write(json.dumps(request).encode() + b"\n")
        except (OSError, ValueError) as error:
            raise EmbeddedServerError(f"The watcher process {self._watcher.pid} is gone: {error}") from error
        answer = self._answer(_ANSWER_TIMEOUT_S)
        if answer is None:
            raise EmbeddedServerError(f"The watcher process {self._watcher.pid} does not answer")
        if "error" in answer:
            raise EmbeddedServerError(f"Cannot prepare or start an embedded server: {answer['error']}")
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        assert self._watcher.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._watcher.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                received = os.read(self._watcher.stdout.fileno(), 65536)
                if not received:
                    raise EmbeddedServerError(f"The watcher process {self._watcher.pid} ended, and its server with it")
                self._received += received
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def free_port() -> int:
    """Return a TCP port of loopback that is free now; a start must still be ready to lose it to somebody else."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def poll(timeout_s: float) -> Iterator[None]:
    """Yield until ``timeout_s`` has passed, at least once; the caller does the waiting."""
    deadline = time.monotonic() + timeout_s
    while True:
        yield
        if time.monotonic() > deadline:
            return


def temporary_home(name: str, account: Account | None) -> Path:
    """Return the name of a temporary directory that does not exist yet, where ``account`` can reach it."""
    for parent in (Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve(), Path("/var/tmp").resolve()):
        if parent.is_dir() and (account is None or blocked_at(parent, account) is None):
            return parent / f"voiceassist-db-{name}-{secrets.token_hex(8)}"
    raise EmbeddedServerError(
        f"User {account and account.name} can enter neither {tempfile.gettempdir()} nor /tmp: set TMPDIR"
    )


def write_private(path: Path, text: str, *, account: Account | None = None) -> None:
    """Write a new file with mode 0600, whole or not at all, owned by ``account``."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def log_tail(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:]
    except OSError:
        return "(no log)"
    return "\n".join(line.expandtabs() for line in lines) or "(the log is empty)"
