"""The report of several databases: its form, its exit code, and what stands on standard error. No server is needed."""

from __future__ import annotations

import json
import logging
from itertools import permutations

import pytest
from sqlalchemy import make_url

from voiceassist_db.cli import rotating
from voiceassist_db.cli.databases import Target
from voiceassist_db.cli.fleet import WORST_FIRST, Result, deliver, worst
from voiceassist_db.cli.output import VisibleFormatter, about, say, say_error
from voiceassist_db.cli.stopping import stopping
from voiceassist_db.errors import DatabaseUnavailableError, RotationActiveError, UnsafeConnectionError

URL = make_url("postgresql://me:hunter2@db1/clinic")


def target(name: str, *, has_own_address: bool = False) -> Target:
    """Return a database of the report."""
    return Target(URL, name, has_own_address)


def test_every_exit_code_of_a_rotation_has_its_rank() -> None:
    """A code without a rank would end a fleet in a traceback."""
    codes = {value for name, value in vars(rotating).items() if name.startswith("EXIT_")}
    assert codes | {0} == set(WORST_FIRST)


def test_the_exit_code_is_the_worst_one_in_any_order() -> None:
    """Refused or failed, interrupted, active, left over, quarantined, done."""
    for better, worse in zip(WORST_FIRST[1:], WORST_FIRST, strict=False):
        for codes in permutations([0, better, worse]):
            assert worst(codes) == worse


def test_a_failure_stops_no_other_database(capsys: pytest.CaptureFixture[str]) -> None:
    """The object of each is the usual one, an error is one too, and stands on standard error with the name."""

    def work(which: Target) -> Result:
        if which.name == "b":
            raise DatabaseUnavailableError("check DATABASE_URL")
        if which.name == "c":
            raise RotationActiveError("another one")
        return Result({"rows": 3}, lambda: say("three rows"))

    targets = [target("a"), target("b"), target("c"), target("d")]
    with pytest.raises(SystemExit) as ended:
        deliver(targets, work, as_json=True, code_of=lambda error: 5 if isinstance(error, RotationActiveError) else 1)
    stdout, stderr = capsys.readouterr()
    assert ended.value.code == 1
    assert json.loads(stdout) == {
        "databases": {
            "a": {"rows": 3, "exit_code": 0},
            "b": {"error": "check DATABASE_URL", "exit_code": 1},
            "c": {"error": "another one", "exit_code": 5},
            "d": {"rows": 3, "exit_code": 0},
        },
        "exit_code": 1,
    }
    assert stderr == "error: b: check DATABASE_URL\nerror: c: another one\n"
    with pytest.raises(SystemExit):
        deliver(targets[2:], work, as_json=False)
    stdout, stderr = capsys.readouterr()
    assert stdout == "c\n\nd\nthree rows\n\n1 of 2 databases succeeded; c ended with exit code 1\n"
    assert stderr == "error: c: another one\n"


def test_an_address_of_its_own_is_not_called_the_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """Who is sent to DATABASE_URL would correct what is right."""

    def work(_: Target) -> Result:
        raise UnsafeConnectionError("no key is sent:\n- see DATABASE_URL")

    with pytest.raises(SystemExit):
        deliver([target("a", has_own_address=True)], work, as_json=True)
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout)["databases"]["a"]["error"] == "no key is sent:\n- see its entry in the list"
    assert stderr == "error: a: no key is sent:\n- see its entry in the list\n"


def test_one_database_is_told_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name, without an exit code in the object, and its error is the command's."""
    deliver([target("")], lambda _: Result({"rows": 3}, lambda: None), as_json=True)
    assert capsys.readouterr().out == '{"rows": 3}\n'
    deliver([target("")], lambda _: Result({}, lambda: say("three rows")), as_json=False)
    assert capsys.readouterr().out == "three rows\n"
    with pytest.raises(SystemExit) as ended:
        deliver([target("")], lambda _: Result({}, lambda: None, 4), as_json=False)
    assert ended.value.code == 4

    def fails(_: Target) -> Result:
        raise DatabaseUnavailableError("away")

    with pytest.raises(DatabaseUnavailableError):
        deliver([target("")], fails, as_json=True)


def test_lines_on_standard_error_name_the_database(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress, waits, warnings of the log: in a fleet they are worth nothing without it. Results are under the name already."""
    record = logging.LogRecord("voiceassist_db", logging.WARNING, __file__, 1, "the heartbeat %s", ("failed",), None)
    formatter = VisibleFormatter("%(levelname)s: %(message)s")
    with about("100%s \u202eclinic"):
        say("waiting", err=True)
        say("result")
        assert formatter.format(record) == "100%s \\u202eclinic: WARNING: the heartbeat failed"
    say_error("over")
    assert formatter.format(record) == "WARNING: the heartbeat failed"
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr) == ("result\n", "100%s \\u202eclinic: waiting\nerror: over\n")


def test_signals_are_as_before_after_the_block() -> None:
    """A command in a process that goes on leaves no handler behind."""
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before
