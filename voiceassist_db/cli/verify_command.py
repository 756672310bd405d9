"""``voiceassist-db verify``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from voiceassist_db.cli.attending import attended, say_skipped
from voiceassist_db.cli.databases import Databases, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.fleet import Result, deliver
from voiceassist_db.cli.output import json_option, progress, say

if TYPE_CHECKING:
    from voiceassist_db.database import Database
    from voiceassist_db.verification import TableReport


@click.command(
    "verify",
    cls=Command,
    exit_codes={
        0: "all is well",
        1: "some values cannot be trusted (they are listed by row, never by content), or the check could not be made",
        2: "wrong usage",
    },
)
@databases_option
@json_option
def command(databases: Databases, as_json: bool) -> None:
    """Check that every encrypted value opens, is bound to its row, has the right format, and its own blind index.

    Reads every row of every encrypted table, plain columns included: a value that Python cannot hold, such as infinity in a date, is
    named as well.
    """
    from voiceassist_db import config
    from voiceassist_db.database import Database
    from voiceassist_db.engine import create_engine

    targets, options = databases.targets(), config.engine_options()
    provider = config.key_provider()
    deliver(
        targets,
        lambda target: _verified(Database(create_engine(target.url, **options), provider)),
        as_json=as_json,
    )


def _verified(opened: Database) -> Result:
    from voiceassist_db.verification import verify

    with opened as database, attended(database.engine), progress("verifying") as report:
        reports = verify(database.engine, database.keys, on_progress=report)
        say_skipped(database.engine)
    has_failed = any(each.failed for each in reports)
    return Result(as_dict(reports), lambda: show(reports), code=int(has_failed))


def as_dict(reports: list[TableReport]) -> dict[str, Any]:
    """Return the result as the JSON contract has it."""
    return {
        "ok": not any(each.failed for each in reports),
        "tables": {
            each.table: {
                "rows": each.rows,
                "values": each.values,
                "unindexed": each.unindexed,
                "failed": each.failed,
                "failures": [dataclasses.asdict(failure) for failure in each.failures],
            }
            for each in reports
        },
    }


def show(reports: list[TableReport]) -> None:
    """Print a line for each table, and one for each failure."""
    for each in reports:
        verdict = f"{each.failed:,} FAILED" if each.failed else "all well"
        searchable = f", {each.unindexed:,} adopted without a blind index" if each.unindexed else ""
        say(f"{each.table}: {each.rows:,} rows, {each.values:,} values, {verdict}{searchable}")
        for failure in each.failures:
            field = f".{failure.field}" if failure.field else ""
            row = f" of row {failure.row_id} " if failure.row_id else ": "
            say(f"  {each.table}{field}{row}{failure.problem}")
        if each.failed > len(each.failures):
            say(f"  … and {each.failed - len(each.failures):,} more")
