"""``scripts/rotate_keys.py``."""

from __future__ import annotations

import dataclasses
import sys

import click

from voiceassist_db.cli.output import emit_json, json_option, progress
from voiceassist_db.database import Database
from voiceassist_db.rotation import rotate

EXIT_UNFINISHED = 3


@click.command("rotate_keys")
@json_option
def command(as_json: bool) -> None:
    """Rotate the encryption key: a new one in Vault, and every encrypted row of every table re-encrypted under it.

    Readers and writers go on meanwhile. An interrupted rotation is continued by running this again. The database is named
    by DATABASE_URL, the keys by VAULT_ADDR and its login.

    Exit codes: 0 done and verified; 1 refused or failed, and why; 3 rows are left under the old key, or not every value
    could be verified: run it again, and `voiceassist-db verify`.
    """
    with Database.from_env() as database, progress("rotating") as report:
        done = rotate(database.engine, database.keys, on_progress=report)
    if as_json:
        emit_json(dataclasses.asdict(done) | {"rows_per_second": round(done.rows_per_second, 1)})
    else:
        click.echo(
            f"key version {done.from_version} → {done.to_version}: {done.rows:,} rows in {done.seconds:.1f} s "
            f"({done.rows_per_second:,.0f}/s), {done.remaining:,} remaining, {'verified' if done.verified else 'NOT VERIFIED'}"
        )
    if not done.done:
        sys.exit(EXIT_UNFINISHED)
