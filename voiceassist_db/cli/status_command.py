"""``voiceassist-db status``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.databases import Databases, Target, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.fleet import Result, deliver
from voiceassist_db.cli.output import json_option, say
from voiceassist_db.commands import ROTATE
from voiceassist_db.escaping import escaped_sql

if TYPE_CHECKING:
    from voiceassist_db.status import Rotation, Status

MAX_AGE_DAYS = 35


@click.command(
    "status",
    cls=Command,
    exit_codes={0: "shown", 1: "a database could not be asked, and why", 2: "wrong usage"},
)
@click.option(
    "--max-age-days",
    type=click.IntRange(min=1),
    default=MAX_AGE_DAYS,
    show_default=True,
    help="Age of the current key from which it is reported as overdue for rotation.",
)
@databases_option
@json_option
def command(databases: Databases, max_age_days: int, as_json: bool) -> None:
    """Show key versions, rows per version and table, and rotations. Needs the database only, no key."""
    deliver(databases.targets(), lambda target: _read(target, max_age_days), as_json=as_json)


def _read(target: Target, max_age_days: int) -> Result:
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.execution import translated
    from voiceassist_db.status import read_status

    engine = create_engine(target.url, **config.engine_options())
    try:
        with attended(engine), translated(), engine.connect() as connection:
            status = read_status(connection, max_age_days=max_age_days)
    finally:
        engine.dispose()
    return Result(as_dict(status), lambda: _show(status, max_age_days))


def as_dict(status: Status) -> dict[str, Any]:
    """Return the status as the JSON contract has it."""
    return {
        "keys": [
            {
                "version": key.version,
                "state": key.state,
                "scheme": key.scheme.value,
                "created_at": key.created_at,
                "replaced_at": key.replaced_at,
                "retired_at": key.retired_at,
            }
            for key in status.keys
        ],
        "tables": {
            table: {str(version): rows for version, rows in counts.items()} for table, counts in status.tables.items()
        },
        "unencrypted": status.unencrypted,
        "rotations": [dataclasses.asdict(each) for each in status.rotations],
        "key_age_days": status.key_age_days,
        "overdue": status.overdue,
        "gaps": [dataclasses.asdict(each) for each in status.gaps],
    }


def _show(status: Status, max_age_days: int) -> None:
    if not status.keys:
        say("no key is registered: run `voiceassist-db init-keys`")
    for key in status.keys:
        dates = f"since {key.created_at:%Y-%m-%d}"
        if key.replaced_at:
            dates += f", replaced {key.replaced_at:%Y-%m-%d}"
        if key.retired_at:
            dates += f", retired {key.retired_at:%Y-%m-%d}"
        say(f"key version {key.version}: {key.state}, scheme {key.scheme.value}, {dates}")
    if status.overdue:
        say(f"the current key is {status.key_age_days:.0f} days old, more than {max_age_days}: rotate it")
    for table, counts in status.tables.items():
        parts = [f"{rows:,} under version {version}" for version, rows in counts.items()]
        if without := status.unencrypted.get(table):
            parts.append(f"{without:,} with nothing encrypted")
        say(f"{table}: {', '.join(parts) or 'empty'}")
    for gap in status.gaps:
        to_add = f". To add it: {escaped_sql('; '.join(gap.statements))};" if gap.statements else ""
        say(f"{gap.table}: {gap.problem}{to_add}")
    for run in status.rotations:
        say(_described(run))


def _described(run: Rotation) -> str:
    what = {
        "encryption": f"rotation {run.from_version} → {run.to_version}",
        "index": f"rotation of the blind-index key {run.from_version} → {run.to_version}",
        "retirement": f"retirement of key version {run.from_version}",
    }[run.kind]
    told = f"{what}: {run.state if run.state != 'running' or run.is_active else 'died'}, started {run.started_at:%Y-%m-%d %H:%M}"
    if run.kind != "retirement":
        told += f", {run.rows:,} rows, {run.quarantined:,} quarantined"
    if run.is_active and run.kind != "retirement":
        left = max(run.rows_total - run.rows, 0)
        eta = f", about {left / run.rows_per_second:,.0f} s left" if run.rows_per_second >= 1 else ""
        told += (
            f"; {run.holder_name} is at it: {run.rows:,} of {run.rows_total:,}, {run.rows_per_second:,.0f} rows/s{eta}"
        )
    elif run.state == "superseded":
        told += ": its keys are no longer those of the secret, so there is nothing to go on with"
    elif run.state != "finished":
        told += f"; last seen {run.heartbeat_at:%Y-%m-%d %H:%M:%S}: run `{ROTATE}` to go on"
    return told
