"""The program between this package and one server: starts it, and stops it when the parent goes away.

``process.py`` runs this file as a script, so it imports nothing but the standard library. It reads one JSON request a
line on stdin and writes one JSON answer a line on stdout. The end of stdin is the order to stop: an orderly
``close()``, an exception, SIGTERM and kill -9 of the parent all end there, and so share one path.

Hazard: kill -9 of this program itself orphans the server and its temporary directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from typing import Any

STOP_SIGNALS: tuple[tuple[signal.Signals, float], ...] = (
    (signal.SIGINT, 15.0),  # PostgreSQL: fast shutdown; OpenBao: graceful
    (signal.SIGQUIT, 3.0),  # PostgreSQL: immediate shutdown, which still frees its shared memory
    (signal.SIGKILL, 3.0),
)
"""What a server is sent to stop it, and how many seconds it then has."""
REMOVE_TIMEOUT_S = 5.0

_READ_BYTES = 65536


class Watcher:
    """One server at a time, one temporary directory and one lock, all given up when :meth:`serve` returns."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._temporary: str | None = None

    def serve(self) -> None:
        """Answer requests until stdin ends or a signal says stop; then stop the server and remove the directory."""
        wakeup, wakeup_writer = os.pipe()
        os.set_blocking(wakeup_writer, False)
        signal.set_wakeup_fd(wakeup_writer)
        # Python level handlers that do nothing: the numbers arrive on the wakeup pipe, where select() sees them.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            self._loop(wakeup)
        finally:
            self._stop_child()
            self._remove_temporary()

    def _loop(self, wakeup: int) -> None:
        pending = b""
        while True:
            ready, _, _ = select.select([0, wakeup], [], [])
            if wakeup in ready:
                if set(os.read(wakeup, _READ_BYTES)) - {signal.SIGCHLD}:
                    return
                self._report_exit()
            if 0 in ready:
                received = os.read(0, _READ_BYTES)
                if not received:
                    return
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self._handle(json.loads(line))

    def _handle(self, request: dict[str, Any]) -> None:
        try:
            if request["do"] == "claim":
                answer = self._claim(request["temporary"], request["lock"])
            else:
                answer = self._run(request)
        except (OSError, subprocess.SubprocessError) as error:
            answer = {"error": str(error)}
        _answer(answer)

    def _claim(self, temporary: str | None, lock: str | None) -> dict[str, Any]:
        if temporary is not None:
            os.mkdir(temporary, 0o700)
            self._temporary = temporary
        if lock is not None:
            # Never closed: the lock ends with this process, so also with whatever kills it.
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return {"locked_by": os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"}
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getppid()}\n".encode())
        return {"claimed": True}

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.ExitStack() as files:
            stdout = files.enter_context(open(request["stdout"], "wb", opener=_private))
            stderr = files.enter_context(open(request["stderr"], "wb", opener=_private))
            account: dict[str, Any] = {}
            if request["uid"] is not None:
                account = {"user": request["uid"], "group": request["gid"], "extra_groups": []}
            self._child = subprocess.Popen(
                request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=request["env"],
                cwd="/",
                umask=0o077,
                start_new_session=True,
                **account,
            )
        return {"pid": self._child.pid}

    def _report_exit(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            _answer({"exit": self._child.returncode})
            self._child = None

    def _stop_child(self) -> None:
        for number, seconds in STOP_SIGNALS:
            if self._child is None or self._child.poll() is not None:
                return
            # The whole group, because initdb has children. Its leader is not reaped yet, so the number is still its.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(seconds)

    def _remove_temporary(self) -> None:
        if self._temporary is None:
            return
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        while os.path.lexists(self._temporary) and time.monotonic() < deadline:
            # Again until it is gone: after SIGKILL the server's own children may still be writing.
            shutil.rmtree(self._temporary, ignore_errors=True)
            if os.path.lexists(self._temporary):
                time.sleep(0.05)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _answer(answer: dict[str, Any]) -> None:
    # A parent that is gone cannot read: the end of stdin says so next.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    Watcher().serve()
