"""``voiceassist-db demo``."""

from __future__ import annotations

import sys

import click

from voiceassist_db.cli.explaining import Command


@click.command("demo", cls=Command, exit_codes={0: "every step did what it says", 1: "a step failed"})
def command() -> None:
    """Show everything on servers of its own: import, read, search, rotate the key, verify. Leaves nothing behind."""
    from voiceassist_db.cli.demo import demonstrate

    if not demonstrate():
        sys.exit(1)
