"""A file arrives whole and unaltered, or not at all; importing it again changes nothing."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from voiceassist_db import Database, Patient
from voiceassist_db.errors import ImportFileError, VoiceAssistDBError
from voiceassist_db.importing import BadLine, ImportReport, import_patients
from voiceassist_db.importing.patients import BATCH_LINES
from voiceassist_db.importing.tally import MAX_BAD_LINES
from voiceassist_db.spelling import patient_id

FIELDS = ("patient_id", "ssn", "mrn", "name", "date_of_birth", "address")
HEADER = ",".join(FIELDS)


def file(*lines: str, header: str = HEADER) -> BinaryIO:
    """Return a file of a header and these lines."""
    return io.BytesIO("\n".join([header, *lines, ""]).encode())


def stored(database: Database) -> dict[str, Patient]:
    """Return every patient in the database."""
    found: list[Patient] = []
    with database.transaction() as tx:
        while page := tx.patients.page(after=found[-1] if found else None):
            found += page
    return {patient.patient_id: patient for patient in found}


def values(patient: Patient) -> tuple[Any, ...]:
    """Return what can be imported of a patient."""
    return tuple(getattr(patient, name) for name in FIELDS)


def import_lines(database: Database, *lines: str, skip_bad: bool = False, header: str = HEADER) -> ImportReport:
    """Import a file of these lines."""
    return import_patients(database, file(*lines, header=header), skip_bad=skip_bad)


# --- Synthea's file --------------------------------------------------------------------------------------------------


def test_the_whole_synthea_file_reads_back_equal(database: Database, synthea_csv: Path) -> None:
    """Each of its patients has the values that a plain reading of the file gives, accents included."""
    with synthea_csv.open("rb") as source:
        report = import_patients(database, source)
    with synthea_csv.open(encoding="utf-8", newline="") as source:
        expected = {
            row["Id"]: (
                row["Id"],
                row["SSN"],
                row["Id"],
                " ".join(filter(None, (row["FIRST"], row["LAST"], row["SUFFIX"]))),
                date(*map(int, row["BIRTHDATE"].split("-"))),
                {
                    name: row[column]
                    for name, column in {
                        "street": "ADDRESS",
                        "city": "CITY",
                        "state": "STATE",
                        "county": "COUNTY",
                        "zip": "ZIP",
                        "latitude": "LAT",
                        "longitude": "LON",
                    }.items()
                    if row[column] != ""
                },
            )
            for row in csv.DictReader(source)
        }
    actual = {key: values(patient) for key, patient in stored(database).items()}
    assert actual == expected
    assert any(not each[3].isascii() for each in actual.values())
    assert (report.imported, report.lines, report.bad, report.committed) == (len(expected), len(expected), 0, True)
    assert {"DEATHDATE", "DRIVERS", "PASSPORT", "HEALTHCARE_COVERAGE"} <= set(report.ignored_columns)


def test_patients_who_share_an_ssn_are_both_found(database: Database, synthea_csv: Path) -> None:
    """Real exports have such, and it is no mistake of the file."""
    with synthea_csv.open("rb") as source:
        import_patients(database, source)
    with synthea_csv.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    ssn, times = Counter(row["SSN"] for row in rows).most_common(1)[0]
    assert times > 1
    with database.transaction() as tx:
        found = {patient.patient_id for patient in tx.patients.find_by_ssn(ssn)}
    assert found == {row["Id"] for row in rows if row["SSN"] == ssn}


def test_importing_again_changes_nothing(database: Database, synthea_csv: Path) -> None:
    """The second time, every line counts as unchanged and no row is touched."""
    with synthea_csv.open("rb") as source:
        first = import_patients(database, source)
    before = stored(database)
    with synthea_csv.open("rb") as source:
        second = import_patients(database, source)
    after = stored(database)
    assert (second.imported, second.unchanged, second.bad) == (0, first.imported, 0)
    assert after == before
    assert {each.updated_at for each in after.values()} == {each.updated_at for each in before.values()}


# --- broken lines ----------------------------------------------------------------------------------------------------

GOOD = 'PT-1,987-65-0001,M-1,Zoë,1980-02-29,"{""street"": ""1 Main""}"'
BROKEN = {
    "columns": ("PT-2,987-65-0002,M-2,Bob,1980-01-01", "has 5 columns, where the header has 6"),
    "id": (",987-65-0002,M-2,Bob,1980-01-01,", "patient_id is missing"),
    "date": ("PT-2,987-65-0002,M-2,Bob,13/12/1980,", "date_of_birth is not a date (YYYY-MM-DD)"),
    "ssn": ("PT-2,987-65-000,M-2,Bob,1980-01-01,", "ssn must have 9 digits"),
    "mrn of an earlier line": ("PT-2,987-65-0002,m - 1,Bob,1980-01-01,", "duplicate mrn: another patient has it"),
    "mrn in the database": ("PT-2,987-65-0002,M-OLD,Bob,1980-01-01,", "duplicate mrn: another patient has it"),
    "id of an earlier line": ("PT-1,987-65-0002,M-2,Bob,,", "duplicate patient_id: the database or an earlier line"),
    "id in the database": ("PT-OLD,987-65-0099,M-OLD,Bob,,", "has this patient with another ssn, name"),
    "address": ("PT-2,,,,,1 Main Street", "address is not a JSON object"),
    "quote": ('PT-2,987-65-0002,M-2,"Bob" x,,', "is not well-formed CSV"),
    "nul": ("PT-2,987-65-0002,M-2,B\x00b,,", "NUL"),
    "multi-line": (
        'PT-2,987-65-0002,M-2,"Bob\nBobson",x,',
        "date_of_birth is not a date (YYYY-MM-DD) (it runs to line 4)",
    ),
}


@pytest.fixture
def with_old(database: Database) -> Database:
    """A database that has one patient already."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-OLD", ssn="987-65-0000", mrn="M-OLD"))
    return database


