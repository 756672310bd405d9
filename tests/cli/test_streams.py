"""Standard streams that are closed, full, gone or of a small character set: writing to them never fails."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli.conftest import own_streams
from voiceassist_db.cli import output, streams

LINES: Final = 300
"""More than a pipe holds, so that a reader that has left is noticed."""

PROGRAM: Final = f"""
import os, sys
from voiceassist_db.cli.streams import make_tolerant
make_tolerant()
opened = os.open("/dev/null", os.O_RDONLY)
for number in range({LINES}):
    print("a line of standard output →", " " * 300, number)
    print("a line of standard error →", " " * 300, number, file=sys.stderr)
with open(os.environ["RESULT"], "w") as file:
    file.write(f"{{opened > 2}} {{sys.stdin.read()!r}}")
sys.exit(7)
"""

FORMS: Final = {
    "as it is": "",
    "a reader that leaves": "2>&1 | head -1",
    "a full disk": ">/dev/full 2>/dev/full",
    "no standard error": "2>&-",
    "no standard output": ">&-",
    "no stream at all": "<&- >&- 2>&-",
    "standard output full": ">/dev/full",
}


def test_a_process_ends_as_its_work_does(tmp_path: Path) -> None:
    """In each state of its streams it goes on, ends with its own exit code, and opens no file in the place of a stream."""
    running = {}
    for number, (name, form) in enumerate(FORMS.items()):
        env = {"PATH": os.environ["PATH"], "RESULT": str(tmp_path / str(number))}
        shell = f'set -o pipefail; "$@" {form}'
        running[name] = subprocess.Popen(
            ["bash", "-c", shell, "bash", sys.executable, "-c", PROGRAM],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {name: (*process.communicate(), process.returncode) for name, process in running.items()}
    for number, name in enumerate(FORMS):
        stdout, stderr, code = ended[name]
        assert (code, (tmp_path / str(number)).read_text()) == (7, "True ''"), (name, stderr)
        assert "Traceback" not in stderr + stdout, name
        assert "Exception ignored" not in stderr + stdout, name
    whole = f" {LINES - 1}\n"
    for name in ("as it is", "no standard output", "standard output full"):
        assert ended[name][1].endswith(whole), name
    assert "standard output could not be written: No space left on device" in ended["standard output full"][1]
    assert ended["no standard error"][0].count("\n") == LINES
    assert ended["a reader that leaves"][0].count("\n") == 1


@pytest.fixture
def tolerant(capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """Streams as a command has them, in this process."""
    with own_streams():
        yield capfd


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_character_that_the_encoding_lacks_is_written_by_others(
    tolerant: pytest.CaptureFixture[str], encoding: str
) -> None:
    """Our own signs get plain ones; a letter of a name becomes the escape that Python writes."""
    with own_streams():
        sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        streams.make_tolerant()
        output.say("▸ 1 → 2 … José Łukasz")
    shown = tolerant.readouterr().out
    if encoding == "utf-8":
        assert shown == "▸ 1 → 2 … José Łukasz\n"
    elif encoding == "ascii":
        assert shown == "> 1 -> 2 ... Jos\\xe9 \\u0141ukasz\n"
    else:
        assert "1 -> 2" in shown
        assert "\\u0141ukasz" in shown


def test_an_error_while_the_stream_is_written_loses_one_line_only(tolerant: pytest.CaptureFixture[str]) -> None:
    """A disk that was full for a while gets what comes later, and is reported once."""
    streams.make_tolerant()
    kept, full = os.dup(1), os.open("/dev/full", os.O_WRONLY)
    output.say("first")
    os.dup2(full, 1)
    output.say("second")
    output.say("third")
    os.dup2(kept, 1)
    output.say("fourth")
    os.close(kept)
    os.close(full)
    shown = tolerant.readouterr()
    assert shown.out == "first\nfourth\n"
    assert shown.err == "standard output could not be written: No space left on device. The command goes on.\n"


@pytest.mark.parametrize("goes", [False, True], ids=["stays", "goes away"])
def test_a_progress_bar_on_a_terminal(tolerant: pytest.CaptureFixture[str], goes: bool) -> None:
    """One of a small character set shows what it can; one that goes away in the midst does not end the work."""
    screen, terminal = pty.openpty()
    kept = os.dup(2)
    os.dup2(terminal, 2)
    os.close(terminal)
    sys.stderr = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    streams.make_tolerant()
    assert sys.stderr.isatty()
    reading = threading.Thread(target=lambda: shown.append(os.read(screen, 1 << 16)))
    shown: list[bytes] = []
    with output.progress("verifying") as report:
        reading.start()
        report(1, 3, "→ José")
        reading.join()
        if goes:
            os.close(screen)
        for done in (2, 3):
            report(done, 3, "→ José")
            output.say("a line → José", err=True)
    os.dup2(kept, 2)
    os.close(kept)
    if not goes:
        while b"a line -> Jos" not in shown[-1]:
            shown.append(shown[-1] + os.read(screen, 1 << 16))
        os.close(screen)
        assert shown[-1].isascii()


def test_a_pipe_that_another_process_made_non_blocking_gets_every_byte() -> None:
    """Where it is full, the write waits for room instead of failing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as source:  # noqa: PTH123  # a descriptor
            got.append(source.read())

    thread = threading.Thread(target=read)
    thread.start()
    raw = streams._Tolerant(writer, lambda error: None)
    given = bytes(range(256)) * 4096
    assert raw.write(given) == len(given)
    os.close(writer)
    thread.join()
    assert got == [given]
