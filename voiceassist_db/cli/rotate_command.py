"""``voiceassist-db rotate``, and ``scripts/rotate_keys.py``, which also retires keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from voiceassist_db.cli.databases import Databases, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.numbers import Number
from voiceassist_db.cli.output import json_option
from voiceassist_db.cli.rotating import (
    EXIT_ACTIVE,
    EXIT_INTERRUPTED,
    EXIT_LEFT_OVER,
    EXIT_QUARANTINED,
    EXIT_REFUSED,
    Asked,
    carry_out,
)

TARGET_BATCH_S: Final = 0.5
GRACE_DAYS: Final = 21
MAX_GRACE_DAYS: Final = 36_500

_EXIT_CODES: Final = {
    0: "done and verified (--dry-run: it could begin)",
    EXIT_REFUSED: "refused or failed, and why",
    2: "wrong usage",
    EXIT_LEFT_OVER: "rows are left under the old key, or not every value could be verified: run it again, see `verify`",
    EXIT_QUARANTINED: "done, but for rows that could not be read or were refused: `status` counts them, key_rotation_failures names them",
    EXIT_ACTIVE: "another run is active",
    EXIT_INTERRUPTED: "interrupted; run it again to go on",
}
_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_OPTIONS: Final = (
    click.option("--dry-run", is_flag=True, help="Check everything and show the plan; change nothing."),
    click.option(
        "--resume",
        "resume_only",
        is_flag=True,
        help="Only finish an unfinished rotation, which is also done without it.",
    ),
    click.option("--tables", metavar="A,B", help="Only these tables, for now.  [default: all]"),
    click.option(
        "--workers",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Connections that re-encrypt in parallel.",
    ),
    click.option(
        "--target-batch-seconds",
        type=Number(min=0.01, max=60),
        default=TARGET_BATCH_S,
        show_default=True,
        help="How long a batch, whose rows are locked, should take.",
    ),
    click.option(
        "--max-rows-per-second",
        type=Number(min=0, min_open=True),
        help="Re-encrypted, and then verified, by all workers.  [default: no limit]",
    ),
    click.option(
        "--max-replica-lag",
        type=Number(min=0, min_open=True),
        metavar="SECONDS",
        help="Pause while any replica is this far behind, or its lag cannot be read.  [default: not watched]",
    ),
    click.option(
        "--index-key", "index_key", is_flag=True, help="Rotate the blind-index key instead of the encryption key."
    ),
)

_RETIRE: Final = click.option(
    "--retire", "retires", is_flag=True, help="Instead: end the previous key version, which no row may need any more."
)


def grace_option(words: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--grace-days``, whose help begins with these words."""
    return click.option(
        "--grace-days",
        type=Number(min=0, max=MAX_GRACE_DAYS),
        default=GRACE_DAYS,
        show_default=True,
        help=f"{words} since the end of the rotation that must have passed, by the server's clock, for the backups of that time.",
    )


def _with(*options: Callable[[Any], Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to a command, in this order."""

    def added(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return added


@click.command("rotate", cls=Command, exit_codes=_EXIT_CODES, context_settings=_SETTINGS)
@_with(*_OPTIONS, databases_option, json_option)
def command(databases: Databases, *, as_json: bool, **given: Any) -> None:
    """Rotate the encryption key: a new one in Vault, and every encrypted row of every table re-encrypted under it.

    Readers and writers go on meanwhile. An unfinished rotation is continued, whatever ended it. Ctrl-C and SIGTERM end it
    after the batches that are under way. The database is named by DATABASE_URL, the keys by VAULT_ADDR and its login.

    Several databases on one secret are rotated to one new key, one after the other. A database that fails stops no other one: run
    the same command again. The exit code is then the worst one of all, in the order 1, 6, 5, 3, 4, 0.
    """
    carry_out(databases, _asked(**given), as_json=as_json)


@click.command("rotate_keys", cls=Command, exit_codes=_EXIT_CODES, context_settings=_SETTINGS, help=command.help)
@_with(*_OPTIONS, _RETIRE, grace_option("With --retire: days"), databases_option, json_option)
def rotate_keys(databases: Databases, *, as_json: bool, retires: bool, grace_days: float, **given: Any) -> None:
    """Rotate the key, or with ``--retire`` end the one before: what ``scripts/rotate_keys.py`` runs."""
    if retires and (given["index_key"] or given["dry_run"] or given["tables"] or given["resume_only"]):
        raise click.UsageError("--retire goes with --grace-days and --json only")
    carry_out(databases, _asked(**given, grace_days=grace_days if retires else None), as_json=as_json)


def _asked(
    *,
    dry_run: bool,
    resume_only: bool,
    tables: str | None,
    workers: int,
    target_batch_seconds: float,
    max_rows_per_second: float | None,
    max_replica_lag: float | None,
    index_key: bool,
    grace_days: float | None = None,
) -> Asked:
    from voiceassist_db.rotation import Pace

    pace = Pace(
        workers=workers,
        target_batch_s=target_batch_seconds,
        max_rows_per_second=max_rows_per_second,
        max_replica_lag_s=max_replica_lag,
    )
    if index_key and (dry_run or tables):
        raise click.UsageError("--index-key rotates all tables at once, and has no --dry-run")
    return Asked(
        pace=pace,
        tables=tables.split(",") if tables else None,
        resume_only=resume_only,
        index_key=index_key,
        dry_run=dry_run,
        grace_days=grace_days,
    )
