"""Every command of the project, found and not listed: those of ``voiceassist-db``, and each script."""

from __future__ import annotations

import functools
import runpy
from typing import Final

import click

from tests.cli.conftest import ROOT
from voiceassist_db.cli import cli

SCRIPTS: Final = sorted((ROOT / "scripts").glob("*.py"))


@functools.cache
def every_command() -> dict[str, click.Command]:
    """Return the commands by how a shell calls them, such as ``voiceassist-db dev`` and ``rotate_keys.py``."""
    found: dict[str, click.Command] = {"voiceassist-db": cli}
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found[f"voiceassist-db {name}"] = command
    for script in SCRIPTS:
        (command,) = (each for each in runpy.run_path(str(script)).values() if isinstance(each, click.Command))
        found[script.name] = command
    return found
