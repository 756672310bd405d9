"""`dev` and `demo`: a whole deployment for as long as a command runs, and nothing of it afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import COMMAND, ROOT, Run
from tests.conftest import in_memory

SHOW = """
import json, os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    role = connection.execute("SELECT rolname, rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user").fetchone()
print(json.dumps(dict(os.environ) | {"ROLE": role}))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that PostgreSQL's own user may enter, where root's `tmp_path` is closed to it."""
    with in_memory():
        parent = Path(tempfile.mkdtemp(prefix="dev-test-"))
    parent.chmod(0o711)
    yield parent / "kept"
    shutil.rmtree(parent)


@pytest.fixture
def outer(directory: Path) -> dict[str, str]:
    """The environment of somebody who tries it: no servers, and a temporary directory to look into afterwards."""
    temporary = directory.parent / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "TMPDIR": str(temporary)}


def processes(words: str) -> list[str]:
    """Return the command lines of this machine's processes that hold these words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if words in line:
            found.append(line)
    return found


def answers(address: str) -> bool:
    """Say whether anything listens at an address."""
    parts = urlsplit(address)
    assert parts.hostname
    assert parts.port
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=2).close()
    except OSError:
        return False
    return True


def assert_all_gone(outer: dict[str, str], inner: dict[str, Any]) -> None:
    """Neither server answers, no process of theirs is left, and no file."""
    deadline = time.monotonic() + 120
    while (processes(outer["TMPDIR"]) or os.listdir(outer["TMPDIR"])) and time.monotonic() < deadline:  # noqa: PTH208
        time.sleep(0.05)
    assert processes(outer["TMPDIR"]) == []
    assert list(Path(outer["TMPDIR"]).iterdir()) == []
    assert not answers(inner["DATABASE_URL"])
    assert not answers(inner["VAULT_ADDR"])


def dev(*arguments: str) -> list[str]:
    """Return the arguments to run a command in `dev`."""
    return ["dev", "--", *arguments]


@pytest.mark.wide
def test_the_command_gets_the_environment_and_its_exit_code_comes_back(run_process: Run, outer: dict[str, str]) -> None:
    """What leads to other keys is taken out, what leads to these is set, the rest is passed on, and nothing remains."""
    stray = {
        "ENCRYPTION_KEY": "stray",
        "VAULT_ROLE_ID": "stray",
        "VAULT_NAMESPACE": "stray",
        "VAULT_CACERT": "/stray",
        "VOICEASSIST_DB_VAULT_PATH": "stray/path",
        "DATABASE_URL": "postgresql://stray",
        "KEPT": "kept",
    }
    voiceassist = " ".join(f"'{word}'" for word in COMMAND)
    status = f"DATABASE_URL=$AUDITOR_DATABASE_URL {voiceassist} status --json"
    script = f"{status} && {voiceassist} verify --json && {voiceassist} check --json && python3 -c '{SHOW}' && exit 7"
    done = run_process(*dev("/bin/sh", "-c", script), env=outer | stray)
    assert (done.code, done.said) == (7, "")
    told, verified, checked, inner = map(json.loads, done.stdout.splitlines())
    assert [key["version"] for key in told["keys"]] == [1]
    assert verified["ok"] is True
    assert checked["safe"] is True
    assert inner["KEPT"] == "kept"
    assert inner["ROLE"] == ["voiceassist_app", False, False, False]
    assert {name for name in inner if name.startswith("VAULT")} == {"VAULT_ADDR", "VAULT_TOKEN"}
    assert "stray" not in json.dumps(inner)
    assert_all_gone(outer, inner)


