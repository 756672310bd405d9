"""What is wrong with a header is said by the names in it, as far as these are surely no patient's values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing import Reading
from voiceassist_db.importing.columns import recognise
from voiceassist_db.importing.headers import key_of


def refusal(*header: str, reading: Reading | None = None) -> str:
    """Return why a header is refused."""
    with pytest.raises(ImportFileError) as caught:
        recognise(header, reading or Reading())
    return str(caught.value)


@pytest.mark.parametrize(
    "column", ["PATIENT_ID", " Patient_Id\t", "\ufeffpatient_id", "patient_id\u00a0", "ｐatient_id"]
)
def test_case_and_outer_blanks_make_no_other_column(column: str) -> None:
    """Nor do characters that cannot be seen."""
    assert recognise([column, "NAME "]).fields == ("patient_id", "name")


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        *(("mnr", "mrn"), ("dob", "date_of_birth"), ("Birth Date", "date_of_birth"), ("DateOfBirth", "date_of_birth")),
        *(("full-name", "name"), ("nam", "name"), ("Social Security Number", "ssn"), ("adress", "address")),
    ],
)
def test_the_nearest_name_is_suggested(column: str, meant: str) -> None:
    """A typing error, and what other systems call it."""
    assert f'column 2 "{column}" (is it {meant}?)' in refusal("patient_id", column)


def test_a_column_like_none_of_ours_is_named_without_a_suggestion() -> None:
    """Its owner says what it is, or that it does not matter."""
    assert 'column 2 "shoe_size". Correct' in refusal("patient_id", "shoe_size")
    assert recognise(["patient_id", "shoe_size"], Reading(ignore_columns=True)).ignored_columns == ("shoe_size",)
    assert recognise(["patient_id", "shoe_size"], Reading(columns=(("Shoe_Size", ""),))).ignored_columns == (
        "shoe_size",
    )


def test_a_missing_column_is_named() -> None:
    """Of Synthea's file and of our own."""
    assert "lacks BIRTHDATE, LAST" in refusal("ID", "SSN", "FIRST", "ADDRESS")
    assert refusal("ssn", "mrn", "name").startswith("the header lacks patient_id. The file has the columns ")
    assert recognise(["patient_id", "ssn"]).missing_columns == ("mrn", "name", "date_of_birth", "address")


def test_a_column_to_map_must_be_there_and_one_must_be_the_id() -> None:
    """The columns that the file has are named."""
    reading = Reading(columns=(("BIRTH", "date_of_birth"),))
    assert refusal("patient_id", "birth_date", reading=reading) == (
        'there is no column "BIRTH" to map. The file has the columns "patient_id", "birth_date"'
    )
    assert "no column makes patient_id" in refusal(
        "patient_id", "name", reading=Reading(columns=(("patient_id", "mrn"),))
    )


@pytest.mark.parametrize(
    "row",
    [
        ["PT-1", "987-65-4321", "Alice"],
        ["Alice", "Smith", "Boston"],
        ["SMITH", "ALICE", "F"],
        ["Alice Smith", "1 Main Street", "Boston"],
        ["1", "Alice", "1970-01-01", "alice@example.org"],
        ["Alice"],
    ],
)
@pytest.mark.parametrize("reading", [Reading(), Reading(columns=(("X", "mrn"),))], ids=["", "mapped"])
def test_a_patient_in_the_first_line_is_not_shown(row: list[str], reading: Reading) -> None:
    """A file without a header is refused without a word of what stands there."""
    message = refusal(*row, reading=reading)
    assert f"{len(row)} cells, which are not shown" in message
    assert not [cell for cell in row if len(cell) > 1 and f'"{cell}' in message]


@given(st.lists(st.text(st.characters()), max_size=4))
def test_no_header_acts_on_a_terminal(cells: list[str]) -> None:
    """Whatever is named in a message or a report can be seen and cannot move the cursor."""
    header = ["patient_id", *cells]
    try:
        recognise(header)
    except ImportFileError as error:
        assert str(error).isprintable()  # noqa: PT017  # most headers are no error of their own
    layout = recognise(list(dict.fromkeys(header)), Reading(ignore_columns=True)) if is_single(header) else None
    shown = "".join((*layout.columns, *layout.ignored_columns)) if layout else ""
    assert shown.isprintable()


def is_single(header: list[str]) -> bool:
    """Say whether no column of ours stands twice."""
    keys = [key_of(each) for each in header]
    return not [each for each in keys if keys.count(each) > 1]
