"""Servers die with the process that started them, whatever kills it."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

import voiceassist_db
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.process import GuardedProcess, write_private
from voiceassist_db.errors import EmbeddedServerError

ROOT = Path(voiceassist_db.__file__).parents[1]
SITE_PACKAGES = Path(psycopg.__file__).parents[1]
GONE_TIMEOUT_S = 120.0

BOTH = """
import json, os, sys, time
from voiceassist_db.embedded import EmbeddedOpenBao, EmbeddedPostgres
with EmbeddedPostgres(settings={"fsync": "off"}) as postgres, EmbeddedOpenBao(tls=True) as bao:
    guards = [server._guard._watcher.pid for server in (postgres, bao)]
    directories = [str(postgres.log.parent), str(bao.ca_file.parents[1])]
    owner = (postgres.log.parent / "postgres-data").stat().st_uid
    print(json.dumps({"pids": [postgres.pid, bao.pid, *guards], "directories": directories, "uid": owner}), flush=True)
    if "wait" in sys.argv:
        time.sleep(60)
"""


def start(script: str, *arguments: str, python: str = sys.executable, **options: Any) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd="/", **options)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return False
        command = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    # A zombie has ended; whether it is reaped is up to the machine's process 1.
    return bool(state) and not state.startswith("Z")


def wait_until_gone(pids: list[int], directories: list[str]) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while time.monotonic() < deadline:
        if not any(map(is_running, pids)) and not any(map(os.path.lexists, directories)):
            return
        time.sleep(0.05)
    pytest.fail(f"left: {[pid for pid in pids if is_running(pid)]} {[d for d in directories if os.path.lexists(d)]}")


def test_a_killed_parent_leaves_no_process_and_no_directory() -> None:
    """Kill -9 and SIGTERM of a process with both servers stop the servers and their watchers."""
    with start(BOTH, "wait") as killed, start(BOTH, "wait") as terminated:  # at once, to save a second
        for parent, number in ((killed, signal.SIGKILL), (terminated, signal.SIGTERM)):
            assert parent.stdout is not None
            started = json.loads(parent.stdout.readline())
            assert all(map(is_running, started["pids"]))
            parent.send_signal(number)
            wait_until_gone(started["pids"], started["directories"])
            assert -number == parent.wait()


def test_a_killed_parent_stops_what_runs_before_the_server() -> None:
    """A process killed while initdb, or its like, still runs leaves that one neither."""
    directory = Path(tempfile.gettempdir()) / f"embedded-test-{os.getpid()}"
    script = f"""
import os, pathlib
from voiceassist_db.embedded.process import GuardedProcess
guard, home = GuardedProcess(), pathlib.Path({str(directory)!r})
guard.claim(temporary=home)
log = home / "log"
print(guard.run(["/bin/sh", "-c", "sleep 600 & wait"], env={{}}, stdout=log, stderr=log), flush=True)
os.kill(os.getpid(), 9)
"""
    with start(script) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
    wait_until_gone([pid], [str(directory)])


def test_a_given_directory_survives_a_killed_parent(directory: Path) -> None:
    """After kill -9 the data is still there, its server is not, and the next start takes over."""
    script = """
import os, pathlib, sys
from voiceassist_db.embedded import EmbeddedPostgres
server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    with start(script, str(directory)) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
    wait_until_gone([pid], [])
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while True:
        try:
            with EmbeddedPostgres(directory) as server:
                assert pid != server.pid
            break
        except EmbeddedServerError:  # the watcher frees its lock a moment after its server has ended
            if time.monotonic() > deadline:
                raise


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(directory: Path) -> None:
    """Watcher and server are in sessions of their own, so the parent hears of Ctrl-C first."""
    guard = GuardedProcess()
    guard.claim(temporary=directory)
    pid = guard.run(["/bin/sleep", "600"], env={}, stdout=directory / "log", stderr=directory / "log")
    assert os.getsid(0) not in {os.getsid(pid), os.getsid(guard._watcher.pid)}
    guard.close()
    guard.close()
    assert not is_running(pid)


def test_an_exit_code_is_reported(directory: Path) -> None:
    """The parent learns that the program ended, and may run another in the same directory."""
    guard = GuardedProcess()
    guard.claim(temporary=directory)
    log = directory / "log"
    for code in (3, 0):
        guard.run(["/bin/sh", "-c", f"echo $TOLD; exit {code}"], env={"TOLD": f"it is {code}"}, stdout=log, stderr=log)
        assert code == guard.exit_code(10)
        assert f"it is {code}\n" == log.read_text()
    guard.close()


def test_a_program_that_is_missing_is_named(directory: Path) -> None:
    """An executable that is not there is an error of ours, and not a silent watcher."""
    guard = GuardedProcess()
    guard.claim(temporary=directory)
    with pytest.raises(EmbeddedServerError, match="/no/such/program"):
        guard.run(["/no/such/program"], env={}, stdout=directory / "log", stderr=directory / "log")
    guard.close()


def test_a_killed_watcher_is_noticed(directory: Path) -> None:
    """The parent reports that its watcher is gone instead of waiting for it."""
    guard = GuardedProcess()
    guard.claim(temporary=directory)
    os.kill(guard._watcher.pid, signal.SIGKILL)
    with pytest.raises(EmbeddedServerError, match="watcher process"):
        guard.exit_code(10)
    guard.close()


def test_a_private_file_replaces_what_was_there(directory: Path) -> None:
    """A secret is never written into a file that others can read, nor through somebody's symbolic link."""
    directory.mkdir()
    file, elsewhere = directory / "password", directory / "elsewhere"
    file.symlink_to(elsewhere)
    write_private(file, "secret")
    assert not elsewhere.exists()
    assert ("secret", 0o100600) == (file.read_text(), file.lstat().st_mode)


def _python_for_everyone() -> str | None:
    """Return an interpreter of this version that ``nobody`` can run; one under root's home is closed to it."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        script = "import os, sys; sys.exit(not all(os.access(path, os.R_OK | os.X_OK) for path in sys.argv[1:]))"
        command = [candidate, "-c", script, str(ROOT / "voiceassist_db"), str(SITE_PACKAGES)]
        options: dict[str, Any] = {"user": "nobody", "extra_groups": [], "cwd": "/"}
        try:
            subprocess.run(command, check=True, capture_output=True, **options)
        except (OSError, subprocess.SubprocessError):
            continue
        return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test already runs as an ordinary user")
def test_an_ordinary_user_starts_both() -> None:
    """Without root both servers run as the user who starts them, and leave nothing."""
    python = _python_for_everyone()
    if python is None:
        pytest.skip(f"user nobody can run no Python of this version, or cannot read {ROOT} or {SITE_PACKAGES}")
    nobody = pwd.getpwnam("nobody")
    with start(BOTH, python=python, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[]) as parent:
        assert parent.stdout is not None
        started = json.loads(parent.stdout.readline())
    assert 0 == parent.returncode
    assert nobody.pw_uid == started["uid"]
    wait_until_gone(started["pids"], started["directories"])
