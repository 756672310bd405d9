"""What others named reaches no terminal as it is: every command, with tables, ids and roles of hostile names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import pytest
from sqlalchemy import Engine, text

from tests.cli.conftest import Outcome, Run
from tests.rotation.shapes import Shape
from tests.rotation.shapes import run as execute
from voiceassist_db import Database
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.cli import output
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.cli.rotating import EXIT_ACTIVE, EXIT_QUARANTINED
from voiceassist_db.errors import DatabaseUnavailableError, DecryptionError, UnsafeConnectionError
from voiceassist_db.models import Kind

pytestmark = pytest.mark.wide

HOSTILE: Final = "\x1b[31m\nok\r\t\x7f\x9b2J\u202e\u2066\u200b[bold]x"
"""A terminal's sequences, line breaks, overrides, an invisible space, and Rich's markup."""

SHOWN: Final = r"\x1b[31m\nok\r\t\x7f\x9b2J\u202e\u2066\u200b[bold]x"
TABLE: Final = f"t{HOSTILE}"
IDS: Final = tuple((f"{number}{HOSTILE}",) for number in range(5))
HOLDER: Final = f"host{HOSTILE}"


def require_visible(shown: str) -> None:
    """Require that a text holds line breaks and what can be seen, and nothing else."""
    acting = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [each for each in shown if each != "\n" and unicodedata.category(each) in acting], ascii(shown)


@pytest.fixture
def hostile(environment: dict[str, str], database: Database, engine: Engine) -> dict[str, str]:
    """The environment of a database with a table whose names and ids are hostile, and one value of it damaged."""
    quoted = '"' + TABLE + '"'
    shape = Shape(name=quoted, key={f'"key{HOSTILE}"': "text"}, keys=IDS, fields={"note": Kind.TEXT})
    with engine.begin() as connection:
        shape.create(connection)
        (table,) = [each for each in encrypted_tables(connection) if each.name == TABLE]
        shape.fill(connection, database.keys.keyring(connection), table)
        execute(
            connection,
            f"UPDATE {quoted} SET note_encrypted = pg_catalog.set_byte(note_encrypted, 20, 255 - "
            f"pg_catalog.get_byte(note_encrypted, 20)) WHERE \"key{HOSTILE}\" LIKE '0%'",
        )
    return environment


@pytest.fixture
def seen(run: Run) -> Run:
    """A function that runs a command, every progress line included, and requires that all it prints can be seen."""

    def call(*arguments: str, env: dict[str, str], **options: click.Command) -> Outcome:
        done = run(*arguments, env=env, progress_every_s=0.0, **options)
        require_visible(done.stdout)
        require_visible(done.stderr)
        return done

    return call


def test_tables_and_rows(seen: Run, hostile: dict[str, str], engine: Engine) -> None:
    """Status, verification and rotation show names and ids in full, each on its own line, and their JSON is exact."""
    assert f"t{SHOWN}: 5 under version 1" in seen("status", env=hostile).stdout
    assert seen("status", "--json", env=hostile).json["tables"][TABLE] == {"1": 5}
    verified = seen("verify", env=hostile)
    assert "verifying: 5 of 5 rows" in verified.stderr
    assert f"  t{SHOWN}.note of row 0{SHOWN} " in verified.stdout
    failures = seen("verify", "--json", env=hostile).json["tables"][TABLE]["failures"]
    assert [each["row_id"] for each in failures] == [IDS[0][0]]
    assert f"  t{SHOWN}: 5 rows" in seen("--dry-run", env=hostile, command=rotate_command).stdout
    assert seen("--dry-run", "--json", env=hostile, command=rotate_command).json["rows"][TABLE] == 5
    rotated = seen("--tables", TABLE, env=hostile, command=rotate_command)
    assert rotated.code == EXIT_QUARANTINED
    assert "rotating: 4 of 5 rows" in rotated.stderr
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE key_rotations SET state = 'running', lease_until = now() + '1 hour', holder_name = :name"),
            {"name": HOLDER},
        )
    assert f"host{SHOWN}" in seen("status", env=hostile).stdout
    assert seen("status", "--json", env=hostile).json["rotations"][0]["holder_name"] == HOLDER
    active = seen(env=hostile, command=rotate_command)
    assert (active.code, active.stderr.count("\n")) == (EXIT_ACTIVE, 1)
    assert f"host{SHOWN}" in active.stderr


def test_messages_of_errors(seen: Run, hostile: dict[str, str], engine: Engine) -> None:
    """A table that cannot be followed is named by every command that reads the catalogue, on one line."""
    with engine.begin() as connection:
        execute(connection, f'ALTER TABLE "{TABLE}" ADD "{HOSTILE}_encrypted" bytea')
    for done in [
        seen("status", env=hostile),
        seen("verify", env=hostile),
        seen("provision", "--print", env=hostile),
        seen(env=hostile, command=rotate_command),
        seen("--retire", env=hostile, command=rotate_command),
    ]:
        assert SHOWN in done.error
    assert SHOWN in seen("check", env=hostile).stdout
    assert any(SHOWN in each["detail"] for each in seen("check", "--json", env=hostile).json["checks"])


def test_unknown_names(seen: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """A table or a file that does not exist is named with what cannot be seen escaped, as a shell's wildcard may give it."""
    assert SHOWN in seen("--tables", HOSTILE, env=environment, command=rotate_command).stderr
    for arguments in [
        ["import", str(tmp_path / HOSTILE)],
        ["import", "-", HOSTILE],
        [HOSTILE],
        ["status", f"--{HOSTILE}"],
    ]:
        done = seen(*arguments, env=environment)
        assert done.code == 2
        assert r"\x1b" in done.stderr


