"""``scripts/rotate_keys.py``."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from voiceassist_db.cli.attending import attended, say_skipped
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, progress, say, say_error
from voiceassist_db.escaping import escaped_sql

if TYPE_CHECKING:
    from voiceassist_db.constraints import Gap
    from voiceassist_db.rotation import IndexRotationReport, Plan, Progress, Retirement, RotationReport

TARGET_BATCH_S: Final = 0.5
GRACE_DAYS: Final = 21
MAX_GRACE_DAYS: Final = 36_500

EXIT_REFUSED: Final = 1
EXIT_LEFT_OVER: Final = 3
EXIT_QUARANTINED: Final = 4
EXIT_ACTIVE: Final = 5
EXIT_INTERRUPTED: Final = 6

POOL_OVER_WORKERS: Final = 3
"""Connections beside the workers': heartbeat, probes, and the run itself."""


@click.command(
    "rotate_keys",
    cls=Command,
    exit_codes={
        0: "done and verified (--dry-run: it could begin)",
        EXIT_REFUSED: "refused or failed, and why",
        2: "wrong usage",
        EXIT_LEFT_OVER: "rows are left under the old key, or not every value could be verified: run it again, see `verify`",
        EXIT_QUARANTINED: "done, but for rows that could not be read or were refused: `status` counts them, key_rotation_failures names them",
        EXIT_ACTIVE: "another run is active",
        EXIT_INTERRUPTED: "interrupted; run it again to go on",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; change nothing.")
@click.option(
    "--resume", "resume_only", is_flag=True, help="Only finish an unfinished rotation, which is also done without it."
)
@click.option("--tables", metavar="A,B", help="Only these tables, for now.  [default: all]")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Connections that re-encrypt in parallel.",
)
@click.option(
    "--target-batch-seconds",
    type=click.FloatRange(min=0.01, max=60),
    default=TARGET_BATCH_S,
    show_default=True,
    help="How long a batch, whose rows are locked, should take.",
)
@click.option(
    "--max-rows-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Re-encrypted, and then verified, by all workers.  [default: no limit]",
)
@click.option(
    "--max-replica-lag",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Pause while any replica is this far behind, or its lag cannot be read.  [default: not watched]",
)
@click.option(
    "--index-key", "index_key", is_flag=True, help="Rotate the blind-index key instead of the encryption key."
)
@click.option(
    "--retire", "retires", is_flag=True, help="Instead: end the previous key version, which no row may need any more."
)
@click.option(
    "--grace-days",
    type=click.FloatRange(min=0, max=MAX_GRACE_DAYS),
    default=GRACE_DAYS,
    show_default=True,
    help="With --retire: days since the end of the rotation that must have passed, by the server's clock, for the backups of that "
    "time.",
)
@json_option
def command(  # noqa: PLR0917  # click passes them by name
    dry_run: bool,
    resume_only: bool,
    tables: str | None,
    workers: int,
    target_batch_seconds: float,
    max_rows_per_second: float | None,
    max_replica_lag: float | None,
    index_key: bool,
    retires: bool,
    grace_days: float,
    as_json: bool,
) -> None:
    """Rotate the encryption key: a new one in Vault, and every encrypted row of every table re-encrypted under it.

    Readers and writers go on meanwhile. An unfinished rotation is continued, whatever ended it. Ctrl-C and SIGTERM end it
    after the batches that are under way. The database is named by DATABASE_URL, the keys by VAULT_ADDR and its login.
    """
    from voiceassist_db import config
    from voiceassist_db.database import Database
    from voiceassist_db.engine import create_engine
    from voiceassist_db.errors import NothingToDoError, RotationActiveError
    from voiceassist_db.rotation import Pace, RotationReport, plan, retire, rotate, rotate_index_key

    pace = Pace(
        workers=workers,
        target_batch_s=target_batch_seconds,
        max_rows_per_second=max_rows_per_second,
        max_replica_lag_s=max_replica_lag,
    )
    names = tables.split(",") if tables else None
    _require_fitting(retires=retires, index_key=index_key, dry_run=dry_run, tables=tables, resume_only=resume_only)
    engine = create_engine(config.database_url(), **config.engine_options(), pool_size=workers + POOL_OVER_WORKERS)
    with Database(engine, config.key_provider()) as database, attended(engine):
        try:
            say_skipped(engine)
            if retires:
                _show_retirement(retire(engine, database.keys, grace_days=grace_days), as_json=as_json)
                return
            if dry_run:
                _show_plan(
                    plan(engine, database.keys, tables=names, pace=pace, resume_only=resume_only), as_json=as_json
                )
                return
            with _stopping() as stop, _showing() as show:
                report: RotationReport | IndexRotationReport
                if index_key:
                    report = rotate_index_key(
                        engine, database.keys, pace=pace, resume_only=resume_only, stop=stop, on_progress=show
                    )
                else:
                    report = rotate(
                        engine,
                        database.keys,
                        pace=pace,
                        tables=names,
                        resume_only=resume_only,
                        stop=stop,
                        on_progress=show,
                    )
        except NothingToDoError as nothing:
            if as_json:
                emit_json({"nothing_to_do": str(nothing)})
            else:
                say(str(nothing))
            return
        except RotationActiveError as active:
            say_error(active)
            sys.exit(EXIT_ACTIVE)
    if as_json:
        emit_json(dataclasses.asdict(report) | {"rows_per_second": round(report.rows_per_second, 1)})
    else:
        _show_report(report) if isinstance(report, RotationReport) else _show_index_report(report)
        _show_leftovers(report)
    sys.exit(exit_code(report))


def _require_fitting(*, retires: bool, index_key: bool, dry_run: bool, tables: str | None, resume_only: bool) -> None:
    """Refuse options that would be passed over in silence."""
    if retires and (index_key or dry_run or tables or resume_only):
        raise click.UsageError("--retire goes with --grace-days and --json only")
    if index_key and (dry_run or tables):
        raise click.UsageError("--index-key rotates all tables at once, and has no --dry-run")


def exit_code(report: RotationReport | IndexRotationReport) -> int:
    """Return the exit code that tells a run's result."""
    if report.done:
        return 0
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_QUARANTINED if report.done_but_quarantined else EXIT_LEFT_OVER


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one ends the process as it would any other."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)
        say("stopping after the batches that are under way; once more to stop at once", err=True)

    number: int
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _showing() -> Iterator[Callable[[Progress], None]]:
    with progress("rotating") as report:
        yield lambda now: report(now.rows, now.total, ": ".join(part for part in (now.phase, now.note) if part))


def _show_retirement(done: Retirement, *, as_json: bool) -> None:
    if as_json:
        emit_json(dataclasses.asdict(done))
        return
    say(
        f"key version {done.version} is retired: {', '.join(done.tables)} accept key version {done.floor} and later only, and "
        "the key store no longer holds it"
    )


def _show_plan(would: Plan, *, as_json: bool) -> None:
    if as_json:
        emit_json(dataclasses.asdict(would))
        return
    does = "go on with" if would.unfinished else "begin"
    say(f"would {does} the rotation from key version {would.from_version} to {would.to_version}:")
    for table, rows in would.rows.items():
        say(f"  {table}: {rows:,} rows to re-encrypt, {would.bytes[table] / (1 << 20):,.0f} MiB with indexes")
    _show_gaps(would.gaps)
    say("nothing was changed")


def _show_gaps(gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        say(f"{gap.table}: {gap.problem}. To add it: {escaped_sql('; '.join(gap.statements))};")


def _show_report(report: RotationReport) -> None:
    verified = "verified" if report.verified else "NOT VERIFIED"
    hot = "" if report.hot_ratio is None else f", HOT {report.hot_ratio:.0%}"
    say(
        f"key version {report.from_version} → {report.to_version}: {report.rows:,} rows in {report.seconds:.1f} s "
        f"({report.rows_per_second:,.0f}/s), {report.remaining:,} remaining, {verified}; tables x{report.table_growth:.2f}, "
        f"indexes x{report.index_growth:.2f}{hot}"
    )
    if report.open_writers:
        say(f"{report.open_writers} transactions of others may still add rows under the old key: run this again")
    _show_gaps(report.gaps)


def _show_index_report(report: IndexRotationReport) -> None:
    say(
        f"blind-index key: {report.rows:,} rows in {report.seconds:.1f} s ({report.rows_per_second:,.0f}/s), "
        f"{report.remaining:,} remaining"
    )


def _show_leftovers(report: RotationReport | IndexRotationReport) -> None:
    for each in report.waits_for:
        say(f"waited in vain for {each}")
    for reason, rows in report.reasons.items():
        say(f"{rows:,} rows {reason}")
    if report.quarantined:
        say("these rows are as they were: key_rotation_failures names them. Then run this again")
    if report.interrupted:
        say("interrupted: run this again to go on")
