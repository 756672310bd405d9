"""``voiceassist-db migrate``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say

if TYPE_CHECKING:
    from voiceassist_db.schema import Migrated

KEPT: Final = (
    "alembic_version still has the row {row}, which recorded this package's migrations before. Another application's migrations may use "
    "the same table, so the row was kept. If none does, remove it: DELETE FROM alembic_version WHERE version_num = '{row}';"
)


@click.command(
    "migrate",
    cls=Command,
    exit_codes={0: "done, or there is nothing to do", 1: "refused or failed, and why", 2: "wrong usage"},
)
@click.option(
    "--registry-only/--with-patient-tables",
    default=None,
    help="Without patient_data and clinical_notes, for an application that has tables of its own, or with them.  [default: as before in this "
    "database, at first with them]",
)
@click.option(
    "--schema",
    metavar="NAME",
    help="Create the tables in this schema, and the schema if it is missing.  [default: the first one of the search_path]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--sql", "only_sql", is_flag=True, help="Print the SQL for this database as it is; change nothing.")
@json_option
def command(*, registry_only: bool | None, schema: str | None, dry_run: bool, only_sql: bool, as_json: bool) -> None:
    """Create this package's tables in DATABASE_URL, or bring them up to date.

    Run it as the owner of the tables. It may be repeated at any time, and several may run at once: one does the work. If an
    administrator must help, such as for pgcrypto, it prints the statements to ask for.

    It records what it did in the table voiceassist_version. An application's own migrations, by Alembic or by anything else, stay
    as they are.
    """
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.schema import migrate, migration_sql

    if only_sql and (as_json or dry_run):
        raise click.UsageError("--sql goes with neither --json nor --dry-run")
    asked: dict[str, Any] = {"schema": schema, "registry_only": registry_only}
    engine = create_engine(config.database_url(), **config.engine_options())
    problem = ""
    try:
        with attended(engine):
            if only_sql:
                for line in migration_sql(engine, **asked).splitlines():
                    say(line)
                return
            done = migrate(engine, **asked, dry_run=dry_run)
    except ValueError as error:
        problem = str(error)
    finally:
        engine.dispose()
    if problem:
        raise click.UsageError(problem)
    if as_json:
        emit_json(dataclasses.asdict(done) | {"executed": not dry_run})
    else:
        _show(done, schema, is_dry=dry_run)


def _show(done: Migrated, schema: str | None, *, is_dry: bool) -> None:
    for step in done.steps:
        say(f"  {step.id}: {step.summary}")
    if not done.steps:
        say(f"nothing to do: the database is at {_at(done.before)}")
    elif is_dry:
        say(f"would migrate from {_at(done.before)} to {_at(done.after)}; nothing was changed")
    else:
        say(f"migrated from {_at(done.before)} to {_at(done.after)}")
    if done.kept is not None:
        say(KEPT.format(row=done.kept))
    if schema is not None and not is_dry:
        say("next: roles find these tables if their search_path names the schema. See docs/migrations.md")


def _at(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "nothing"
