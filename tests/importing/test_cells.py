"""A cell is the value that its writer meant, or it is refused; a spreadsheet's traces are neither stored nor guessed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voiceassist_db.importing import Reading, cells
from voiceassist_db.importing.columns import MAPPABLE, recognise

LATEST = date(2026, 6, 1)
READERS: dict[str, cells.Read] = {
    "patient_id": cells.patient_id,
    "ssn": cells.ssn,
    "mrn": cells.mrn,
    "name": cells.name,
}


def outcome(read: cells.Read, *given_cells: str) -> Any:
    """Return what is read, or what is wrong."""
    try:
        return read(given_cells)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("field", "cell", "expected"),
    [
        ("patient_id", '="0012"', "0012"),
        ("patient_id", "'0012", "0012"),
        ("patient_id", " PT-1\u00a0", "PT-1"),
        ("ssn", '="001-02-0003"', "001-02-0003"),
        ("ssn", "'001020003", "001020003"),
        ("mrn", "'00124", "00124"),
        ("mrn", '="M""1"', 'M"1'),
        ("name", '="Ana"', "Ana"),
        ("name", "'t Hooft", "'t Hooft"),
        ("name", "'Abd al-Rahman", "'Abd al-Rahman"),
    ],
)
def test_text_that_is_marked_as_text_is_the_text(field: str, cell: str, expected: str) -> None:
    """A formula of one string, or an apostrophe before a number; in a name, an apostrophe is a letter."""
    assert outcome(READERS[field], cell) == expected


@pytest.mark.parametrize("field", READERS)
@pytest.mark.parametrize("cell", ["=A1", '=HYPERLINK("x")', '="a', '="a"&"b"', "="])
def test_a_formula_is_no_value(field: str, cell: str) -> None:
    """Its result was not exported."""
    assert str(outcome(READERS[field], cell)) == "is a spreadsheet's formula: export its value"


@pytest.mark.parametrize("field", ["patient_id", "ssn", "mrn"])
@pytest.mark.parametrize("cell", ["12345678.0", "1.234567E+08", "1,23457E+11", "1.23E11", "'12345.00", '="1E+10"'])
def test_a_number_that_a_spreadsheet_has_made_is_refused(field: str, cell: str) -> None:
    """Its digits may be those of several patients."""
    assert "as a spreadsheet writes it" in str(outcome(READERS[field], cell))


def test_a_name_is_made_of_its_parts() -> None:
    """Empty parts and blank ones leave no gap; what is left must be a name."""
    assert outcome(cells.name, "Abe604", "", " ", "Lind54", "Jr.") == "Abe604 Lind54 Jr."
    assert str(outcome(cells.name, " ", "\u00a0")) == "must not be empty"


# --- words that mean no value ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*cells.SUSPECTS, "null", "none", "NAN", "n/a", "NA", " NULL ", "None\u00a0"])
@pytest.mark.parametrize("column", ["patient_id", "mrn", "name"])
def test_a_word_is_asked_about_and_never_stored(word: str, column: str) -> None:
    """By default the line is broken; where its writer says that it means nothing, the cell is empty."""
    header = ["patient_id", "mrn", "name"]
    row = ["PT-1", "M-1", "Ana"]
    row[header.index(column)] = word
    with pytest.raises(Exception, match=rf"^{column} is a word that may mean no value .*--null-words$"):
        recognise(header).patient(row)
    as_empty = recognise(header, Reading(null_words=(word.swapcase(), word)))
    if column == "patient_id":
        with pytest.raises(Exception, match="^patient_id is missing$"):
            as_empty.patient(row)
    else:
        patient = as_empty.patient(row)
        assert patient is not None
        assert getattr(patient, column) is None
    as_value = recognise(header, Reading(null_words=())).patient(row)
    assert as_value is not None
    assert getattr(as_value, column).strip() == word.strip()


@pytest.mark.parametrize("name", ["Na", "Nancy", "Nulls", "Nonetheless", "Jennifer Null", "n.a.", "-"])
def test_a_name_that_holds_such_a_word_is_a_name(name: str) -> None:
    """Only a whole cell is such a word; Na is a surname."""
    patient = recognise(["patient_id", "name"]).patient(["PT-1", name])
    assert patient is not None
    assert patient.name == name


# --- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1850-01-01", date(1850, 1, 1)),
        ("1849-12-31", "is before 1850"),
        ("0050-01-01", "is before 1850"),
        ("2026-06-01", LATEST),
        ("2026-06-02", "is after today"),
        ("9999-12-31", "is after today"),
        ("'1970-01-01", date(1970, 1, 1)),
        ("1970-1-1", "is not a date (YYYY-MM-DD)"),
        ("25569", "is not a date (YYYY-MM-DD)"),
    ],
)
def test_a_birth_is_between_1850_and_today(cell: str, expected: object) -> None:
    """The bounds themselves are dates of birth."""
    found = outcome(cells.birth_reader(None, LATEST), cell)
    assert (str(found) if isinstance(found, ValueError) else found) == expected


def test_today_is_where_the_day_begins_first() -> None:
    """A child that is born in Sydney is imported by a server in Boston on the same day."""
    assert timedelta(0) <= cells.latest_birth() - date.today() <= timedelta(1)


@pytest.mark.parametrize(
    ("date_format", "cell", "expected"),
    [
        ("%Y%m%d", "19230501", date(1923, 5, 1)),
        ("%Y%m%d", "1923501", None),
        ("%m/%d/%Y", "05/06/1980", date(1980, 5, 6)),
        ("%m/%d/%Y", "5/6/1980", date(1980, 5, 6)),
        ("%d.%m.%Y", "31.12.1980", date(1980, 12, 31)),
        ("%d.%m.%Y", "12.31.1980", None),
        ("%d %b %Y", "1 Jan 1970", date(1970, 1, 1)),
        ("%Y-%j", "1970-032", date(1970, 2, 1)),
        ("%Y-%m-%d 00:00:00", "1970-01-01 00:00:00", date(1970, 1, 1)),
        ("%Y-%m-%d 00:00:00", "1970-01-01 12:00:00", None),
    ],
)
def test_a_date_is_read_as_its_format_says(date_format: str, cell: str, expected: date | None) -> None:
    """Where numbers touch, each must have all its digits."""
    found = outcome(cells.birth_reader(date_format, LATEST), cell)
    assert found == expected if expected else str(found) == f"is not a date ({date_format})"


@given(
    st.dates(date(1850, 1, 1), LATEST), st.sampled_from(["%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%j", "%d%B%Y", "%Y%j"])
)
def test_every_date_is_read_back(born: date, date_format: str) -> None:
    """What the format writes, it reads."""
    assert outcome(cells.birth_reader(date_format, LATEST), born.strftime(date_format)) == born


@example("19230501")
@example("1923501")
@example("192351")
@given(st.text("0123456789", min_size=5, max_size=8))
def test_digits_are_no_other_date(cell: str) -> None:
    """Eight digits are one date or none, and fewer are none."""
    found = outcome(cells.birth_reader("%Y%m%d", LATEST), cell)
    assert isinstance(found, ValueError) or found.strftime("%Y%m%d") == cell


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"date_format": "%m/%d/%y"}, "%y, which is none of .*two digits"),
        ({"date_format": "%Y-%m"}, "must have %Y, %d and one of"),
        ({"date_format": "%Y-%m-%d %m"}, "each once"),
        ({"date_format": "YYYY-MM-DD"}, "must have %Y"),
        ({"date_format": "%Y-%m-%d %H"}, "%H, which is none of"),
        ({"date_format": "%Y-%m-%"}, "which is none of"),
        ({"columns": (("X", "birthday"),)}, "there is no field birthday: map a column to one of patient_id, "),
        ({"columns": (("X", "\x1b[2J"),)}, r"no field \\x1b"),
        ({"columns": (("X", "mrn"), ("Y", "mrn"))}, "two columns are mapped to mrn"),
        ({"columns": (("X", "address"), ("Y", "address.city"))}, "to address, and another to a part of it"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(options: dict[str, Any], problem: str) -> None:
    """Before the file is read; the message names what may be given."""
    with pytest.raises(ValueError, match=problem):
        Reading(**options)


@pytest.mark.parametrize("field", MAPPABLE)
def test_every_field_can_be_mapped(field: str) -> None:
    """Each of them is read from a column of any name."""
    values = {"ssn": "001-02-0003", "date_of_birth": "1970-01-01", "address": '{"x": 1}'}
    columns = [("ID", "patient_id"), ("col 7", field)] if field != "patient_id" else [("col 7", field)]
    header: Sequence[str] = [column for column, _ in columns]
    layout = recognise(header, Reading(columns=tuple(columns)))
    patient = layout.patient(["PT-1", values.get(field, "X")][-len(header) :])
    assert patient is not None
    name, _, part = field.partition(".")
    found = getattr(patient, name)
    assert (found[part] if part else found) is not None
