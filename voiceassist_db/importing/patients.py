"""An import: lines become patients, batch by batch, in one transaction that is kept or undone as a whole.

Owns the rule: any broken line means that nothing is imported, unless broken lines are to be skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Final

from voiceassist_db.database import Database
from voiceassist_db.execution import require_writable
from voiceassist_db.importing.columns import BY_HEADER, BadRowError, Layout, Reading, known, recognise
from voiceassist_db.importing.dialects import first_row
from voiceassist_db.importing.encodings import UTF8, Encoding
from voiceassist_db.importing.report import ImportReport
from voiceassist_db.importing.rows import Row, RowReader
from voiceassist_db.importing.tally import Line, OnBad, Tally, Update
from voiceassist_db.models import PatientRow
from voiceassist_db.repositories import Patient
from voiceassist_db.repositories.bulk import Ahead
from voiceassist_db.sessions import connection_of
from voiceassist_db.tracebacks import forgetful

BATCH_LINES: Final = 2000
BATCH_BYTES: Final = 8 << 20
"""8 MiB: ends a batch of unusually long lines early, so that memory stays flat."""

OnProgress = Callable[[int, int | None], None]


class _UndoneError(Exception):
    """Ends the transaction of an import that is not to be kept."""


@forgetful
def import_patients(
    database: Database,
    source: BinaryIO,
    *,
    reading: Reading = BY_HEADER,
    update: Update = Update.NONE,
    skip_bad: bool = False,
    on_progress: OnProgress | None = None,
    on_bad: OnBad | None = None,
) -> ImportReport:
    """Import the patients of a CSV file: Synthea's ``patients.csv``, one with this project's own field names, or mapped columns.

    Everything happens in one transaction. A patient who is already there, or on an earlier line, with equal values in
    the file's columns counts as unchanged; with other values, the line is broken. So an import can be repeated. A
    column that the file lacks is not compared; an empty cell is, as no value.

    Args:
        database: The database.
        source: The file, open for reading bytes; read once, from where it stands, in flat memory.
        reading: How the file is to be read, where its header and its cells do not tell.
        update: What a line may change of a patient who is already there: nothing, empty fields, or any field. An empty cell
            changes nothing then.
        skip_bad: Import the rest where lines are broken; else one broken line means that nothing is imported.
        on_progress: Called with the lines done, and how many there will be as far as the file's size tells.
        on_bad: Called with each broken line, in the file's order.

    Raises:
        ImportFileError: The file as a whole cannot be read, is empty, no CSV in UTF-8, or its header is not known.
        DuplicateError: Another transaction wrote one of the patients meanwhile. Nothing is imported; try again.
        VoiceAssistDBError: The keys or the database failed. Nothing is imported.
    """
    size = _size(source)
    reader = RowReader(source)
    layout = _layout(reader, reading)
    rows = iter(reader)
    next(rows)  # the header
    tally = Tally(layout, update, on_bad)
    committed = True
    try:
        with database.transaction() as tx:
            connection = connection_of(tx.session, PatientRow)
            require_writable(connection)
            driver: Any = connection.connection.driver_connection
            encoding = Encoding.of(driver.info.parameter_status("server_encoding") or "UTF8")
            batches = Ahead(_batches(_lines(layout, rows, encoding)))
            while batch := batches.take():
                tally.write(tx, batch, meanwhile=batches.draw)
                if on_progress is not None:
                    lines_read = tally.lines + (len(batches.draw()) if size else 0)
                    on_progress(tally.lines, round(lines_read * size / reader.bytes_read) if size else None)
            if tally.bad and not skip_bad:
                raise _UndoneError
    except _UndoneError:
        committed = False
    if on_progress is not None:
        on_progress(tally.lines, tally.lines)
    return tally.report(committed=committed)


def _size(source: BinaryIO) -> int | None:
    """Return how many bytes are left to read; None for a pipe."""
    try:
        if not source.seekable():
            return None
        here = source.tell()
        size = source.seek(0, os.SEEK_END) - here
        source.seek(here)
    except OSError:
        return None
    return size


def _layout(reader: RowReader, reading: Reading) -> Layout:
    return recognise(first_row(reader, known(reading)).cells, reading)


def _lines(layout: Layout, rows: Iterable[Row], encoding: Encoding = UTF8) -> Iterator[tuple[Line, int]]:
    """Give each row's line and its size in bytes."""
    position = layout.id_position
    for row in rows:
        patient: Patient | str | None
        try:
            patient = row.problem or layout.patient(row.cells)
            if isinstance(patient, Patient) and encoding.codec:
                encoding.require(patient)
        except BadRowError as error:
            patient = str(error)
        if isinstance(patient, str) and row.last_line > row.line:
            patient += f" (it runs to line {row.last_line})"
        yield (row.line, patient, row.cells[position] if isinstance(patient, Patient) else ""), row.size


def _batches(lines: Iterable[tuple[Line, int]]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    batch_bytes = 0
    for line, size in lines:
        batch.append(line)
        batch_bytes += size
        if len(batch) >= BATCH_LINES or batch_bytes >= BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