@pytest.mark.parametrize(("line", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_means_that_nothing_is_imported(with_old: Database, line: str, problem: str) -> None:
    """It is reported by its number and without any value; by request, the rest is imported."""
    refused = import_lines(with_old, GOOD, line, "PT-3,,,,,")
    assert set(stored(with_old)) == {"PT-OLD"}
    assert (refused.imported, refused.bad, refused.committed) == (0, 1, False)
    assert [bad.line for bad in refused.bad_lines] == [3]
    assert problem in refused.bad_lines[0].problem
    for value in ("987", "Bob", "1980", "1 Main", "13/12", "PT-", "M-2", "M-1", "M-OLD"):
        assert value not in refused.bad_lines[0].problem

    skipped = import_lines(with_old, GOOD, line, "PT-3,,,,,", skip_bad=True)
    assert set(stored(with_old)) == {"PT-OLD", "PT-1", "PT-3"}
    assert (skipped.imported, skipped.bad, skipped.committed, skipped.bad_lines) == (2, 1, True, refused.bad_lines)


def test_bad_utf8_is_one_broken_line(database: Database) -> None:
    """An export in Latin-1 fails line by line, and not as an unreadable file."""
    report = import_patients(database, io.BytesIO(b"patient_id,name\nPT-1,Jos\xe9\nPT-2,Jos\xc3\xa9\n"), skip_bad=True)
    assert report.bad_lines == (BadLine(2, "is not UTF-8"),)
    assert stored(database)["PT-2"].name == "José"


def test_an_equal_line_counts_as_unchanged_wherever_the_other_is(with_old: Database) -> None:
    """In the database, or on an earlier line of the same file; only a line that differs is broken."""
    report = import_lines(with_old, GOOD, "PT-OLD,987-65-0000,M-OLD,,,", GOOD)
    assert (report.imported, report.unchanged, report.bad) == (1, 2, 0)


def test_a_column_that_the_file_lacks_is_not_compared(with_old: Database) -> None:
    """A file of ids and SSNs says nothing about medical record numbers; an empty cell says that there is none."""
    assert import_lines(with_old, "PT-OLD,987-65-0000", header="patient_id,ssn").unchanged == 1
    broken = import_lines(with_old, "PT-OLD,987-65-0000,", header="patient_id,ssn,mrn").bad_lines[0]
    assert broken.problem.endswith("with another mrn")


def test_duplicates_are_found_across_batches(database: Database) -> None:
    """A line of one batch meets lines of batches before it, which only the transaction remembers."""
    lines = [f"PT-{n},987-65-0001,M-{n},N,," for n in range(2 * BATCH_LINES + 100)]
    lines += ["PT-5,987-65-0001,M-5,Other,,", "PT-X,987-65-0001,m-7,N,,", "PT-9,987-65-0001,M-9,N,,"]
    report = import_lines(database, *lines, skip_bad=True)
    assert (report.imported, report.unchanged, report.bad) == (2 * BATCH_LINES + 100, 1, 2)
    assert [bad.line for bad in report.bad_lines] == [2 * BATCH_LINES + 102, 2 * BATCH_LINES + 103]
    assert ["patient_id" in bad.problem for bad in report.bad_lines] == [True, False]


def test_a_broken_line_does_not_take_its_patient_id_or_mrn(database: Database) -> None:
    """A later, correct line of the same patient is imported when broken ones are skipped."""
    report = import_lines(database, "PT-1,1,M-1,,,", GOOD, skip_bad=True)
    assert (report.imported, report.bad) == (1, 1)


def test_every_broken_line_is_told_and_a_thousand_are_kept(database: Database) -> None:
    """They come in the file's order, those found by the database among those found by reading."""
    told: list[BadLine] = []
    lines = ["PT-1,,,,,"] + ["PT-1,,,N,,", "PT-2,1,,,,"] * 750
    report = import_patients(database, file(*lines), on_bad=told.append)
    assert [bad.line for bad in told] == list(range(3, 1503))
    assert (report.bad, len(report.bad_lines), report.bad_lines) == (1500, MAX_BAD_LINES, tuple(told[:MAX_BAD_LINES]))


# --- the file as a whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", "patient_id".encode("utf-16"), b'"patient_id\n'])
def test_a_file_without_a_readable_header_is_refused(database: Database, content: bytes) -> None:
    """Empty, in another encoding, or with a quote left open in its first line."""
    with pytest.raises(ImportFileError):
        import_patients(database, io.BytesIO(content))


def test_a_header_alone_imports_nothing(database: Database) -> None:
    """No patient is no mistake."""
    report = import_lines(database)
    assert (report.lines, report.imported, report.bad, report.committed) == (0, 0, 0, True)


def test_a_byte_order_mark_and_crlf_are_tolerated(database: Database) -> None:
    """As Excel saves "CSV UTF-8"."""
    import_patients(database, io.BytesIO(b'\xef\xbb\xbf"patient_id","name"\r\nPT-1,Zo\xc3\xab\r\n'))
    assert stored(database)["PT-1"].name == "Zoë"


class Pipe(io.BytesIO):
    """A file whose size is not known."""

    def seekable(self) -> bool:
        """Say that it is none to go back in."""
        return False


def test_progress_ends_at_the_number_of_lines(database: Database) -> None:
    """The total is estimated from the size meanwhile, and a pipe's is not known before its end."""
    lines = [f"PT-{n:04},,,,," for n in range(2 * BATCH_LINES)]
    seen: list[tuple[int, int | None]] = []
    import_patients(database, file(*lines), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(lines), len(lines))
    assert seen[0][0] == BATCH_LINES
    assert seen[0][1] == pytest.approx(len(lines), rel=0.05)
    seen.clear()
    pipe = Pipe(cast("io.BytesIO", file(*lines)).getvalue())
    import_patients(database, pipe, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(BATCH_LINES, None), (2 * BATCH_LINES, None), (2 * BATCH_LINES, 2 * BATCH_LINES)]


def test_lines_are_read_while_the_server_encrypts_the_ones_before(database: Database) -> None:
    """When a batch is written, the next one has been read, and the one after it has not."""
    lines = [f"PT-{n:04},,,,," for n in range(3 * BATCH_LINES)]
    pipe = Pipe(cast("io.BytesIO", file(*lines)).getvalue())
    read: list[int] = []
    import_patients(database, pipe, on_progress=lambda *_: read.append(pipe.getvalue()[: pipe.tell()].count(b"\n") - 1))
    assert read[0] == 2 * BATCH_LINES
    assert read[1] == 3 * BATCH_LINES


def test_a_failure_halfway_leaves_nothing_behind(database: Database) -> None:
    """Batches that were written before it are rolled back with it."""

    class Torn(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 40_000:
                raise OSError(5, "Input/output error")
            return super().readline(size)

    content = cast("io.BytesIO", file(*(f"PT-{n:04},,,,," for n in range(5 * BATCH_LINES)))).getvalue()
    with pytest.raises(ImportFileError, match="cannot be read beyond line"):
        import_patients(database, Torn(content))
    assert stored(database) == {}


def test_a_writer_who_is_faster_ends_the_import(database: Database) -> None:
    """Another transaction adds a patient between check and write: our own error, and nothing is imported."""

    def intrude(_bad: BadLine) -> None:
        with database.transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-OTHER", mrn="M-1"))

    with pytest.raises(VoiceAssistDBError) as caught:
        import_patients(database, file("PT-0,1,,,,", GOOD), skip_bad=True, on_bad=intrude)
    assert type(caught.value).__name__ == "DuplicateError"
    assert set(stored(database)) == {"PT-OTHER"}


# --- any file --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SSNS = st.from_regex(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", fullmatch=True)
ADDRESSES = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans() | st.lists(TEXT, max_size=2), max_size=3)
RECORDS = st.tuples(
    TEXT | st.sampled_from(["PT-1", "PT-2"]),
    SSNS | TEXT | st.just(""),
    TEXT | st.sampled_from(["M-1", "m-1"]),
    TEXT,
    st.dates().map(str) | TEXT | st.just(""),
    ADDRESSES.map(json.dumps) | TEXT | st.just(""),
)


def form(cell: str) -> str:
    """Return the id that a cell means; an apostrophe marks text in a spreadsheet."""
    return patient_id(cell.removeprefix("'"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORDS, max_size=12))
@example([("PT-1", "", "M-1", "N", "", ""), ("PT-1", "", "M-1", "N", "", ""), ("PT-2", "", "m-1", "N", "", "")])
def test_what_is_written_reads_back_equal_or_is_reported(database: Database, records: list[tuple[str, ...]]) -> None:
    """Every record of any file is in the database letter by letter, or its line is in the report; none is both."""
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM patient_data"))
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow(FIELDS)
    starts: dict[int, tuple[str, ...]] = {}
    for record in records:
        starts[content.getvalue().count("\n") + 1] = record
        writer.writerow(record)
    report = import_patients(database, io.BytesIO(content.getvalue().encode()), skip_bad=True)

    bad = {each.line for each in report.bad_lines}
    assert bad <= set(starts)
    assert report.lines == len(records) == report.imported + report.unchanged + report.bad + report.empty
    good = [record for line, record in starts.items() if line not in bad and any(map(str.strip, record))]
    there = stored(database)
    assert set(there) == {form(record[0]) for record in good}
    for record in good:
        key, *texts, birth, address = values(there[form(record[0])])
        written = [*(cell.removeprefix("'") for cell in record[1:3]), record[3], record[4]]
        assert [*(each or "" for each in texts), str(birth or "")] == written
        assert key == form(record[0])
        assert address == (json.loads(record[5]) if record[5] else None)
