"""``voiceassist-db migrate``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say

if TYPE_CHECKING:
    from voiceassist_db.schema import Migrated


@click.command(
    "migrate",
    cls=Command,
    exit_codes={0: "done, or there is nothing to do", 1: "refused or failed, and why", 2: "wrong usage"},
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@json_option
def command(*, dry_run: bool, as_json: bool) -> None:
    """Create this package's tables in DATABASE_URL, or bring them up to date.

    Run it as the owner of the tables. It may be repeated at any time, and several may run at once: one does the work. If an
    administrator must help, such as for pgcrypto, it prints the statements to ask for.
    """
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.schema import migrate

    engine = create_engine(config.database_url(), **config.engine_options())
    try:
        with attended(engine):
            done = migrate(engine, dry_run=dry_run)
    finally:
        engine.dispose()
    if as_json:
        emit_json(dataclasses.asdict(done) | {"executed": not dry_run})
    else:
        _show(done, is_dry=dry_run)


def _show(done: Migrated, *, is_dry: bool) -> None:
    if not done.steps:
        say(f"nothing to do: the database is at {_at(done.before)}")
        return
    for step in done.steps:
        say(f"  {step.id}: {step.summary}")
    would = "would migrate" if is_dry else "migrated"
    say(f"{would} from {_at(done.before)} to {_at(done.after)}{', nothing was changed' if is_dry else ''}")


def _at(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "nothing"
