"""``voiceassist-db import``."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, progress, say

if TYPE_CHECKING:
    from voiceassist_db.importing import BadLine, ImportReport, Reading

EXIT_NOTHING_IMPORTED = 3
EXIT_SKIPPED = 4


@click.command(
    "import",
    cls=Command,
    exit_codes={
        0: "every line is imported or was there",
        1: "the import failed, and why",
        2: "wrong usage, or no such file",
        3: "some lines are broken, and nothing was imported",
        4: "some lines are broken, and the rest was imported (--skip-bad)",
    },
)
@click.argument("file", type=click.File("rb"), metavar="FILE.csv")
@click.option("--skip-bad", is_flag=True, help="Import the rest where lines are broken; by default, nothing.")
@click.option(
    "--update",
    is_flag=True,
    help="Fill fields that are empty in the database, of patients who are there. By default such a line is broken, and says what "
    "would be filled.",
)
@click.option(
    "--overwrite", is_flag=True, help="With --update: replace other values as well. An empty cell changes nothing."
)
@click.option(
    "--map",
    "columns",
    multiple=True,
    metavar="COLUMN=FIELD",
    help="Read a column as a field: patient_id, ssn, mrn, name, date_of_birth, address, or a part of it (address.street, city, "
    "state, county, zip, latitude, longitude). COLUMN= leaves it out. Several make a name, in this order. Columns that are not "
    "mapped are read by their names.",
)
@click.option(
    "--date-format",
    metavar="FORMAT",
    help="How dates are written: %Y year, %m month, %d day, %b or %B its name, %j day of the year. [default: %Y-%m-%d]",
)
@click.option(
    "--null-words",
    metavar="WORDS",
    help="Words that mean no value, with commas between them, in any case; all others are values then. By default a line with "
    "NULL, N/A, \\N, nan, None or NA is broken.",
)
@click.option(
    "--ignore-columns", is_flag=True, help="Pass over columns that are not known; by default, refuse the file."
)
@json_option
def command(
    *,
    file: BinaryIO,
    skip_bad: bool,
    update: bool,
    overwrite: bool,
    columns: tuple[str, ...],
    date_format: str | None,
    null_words: str | None,
    ignore_columns: bool,
    as_json: bool,
) -> None:
    """Import patients from a CSV file; - reads standard input.

    Two formats, recognised by the header: Synthea's patients.csv, whose Id becomes patient_id and medical record
    number; and patient_id,ssn,mrn,name,date_of_birth,address in any order, all but patient_id optional, address being
    a JSON object. Other files are read with --map. Case and outer blanks of a header do not matter. UTF-8, with commas,
    semicolons, tabs or | between cells; an empty cell is no value, and a row without any value is passed over.

    All happens in one transaction. Broken lines go to standard error, by number and without any value. A patient who is there
    with equal values is left alone: an import can be repeated. A patient_id is stored without outer blanks and invisible
    characters; one that differs from another's in case only is a broken line.
    """
    from voiceassist_db.database import Database
    from voiceassist_db.importing import Update, import_patients

    if overwrite and not update:
        raise click.UsageError("--overwrite is for --update")
    reading = _reading(columns, date_format, null_words, ignore_columns)
    changes = Update.ANY if overwrite else Update.EMPTY if update else Update.NONE
    with Database.from_env() as database, attended(database.engine), progress("importing", "lines") as report_progress:
        report = import_patients(
            database,
            file,
            reading=reading,
            update=changes,
            skip_bad=skip_bad,
            on_progress=report_progress,
            on_bad=_show_bad,
        )
    if as_json:
        emit_json(dataclasses.asdict(report))
    else:
        _show(report)
    if report.bad:
        sys.exit(EXIT_SKIPPED if report.committed else EXIT_NOTHING_IMPORTED)


def _reading(columns: tuple[str, ...], date_format: str | None, null_words: str | None, ignore: bool) -> Reading:
    from voiceassist_db.importing import Reading

    pairs = []
    for each in columns:
        column, equals, field = each.rpartition("=")
        if not equals or not column.strip():
            raise click.BadParameter("must be COLUMN=FIELD", param_hint="--map")
        pairs.append((column, field.strip()))
    try:
        return Reading(
            columns=tuple(pairs),
            date_format=date_format,
            null_words=None if null_words is None else tuple(null_words.split(",")),
            ignore_columns=ignore,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _show_bad(bad: BadLine) -> None:
    say(str(bad), err=True)


def _show(report: ImportReport) -> None:
    say(f"format: {report.format}")
    say(f"columns that are imported: {', '.join(report.columns)}")
    if report.ignored_columns:
        say(f"columns that are not imported: {', '.join(report.ignored_columns)}")
    if report.missing_columns:
        say(f"columns that the file lacks: {', '.join(report.missing_columns)}")
    counts = [f"{report.imported} imported", f"{report.unchanged} already there and unchanged"]
    if report.bad:
        counts.append(f"{report.bad} broken")
    if report.updated:
        counts.append(f"{report.updated} updated")
    if report.empty:
        counts.append(f"{report.empty} without any value and passed over")
    say(", ".join(counts))
    if report.changes:
        fields = ", ".join(f"{name} {lines}" for name, lines in report.changes.items())
        say(f"fields that {'were' if report.committed else 'would be'} updated, by lines: {fields}")
    if report.bad and not report.committed:
        say(
            "nothing was imported, because lines are broken: correct them, say with --map what a column is, or import the rest with "
            "--skip-bad"
        )
