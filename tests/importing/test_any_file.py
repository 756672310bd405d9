"""No row of any file is lost in silence: each is imported, was there, has no value, or is reported by its line."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from voiceassist_db import Database
from voiceassist_db.importing import BadLine, Reading, import_patients
from voiceassist_db.spelling import patient_id

HEADER = ["patient_id", "mrn", "name", "note"]
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=12) | st.sampled_from(
    ["", " ", "\u00a0", "NULL", "1.5E+11", '="00', "'01", '"', "a;b", "a\tb", "a|b", "two\nlines", "José", "P1", "p1"]
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=5) | st.lists(CELLS, min_size=4, max_size=4), max_size=10)
BLANK: list[str] = []


@dataclass(frozen=True)
class Form:
    """How a file is written."""

    delimiter: str
    quoting: Literal[0, 1]
    line_end: str
    encoding: str
    has_mark: bool
    ends_with_a_line: bool


FORMS = st.builds(
    Form,
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "latin-1", "cp1252"]),
    st.booleans(),
    st.booleans(),
)


def file_of(rows: list[list[str]], form: Form) -> tuple[bytes, dict[int, list[str]]]:
    """Return a file, and its rows by the line where they begin; an empty list is a blank line, which is no row.

    A row is given as a reader of UTF-8 sees it, or as an empty list where it is no UTF-8.
    """
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter=form.delimiter, quoting=form.quoting, lineterminator=form.line_end)
    starts: dict[int, list[str]] = {}
    for row in [HEADER, *rows]:
        if row:
            starts[content.getvalue().count("\n") + 1] = seen(row, form)
            writer.writerow(row)
        else:
            content.write(form.line_end)
    written = content.getvalue()
    if not form.ends_with_a_line:
        written = written.removesuffix(form.line_end)
    mark = b"\xef\xbb\xbf" if form.has_mark else b""
    starts.pop(1)
    return mark + written.encode(form.encoding, errors="replace"), starts


def seen(row: list[str], form: Form) -> list[str]:
    """Return what UTF-8 makes of a row that was written in some encoding."""
    try:
        return [cell.encode(form.encoding, errors="replace").decode() for cell in row]
    except UnicodeDecodeError:
        return BLANK


@pytest.mark.wide
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS | st.just([BLANK])).map(lambda parts: [row for part in parts for row in part]), FORMS)
@example([["P1", "", "Ana", ""], BLANK, ["", "", "", ""], [" "]], Form(";", 0, "\r\n", "utf-8", True, False))
@example([["P1", "", "José", ""]], Form("\t", 0, "\n", "latin-1", False, True))
def test_every_row_is_accounted_for(database: Database, rows: list[list[str]], form: Form) -> None:
    """Imported, unchanged, without a value, or broken: the counts add up, and what counts as imported is there."""
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM patient_data"))
    content, starts = file_of(rows, form)
    told: list[BadLine] = []
    report = import_patients(
        database, io.BytesIO(content), reading=Reading(ignore_columns=True), skip_bad=True, on_bad=told.append
    )
    bad = {each.line for each in told}
    valued = {line: row for line, row in starts.items() if row == BLANK or any(map(str.strip, row))}
    assert report.lines == len(starts) == report.imported + report.unchanged + report.empty + report.bad
    assert len(bad) == len(told) == report.bad
    assert {line for line, row in starts.items() if row == BLANK} <= bad <= set(valued)
    assert report.empty == len(starts) - len(valued)
    good = {line: row for line, row in valued.items() if line not in bad}
    with database.transaction() as tx:
        there = {each.patient_id: each.name for each in tx.patients.page()}
    assert report.imported == len(there)
    assert set(there) == {patient_id(row[0].removeprefix("'")) for row in good.values()}
    for row in good.values():
        assert (there[patient_id(row[0].removeprefix("'"))] or "") == row[2]
