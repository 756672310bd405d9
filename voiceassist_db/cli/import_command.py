"""``voiceassist-db import``."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from voiceassist_db.cli.output import emit_json, json_option, progress

if TYPE_CHECKING:
    from voiceassist_db.importing import BadLine, ImportReport

EXIT_NOTHING_IMPORTED = 3
EXIT_SKIPPED = 4


@click.command("import")
@click.argument("file", type=click.File("rb"), metavar="FILE.csv")
@click.option("--skip-bad", is_flag=True, help="Import the rest where lines are broken; by default, nothing.")
@json_option
def command(file: BinaryIO, skip_bad: bool, as_json: bool) -> None:
    """Import patients from a CSV file; - reads standard input.

    Two formats, recognised by the header: Synthea's patients.csv, whose Id becomes patient_id and medical record
    number; and patient_id,ssn,mrn,name,date_of_birth,address in any order, all but patient_id optional, address being
    a JSON object. UTF-8; an empty cell is no value. All happens in one transaction. Broken lines go to standard error,
    by number and without any value. A patient who is there with equal values is left alone: an import can be repeated.

    Exit codes: 0 every line is imported or was there; 1 the import failed, and why; 2 wrong usage, or no such file;
    3 some lines are broken, and nothing was imported; 4 some lines are broken, and the rest was imported (--skip-bad).
    """
    from voiceassist_db.database import Database
    from voiceassist_db.importing import import_patients

    with Database.from_env() as database, progress("importing", "lines") as report_progress:
        report = import_patients(database, file, skip_bad=skip_bad, on_progress=report_progress, on_bad=_show_bad)
    if as_json:
        emit_json(dataclasses.asdict(report))
    else:
        _show(report)
    if report.bad:
        sys.exit(EXIT_SKIPPED if report.committed else EXIT_NOTHING_IMPORTED)


def _show_bad(bad: BadLine) -> None:
    # Not click.echo, which writes past Rich: a progress bar on a terminal gives way only to what sys.stderr is told.
    sys.stderr.write(f"{bad}\n")


def _show(report: ImportReport) -> None:
    click.echo(f"format: {report.format}")
    if report.ignored_columns:
        click.echo(f"columns that are not imported: {', '.join(report.ignored_columns)}")
    broken = f", {report.bad} broken" if report.bad else ""
    click.echo(f"{report.imported} imported, {report.unchanged} already there and unchanged{broken}")
    if report.bad and not report.committed:
        click.echo("nothing was imported, because lines are broken: correct them, or import the rest with --skip-bad")