def test_roles(seen: Run, environment: dict[str, str]) -> None:
    """The SQL of `provision` names roles of any name in a form that can be seen."""
    names = [f"{name}{HOSTILE}" for name in ("owner", "app", "rotator", "auditor")]
    given = [f"--{name.split(chr(27))[0]}={name}" for name in names]
    printed = seen("provision", "--print", *given, env=environment)
    assert printed.code == 0
    assert r'CREATE ROLE U&"app\+00001b[31m\+00000aok\+00000d' in printed.stdout
    assert seen("provision", "--print", "--json", *given, env=environment).json["roles"] == names


def test_an_error_nobody_expected(seen: Run, environment: dict[str, str]) -> None:
    """A traceback and a log record show their text escaped, too."""
    code = f"import click; from voiceassist_db.cli import run\n@click.command()\ndef crash(): raise RuntimeError({HOSTILE!r})\nrun(crash)"
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert crashed.returncode == 1
    shown = crashed.stderr.decode()
    require_visible(shown)
    assert r"RuntimeError: \x1b[31m" in shown

    @click.command
    def warn() -> None:
        import logging

        logging.getLogger("somebody").warning("a table: %s", HOSTILE)

    logged = seen(env=environment, command=warn).stderr
    assert logged.startswith(r"WARNING: a table: \x1b[31m")


def test_a_progress_bar() -> None:
    """On a terminal, the bar's note is neither markup nor a sequence of the terminal."""
    with terminal() as shown, output.progress("verifying") as report:
        report(1, 2, HOSTILE)
    left = shown.getvalue()
    assert r"[31m\nok\r\t\x7f\x9b2J\u202e\u2066\u200b[bold]x" in left
    assert not set("\x7f\x9b\u202e\u2066\u200b") & set(left)
    assert "\x1b[31m" not in left


@contextmanager
def terminal() -> Iterator[io.StringIO]:
    """Let standard error be a terminal of its own, wide enough for every line."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        shown = Terminal()
        patch.setattr(sys, "stderr", shown)
        patch.setenv("COLUMNS", "300")
        patch.setenv("TERM", "xterm")
        yield shown


def test_an_error_is_safe_to_log() -> None:
    """``str`` of an error is one line that can be seen; its attributes are exact; lines of a longer message stay."""
    error = DecryptionError(f"row {HOSTILE}", table=TABLE, row_id=HOSTILE)
    assert str(error) == f"row {SHOWN}"
    assert (error.table, error.row_id) == (TABLE, HOSTILE)
    assert "\n" not in str(DatabaseUnavailableError(HOSTILE))
    assert str(UnsafeConnectionError("first\n  second\x1b")) == "first\n  second\\x1b"


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """Every character comes back from the JSON that is printed, and none acts on a terminal."""
    everything = "".join(chr(code) for code in (*range(0x300), 0x2028, 0x202E, 0xD800, 0x1F600, 0xE0041))
    output.emit_json({everything: everything})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {everything: everything}
    require_visible(shown)
