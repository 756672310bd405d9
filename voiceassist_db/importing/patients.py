"""An import: lines become patients, batch by batch, in one transaction that is kept or undone as a whole.

Owns the rule (any broken line means that nothing is imported, unless they are to be skipped) and the comparison with
the patients who are already there. Earlier batches are visible to their own transaction, so duplicates within the file
are found in the same way, and no list of what was seen grows with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from voiceassist_db import blind_index
from voiceassist_db.database import Database, Repositories
from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing.formats import BadRowError, Layout, differing, recognise
from voiceassist_db.importing.report import BadLine, ImportReport
from voiceassist_db.importing.rows import Row, RowReader
from voiceassist_db.repositories import Patient
from voiceassist_db.repositories.bulk import Ahead
from voiceassist_db.tracebacks import forgetful

BATCH_LINES: Final = 2000
BATCH_BYTES: Final = 8 << 20
"""8 MiB: ends a batch of unusually long lines early, so that memory stays flat."""

MAX_BAD_LINES: Final = 1000
"""Broken lines that a report holds; ``on_bad`` is told of all."""

OnProgress = Callable[[int, int | None], None]
OnBad = Callable[[BadLine], None]
Line = tuple[int, Patient | str]
"""The number of a line, and its patient or what is wrong with it."""


class _UndoneError(Exception):
    """Ends the transaction of an import that is not to be kept."""


@forgetful
def import_patients(
    database: Database,
    source: BinaryIO,
    *,
    skip_bad: bool = False,
    on_progress: OnProgress | None = None,
    on_bad: OnBad | None = None,
) -> ImportReport:
    """Import the patients of a CSV file: Synthea's ``patients.csv``, or one with this project's own field names.

    Everything happens in one transaction. A patient who is already there, or on an earlier line, with equal values in
    the file's columns counts as unchanged; with other values, the line is broken. So an import can be repeated. A
    column that the file lacks is not compared; an empty cell is, as no value.

    Args:
        database: The database.
        source: The file, open for reading bytes; read once, from where it stands, in flat memory.
        skip_bad: Import the rest where lines are broken; else one broken line means that nothing is imported.
        on_progress: Called with the lines done, and how many there will be as far as the file's size tells.
        on_bad: Called with each broken line, in the file's order.

    Raises:
        ImportFileError: The file as a whole cannot be read, is empty, or its header is not known.
        DuplicateError: Another transaction wrote one of the patients meanwhile. Nothing is imported; try again.
        VoiceAssistDBError: The keys or the database failed. Nothing is imported.
    """
    size = _size(source)
    reader = RowReader(source)
    rows = iter(reader)
    layout = _header(rows)
    tally = _Tally(layout, on_bad)
    committed = True
    try:
        with database.transaction() as tx:
            batches = Ahead(_batches(_lines(layout, rows)))
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


def _header(rows: Iterator[Row]) -> Layout:
    row = next(rows, None)
    if row is None:
        raise ImportFileError("the file is empty")
    if row.problem:
        raise ImportFileError(f"line {row.line}, which should be the header, {row.problem}")
    return recognise(row.cells)


def _lines(layout: Layout, rows: Iterable[Row]) -> Iterator[tuple[Line, int]]:
    """Give each row's line and its size in bytes."""
    for row in rows:
        patient: Patient | str
        try:
            patient = row.problem or layout.patient(row.cells)
        except BadRowError as error:
            patient = str(error)
        if isinstance(patient, str) and row.last_line > row.line:
            patient += f" (it runs to line {row.last_line})"
        yield (row.line, patient), row.size


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


class _Tally:
    """Writes batches and counts what became of their lines."""

    def __init__(self, layout: Layout, on_bad: OnBad | None) -> None:
        self.lines = 0
        self.bad = 0
        self._layout = layout
        self._on_bad = on_bad
        self._imported = 0
        self._unchanged = 0
        self._bad_lines: list[BadLine] = []

    def write(self, tx: Repositories, batch: list[Line], *, meanwhile: Callable[[], object]) -> None:
        """Add a batch's new patients, after a look at who is there and one at whose MRNs they are."""
        patients = [patient for _, patient in batch if isinstance(patient, Patient)]
        there = tx.patients.get_many([each.patient_id for each in patients], fields=self._layout.fields)
        owners = _owners(tx, [each.mrn for each in patients if each.mrn and each.patient_id not in there])
        new: list[Patient] = []
        for line, patient in batch:
            self.lines += 1
            if isinstance(patient, str):
                self._broken(BadLine(line, patient))
            elif known := there.get(patient.patient_id):
                self._again(line, patient, known)
            elif patient.mrn and (owner := owners.setdefault(blind_index.mrn(patient.mrn), patient.patient_id)) != (
                patient.patient_id
            ):
                problem = f"duplicate mrn: patient {owner!r} has it, in the database or on an earlier line"
                self._broken(BadLine(line, problem))
            else:
                new.append(patient)
                there[patient.patient_id] = patient
        self._imported += tx.patients.add_many(new, meanwhile=meanwhile)

    def _again(self, line: int, patient: Patient, known: Patient) -> None:
        """Count a patient who is there already."""
        fields = differing(self._layout, patient, known)
        if not fields:
            self._unchanged += 1
            return
        where = "the database or an earlier line has this patient with another"
        self._broken(BadLine(line, f"duplicate patient_id: {where} {', '.join(fields)}"))

    def _broken(self, bad: BadLine) -> None:
        self.bad += 1
        if len(self._bad_lines) < MAX_BAD_LINES:
            self._bad_lines.append(bad)
        if self._on_bad is not None:
            self._on_bad(bad)

    def report(self, *, committed: bool) -> ImportReport:
        """Return the result."""
        return ImportReport(
            format=self._layout.format,
            lines=self.lines,
            imported=self._imported if committed else 0,
            unchanged=self._unchanged,
            bad=self.bad,
            bad_lines=tuple(self._bad_lines),
            ignored_columns=self._layout.ignored_columns,
            committed=committed,
        )


def _owners(tx: Repositories, mrns: list[str]) -> dict[str, str]:
    """Return who has these medical record numbers: patient_id by normalised MRN."""
    found = tx.patients.with_mrns(mrns, fields=["mrn"])
    return {blind_index.mrn(each.mrn): each.patient_id for each in found if each.mrn}