@pytest.mark.wide
def test_a_directory_keeps_rows_and_keys(run_process: Run, outer: dict[str, str], directory: Path) -> None:
    """What is imported is there the next time, and opens, for the key was kept as well; two at once are refused."""
    csv = directory.parent / "patients.csv"
    csv.write_text("patient_id,ssn,name\nPT-001,900-00-0001,Zoë Kept\n")
    first = run_process("dev", "--dir", str(directory), "--", *COMMAND, "import", str(csv), "--json", env=outer)
    assert (first.code, first.json["imported"]) == (0, 1)
    voiceassist = " ".join(f"'{word}'" for word in COMMAND)
    second = f"{voiceassist} dev --dir {directory} -- true; echo $?"
    script = (
        f"DATABASE_URL=$AUDITOR_DATABASE_URL {voiceassist} status --json && {voiceassist} verify --json && {second}"
    )
    again = run_process("dev", "--dir", str(directory), "--", "/bin/sh", "-c", script, env=outer)
    assert again.code == 0
    status, verified, code = map(json.loads, again.stdout.splitlines())
    assert code == 1
    (line,) = again.stderr.splitlines()
    assert re.match("error: .* already runs", line)
    assert [key["version"] for key in status["keys"]] == [1]
    assert (verified["ok"], verified["tables"]["patient_data"]["values"]) == (True, 2)
    assert "Zoë Kept".encode() not in b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert processes(str(directory)) == []


@pytest.mark.parametrize(
    "child", ["command", *(pytest.param(each, marks=pytest.mark.wide) for each in ("shell", "busy shell"))]
)
def test_sigterm_stops_all(outer: dict[str, str], child: str) -> None:
    """The command, or the interactive shell, ends by it; then the servers; and the exit code says by which signal.

    A shell that runs something hangs up the whole process group that it shares with `dev`.
    """
    report = Path(outer["TMPDIR"]).parent / "environment.json"
    write = f"open({str(report)!r}, 'w').write(json.dumps(dict(os.environ))); os.rename({str(report)!r}, {str(report)!r} + '.done')"
    ready = report.with_name("environment.json.done")
    if child == "command":
        arguments = dev("python3", "-c", f"import os, json, time; {write}; time.sleep(60)")
        process = subprocess.Popen([*COMMAND, *arguments], env=outer, cwd=ROOT)
    else:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "dev"],
            env=outer | {"SHELL": "/bin/bash", "PS1": "$ "},
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.write(
            ours, f'python3 -c "import os, json, time; {write}; time.sleep({60 * (child == "busy shell")})"\n'.encode()
        )
    deadline = time.monotonic() + 120
    while not ready.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    inner = json.loads(ready.read_text())
    assert answers(inner["DATABASE_URL"])
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    assert code == 128 + (signal.SIGTERM if child == "command" else signal.SIGHUP)
    if child != "command":
        os.close(ours)
        os.close(theirs)
    assert_all_gone(outer, inner)


def test_a_command_that_is_not_there_is_wrong_usage(run_process: Run, outer: dict[str, str]) -> None:
    """The servers are stopped again, and the message names the command."""
    done = run_process(*dev("no-such-command"), env=outer)
    assert done.code == 2
    assert "no-such-command" in done.stderr
    assert list(Path(outer["TMPDIR"]).iterdir()) == []


@pytest.mark.wide
def test_the_demo_shows_all_that_it_promises(run_process: Run, outer: dict[str, str]) -> None:
    """It ends having read rows of both versions in the midst of a rotation, and leaves nothing."""
    done = run_process("demo", env=outer)
    assert (done.code, done.said) == (0, "")
    assert re.search(r"under key version 2: ssn '9\d\d-\d\d-\d{4}'", done.stdout)
    assert re.search(r"under key version 1: ssn '9\d\d-\d\d-\d{4}'", done.stdout)
    assert "key version 1 → 2: 5,000 rows" in done.stdout
    assert "0 remaining" in done.stdout
    assert "5,000 rows, 25,000 values, all well" in done.stdout
    assert "PT-001', 'PT-007'" in done.stdout
    assert processes(outer["TMPDIR"]) == []
    assert list(Path(outer["TMPDIR"]).iterdir()) == []
