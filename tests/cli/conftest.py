"""Commands: what an operator's shell sees of them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import click
import pytest
from sqlalchemy import URL

from tests.conftest import VaultServer, leading_to
from voiceassist_db.cli import cli, output
from voiceassist_db.cli import run as run_command

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = [sys.executable, "-c", "from voiceassist_db.cli import main; main()"]
ROTATE: Final = [sys.executable, str(ROOT / "scripts" / "rotate_keys.py")]
TIMEOUT_S: Final = 300
PROGRESS: Final = re.compile(r".*\w+: [0-9,]+( of [0-9,]+)? \w+, [0-9,]+/s")


@dataclass(frozen=True)
class Outcome:
    """What a finished command left."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, which must be one object."""
        result = json.loads(self.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result

    @property
    def said(self) -> str:
        """Standard error without the lines of progress, of which a run on a busy machine prints one every few seconds."""
        return "".join(line for line in self.stderr.splitlines(keepends=True) if not PROGRESS.match(line))

    @property
    def error(self) -> str:
        """The message of a command that failed as it should: code 1, nothing printed, one line, no traceback."""
        assert (self.code, self.stdout) == (1, "")
        (line,) = self.said.splitlines()
        assert line.startswith("error: ")
        return line


Run = Callable[..., Outcome]
Check = Callable[[Outcome, dict[str, str]], Outcome]


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """A function that proves that no secret, no traceback and no warning came out of a command."""

    def proved(done: Outcome, env: dict[str, str]) -> Outcome:
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        assert "Warning" not in output, output
        secrets = [env.get("VAULT_TOKEN"), env.get("ENCRYPTION_KEY"), env.get("VAULT_SECRET_ID")]
        if "database_url" in request.fixturenames:
            url: URL = request.getfixturevalue("database_url")
            secrets.append(url.password)
        assert not [secret for secret in secrets if secret and secret in output], "a secret was printed"
        return done

    return proved


@contextmanager
def own_streams() -> Iterator[None]:
    """Let a command replace the standard streams of this process for the block, as it does in a process of its own."""
    with ExitStack() as stack:
        for name in ("stdin", "stdout", "stderr", "excepthook"):
            stack.enter_context(patch.object(sys, name, getattr(sys, name)))
        yield


@pytest.fixture
def run(check: Check, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command to its end, in a given environment, by its entry point but in this process.

    What a process of its own would add is the import of everything, most of a second; see ``run_process``.
    """

    def call(
        *arguments: str, env: dict[str, str], command: click.Command = cli, progress_every_s: float = math.inf
    ) -> Outcome:
        capfd.readouterr()
        # As in a process that has just begun: pytest has put its own handlers there.
        log = patch.object(logging.root, "handlers", list[logging.Handler]())
        argv = patch.object(sys, "argv", ["voiceassist-db", *arguments])
        # By default none: a run on a busy machine would print its progress, and on an idle one would not.
        progress = patch.object(output, "PLAIN_LINE_EVERY_S", progress_every_s)
        with (
            patch.dict(os.environ, env, clear=True),
            argv,
            log,
            progress,
            own_streams(),
            pytest.raises(SystemExit) as ended,
        ):
            run_command(command)
        return check(Outcome(int(ended.value.code or 0), *capfd.readouterr()), env)

    return call


@pytest.fixture
def run_process(check: Check) -> Run:
    """A function that runs a command as a process, as an operator's shell does."""

    def call(
        *arguments: str, env: dict[str, str], command: list[str] = COMMAND, given: str | None = None, cwd: Path = ROOT
    ) -> Outcome:
        done = subprocess.run(
            [*command, *arguments],
            env=env,
            cwd=cwd,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        return check(Outcome(done.returncode, done.stdout, done.stderr), env)

    return call


@pytest.fixture
def fresh_environment(database_url: URL, vault: VaultServer, vault_path: str) -> dict[str, str]:
    """The way to a migrated database and to a place in the key store, neither of which has a key yet."""
    return leading_to(database_url, vault, vault_path)
