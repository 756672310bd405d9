"""What a rotation tells a person: its plan, its result, what is left over, and the end of a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from voiceassist_db.cli.output import say
from voiceassist_db.commands import RETIRE, ROTATE_INDEX
from voiceassist_db.decision import waiting_for
from voiceassist_db.escaping import escaped_sql

if TYPE_CHECKING:
    from voiceassist_db.constraints import Gap
    from voiceassist_db.rotation import IndexRotationReport, Plan, Retirement, RotationReport


def show_retirement(done: Retirement) -> None:
    """Print which key version ended."""
    told = f"key version {done.version} is retired: {', '.join(done.tables)} accept key version {done.floor} and later only"
    if done.removed:
        say(f"{told}, and the key store no longer holds it")
    else:
        say(f"{told}. It {waiting_for(done.needed_by, f'`{RETIRE}`')}")


def show_plan(would: Plan) -> None:
    """Print what a rotation would do."""
    does = "go on with" if would.unfinished else "begin"
    say(f"would {does} the rotation from key version {would.from_version} to {would.to_version}:")
    for table, rows in would.rows.items():
        say(f"  {table}: {rows:,} rows to re-encrypt, {would.bytes[table] / (1 << 20):,.0f} MiB with indexes")
    _show_gaps(would.gaps)
    say("nothing was changed")


def _show_gaps(gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        say(f"{gap.table}: {gap.problem}. To add it: {escaped_sql('; '.join(gap.statements))};")


def show_report(report: RotationReport) -> None:
    """Print what a rotation did."""
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


def show_index_report(report: IndexRotationReport) -> None:
    """Print what a rotation of the blind-index key did."""
    say(
        f"blind-index key: {report.rows:,} rows in {report.seconds:.1f} s ({report.rows_per_second:,.0f}/s), "
        f"{report.remaining:,} remaining"
    )
    if report.needed_by:
        say(f"the key before it {waiting_for(tuple(report.needed_by), f'`{ROTATE_INDEX}`')}")


def show_leftovers(report: RotationReport | IndexRotationReport) -> None:
    """Print what a run left, and why."""
    for each in report.waits_for:
        say(f"waited in vain for {each}")
    for reason, rows in report.reasons.items():
        say(f"{rows:,} rows {reason}")
    if report.quarantined:
        say("these rows are as they were: key_rotation_failures names them. Then run this again")
    if report.interrupted:
        say("interrupted: run this again to go on")
