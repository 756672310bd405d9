"""``voiceassist-db dev``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import say


@click.command(
    "dev",
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    examples=(
        "voiceassist-db dev -- voiceassist-db check",
        "voiceassist-db dev --dir ./data -- python my_app.py",
    ),
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the data in this directory for next time. Default: a temporary one, removed at the end.",
)
@click.argument("arguments", metavar="[-- CMD ...]", nargs=-1, type=click.UNPROCESSED)
def command(directory: Path | None, arguments: tuple[str, ...]) -> None:
    """Run CMD, or a shell, with PostgreSQL and OpenBao up, the database migrated, keys made, and the environment set.

    CMD sees VAULT_ADDR, VAULT_TOKEN and DATABASE_URL, the address of the application's role. OWNER_DATABASE_URL, ROTATOR_DATABASE_URL,
    AUDITOR_DATABASE_URL and SUPERUSER_DATABASE_URL are those of the other roles: give one of them to a command as its DATABASE_URL.

    The servers are real, listen on loopback only, and end with this command. Exit code: CMD's.
    """
    from voiceassist_db.cli.local import local_deployment

    shell = os.environ.get("SHELL", "/bin/sh")
    with local_deployment(directory) as environment:
        if not arguments:
            say(f"PostgreSQL and OpenBao are up; leave the shell to stop them. Try: {_EXAMPLES}", err=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_OTHER_KEYS)}
        # So that `voiceassist-db` and `python` mean this installation, whether its environment is activated or not.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        status = _run(list(arguments) or [shell], inherited | environment | {"PATH": path}, is_shell=not arguments)
    sys.exit(status)


_OF_OTHER_KEYS = ("ENCRYPTION_KEY", "VAULT_", "VOICEASSIST_DB_VAULT_")
"""Variables that would lead the command to another deployment's keys, or refuse ours."""

_EXAMPLES = "voiceassist-db import FILE.csv, voiceassist-db status, python"


def _run(arguments: list[str], environment: dict[str, str], *, is_shell: bool) -> int:
    """Run the command; signals are its to handle, and this process outlives it to stop the servers."""
    try:
        child = subprocess.Popen(arguments, env=environment)
    except OSError as error:
        raise click.UsageError(f"cannot run {arguments[0]!r}: {error.strerror}") from None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(signal.SIGHUP if is_shell else number)  # an interactive shell ignores SIGTERM

    # The terminal sends Ctrl-C to both; only the child acts on it.
    before: dict[int, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    # A shell without job control hangs up its whole process group, this process included, when it is itself hung up.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        before[stop] = signal.getsignal(stop)
        if before[stop] is not signal.SIG_IGN:  # as under nohup
            signal.signal(stop, pass_on)
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
