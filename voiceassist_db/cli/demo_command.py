"""``voiceassist-db demo``."""

from __future__ import annotations

import sys

import click


@click.command("demo")
def command() -> None:
    """Show everything on servers of its own: import, read, search, rotate the key, verify. Leaves nothing behind.

    Exit code 0 only if every step did what it says.
    """
    from voiceassist_db.cli.demo import demonstrate

    if not demonstrate():
        sys.exit(1)
