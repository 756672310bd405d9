"""Each format is recognised by its header, and each thing that can be wrong with a line has words that hold no value."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db import Patient
from voiceassist_db.blind_index import SPREADSHEET_NUMBER
from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing.cells import SUSPECTS
from voiceassist_db.importing.columns import BadRowError, Layout, Reading, differing, recognise
from voiceassist_db.values import MAX_JSON_DEPTH

OWN = ["patient_id", "ssn", "mrn", "name", "date_of_birth", "address"]
SYNTHEA_OLD = ["Id", "BIRTHDATE", "DEATHDATE", "SSN", "PREFIX", "FIRST", "LAST", "ADDRESS", "CITY", "STATE", "ZIP"]
SYNTHEA_NEW = [
    *(
        "Id",
        "BIRTHDATE",
        "DEATHDATE",
        "SSN",
        "DRIVERS",
        "PASSPORT",
        "PREFIX",
        "FIRST",
        "MIDDLE",
        "LAST",
        "SUFFIX",
        "MAIDEN",
    ),
    *(
        "MARITAL",
        "RACE",
        "ETHNICITY",
        "GENDER",
        "BIRTHPLACE",
        "ADDRESS",
        "CITY",
        "STATE",
        "COUNTY",
        "FIPS",
        "ZIP",
        "LAT",
    ),
    *("LON", "HEALTHCARE_EXPENSES", "HEALTHCARE_COVERAGE", "INCOME"),
]
FOUR = ("ssn", "mrn", "name", "date_of_birth")
IGNORING = Reading(ignore_columns=True)
GOOD = {"patient_id": "PT-1", "ssn": "987-65-4321", "mrn": "M-1", "name": "Zoë", "date_of_birth": "1980-02-29"}


def parse(layout: Layout, cells: dict[str, str], header: list[str]) -> Patient:
    """Return the patient of a row with these cells, the others being empty."""
    patient = layout.patient([cells.get(column, "") for column in header])
    assert patient is not None
    return patient


def problem(**cells: str) -> str:
    """Return what is wrong with a good row of our own format after these changes."""
    with pytest.raises(BadRowError) as caught:
        parse(recognise(OWN), GOOD | cells, OWN)
    return str(caught.value)


def test_our_own_columns_may_stand_in_any_order_and_be_absent() -> None:
    """Only patient_id must be there; what a file lacks, its layout does not speak of."""
    header = ["name", "shoe_size", " patient_id ", "", "\x1b[2J"]
    layout = recognise(header, IGNORING)
    assert layout.fields == ("patient_id", "name")
    assert layout.ignored_columns == ("shoe_size", "(column 4)", "(column 5)")
    patient = layout.patient(["Zoë", "42", "PT-1", "", ""])
    assert patient is not None
    assert (patient.patient_id, patient.name, patient.ssn) == ("PT-1", "Zoë", None)


@pytest.mark.parametrize("header", [SYNTHEA_OLD, SYNTHEA_NEW], ids=["old", "new"])
def test_synthea_is_known_with_fewer_and_with_more_columns(header: list[str]) -> None:
    """The Id is the medical record number as well; empty parts of name and address are left out."""
    layout = recognise(header)
    cells = {
        "Id": "0-1",
        "BIRTHDATE": "1980-02-29",
        "SSN": "987-65-4321",
        "LAST": "Núñez",
        "MIDDLE": "Q",
        "ZIP": "01013",
    }
    patient = parse(layout, cells | {"ADDRESS": "1 Main St"}, header)
    assert layout.format == "Synthea patients.csv"
    assert (patient.patient_id, patient.mrn, patient.ssn) == ("0-1", "0-1", "987-65-4321")
    assert (patient.name, patient.date_of_birth) == ("Q Núñez" if header is SYNTHEA_NEW else "Núñez", date(1980, 2, 29))
    assert patient.address == {"street": "1 Main St", "zip": "01013"}
    assert {"DEATHDATE", "PREFIX"} <= set(layout.ignored_columns)
    assert ("MIDDLE" in layout.columns) == (header is SYNTHEA_NEW)


def test_synthea_coordinates_stay_text() -> None:
    """All seven parts of an address arrive, letter by letter."""
    parts = {
        "ADDRESS": "1 Main",
        "CITY": "Española",
        "STATE": "NM",
        "COUNTY": "Rio",
        "ZIP": "01",
        "LAT": "1.50",
        "LON": "-2",
    }
    patient = parse(recognise(SYNTHEA_NEW), {"Id": "1"} | parts, SYNTHEA_NEW)
    names = ("street", "city", "state", "county", "zip", "latitude", "longitude")
    assert patient.address == dict(zip(names, parts.values(), strict=True))


def test_an_unknown_header_is_refused_without_showing_it() -> None:
    """A file without a header begins with a patient; the message says what is expected instead."""
    with pytest.raises(ImportFileError) as caught:
        recognise(["PT-1", "987-65-4321", "Alice"])
    assert "987" not in str(caught.value)
    assert "patient_id, ssn, mrn, name, date_of_birth, address" in str(caught.value)
    assert "Id, BIRTHDATE" in str(caught.value)


def test_a_column_that_stands_twice_is_refused() -> None:
    """One of its values would be lost; a column that is not imported may."""
    assert recognise(["patient_id", "x", "x"], IGNORING).ignored_columns == ("x", "x")
    with pytest.raises(ImportFileError, match="twice: ssn"):
        recognise(["patient_id", "ssn", "ssn "])


def test_an_empty_cell_is_no_value() -> None:
    """Every field but patient_id may be empty."""
    patient = parse(recognise(OWN), {"patient_id": "PT-1"}, OWN)
    assert [getattr(patient, name) for name in OWN] == ["PT-1", None, None, None, None, None]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"patient_id": ""}, "patient_id is missing"),
        ({"patient_id": " \t"}, "patient_id is missing"),
        ({"patient_id": "é" * 600}, "patient_id is longer than 1,024 bytes"),
        ({"ssn": "987-65-432"}, "ssn must have 9 digits"),
        ({"ssn": "unknown"}, "ssn must have 9 digits"),
        ({"mrn": "  "}, "mrn must not be empty"),
        ({"name": "  "}, "name must not be empty"),
        ({"date_of_birth": "29.02.1980"}, "date_of_birth is not a date (YYYY-MM-DD)"),
        ({"date_of_birth": "1981-02-29"}, "date_of_birth is not a date (YYYY-MM-DD)"),
        ({"date_of_birth": "1980-W01-1"}, "date_of_birth is not a date (YYYY-MM-DD)"),
        ({"date_of_birth": "19800229"}, "date_of_birth is not a date (YYYY-MM-DD)"),
        ({"date_of_birth": " 1980-02-29"}, "date_of_birth is not a date (YYYY-MM-DD)"),
        ({"ssn": "1", "date_of_birth": "x"}, "ssn must have 9 digits; date_of_birth is not a date (YYYY-MM-DD)"),
    ],
)
def test_a_bad_value_is_named_by_its_column(cells: dict[str, str], expected: str) -> None:
    """Everything that is wrong with a line is said at once."""
    assert problem(**cells) == expected


@pytest.mark.parametrize(
    "address",
    [
        "1 Main Street",
        '["1 Main Street"]',
        "null",
        '{"street": ',
        '{"street": "1", "street": "2"}',
        '{"x": NaN}',
        '{"x": 1e999}',
        '{"x": "\\ud800"}',
        '{"x": ["\\u0000"]}',
        '{"\\u0000": 1}',
        '{"x": ' * 60 + "1" + "}" * 60,
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x": ' + "9" * 5000 + "}",
    ],
)
def test_an_address_that_could_not_be_kept_as_it_is_is_refused(address: str) -> None:
    """No JSON, no object, a name twice, numbers or characters that cannot be stored, nesting without end."""
    assert problem(address=address).startswith("address is not a JSON object (")


def test_a_column_of_synthea_is_named_as_in_the_file() -> None:
    """Whoever looks for the mistake looks at the file; the Id, used twice, is complained of once."""
    with pytest.raises(BadRowError, match=r"^BIRTHDATE is not a date \(YYYY-MM-DD\)$"):
        parse(recognise(SYNTHEA_NEW), {"Id": "1", "BIRTHDATE": "5/6/1980"}, SYNTHEA_NEW)
    with pytest.raises(BadRowError, match=r"^Id is missing$"):
        parse(recognise(SYNTHEA_NEW), {"LAST": "Núñez"}, SYNTHEA_NEW)


@pytest.mark.parametrize("cells", [["PT-1"], ["PT-1", *[""] * 6]], ids=["too few", "too many"])
def test_a_wrong_number_of_columns_is_refused(cells: list[str]) -> None:
    """A comma too many shifts every value after it."""
    with pytest.raises(BadRowError, match=rf"^has {len(cells)} columns, where the header has 6$"):
        recognise(OWN).patient(cells)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@pytest.mark.wide
@given(st.dictionaries(st.text(), JSON), st.booleans())
def test_an_address_is_read_as_it_was_written_or_refused(address: dict[str, object], ascii_only: bool) -> None:
    """Any JSON object arrives equal, however it was escaped; only NUL and half characters are refused."""
    text = json.dumps(address, ensure_ascii=ascii_only)
    try:
        patient = parse(recognise(OWN), GOOD | {"address": text}, OWN)
    except BadRowError:
        assert "\\u0000" in text
        return
    assert json.dumps(patient.address, ensure_ascii=ascii_only) == text


@given(st.text(min_size=1) | st.sampled_from([*SUSPECTS, "=1+1", "1.2E+05", "1234.0", "1492-10-12", "9999-12-31"]))
def test_a_message_does_not_hold_the_value(value: str) -> None:
    """Whatever stands in a cell, the message is one of a few that are known beforehand."""
    known = {
        "ssn must have 9 digits",
        "date_of_birth is not a date (YYYY-MM-DD)",
        "name must not be empty",
        "mrn must not be empty",
        "mrn must hold a letter or a digit",
        "mrn holds a control character",
        "name holds a control character",
        *(f"{name} {SPREADSHEET_NUMBER}" for name in ("ssn", "mrn")),
        *(f"{name} is a spreadsheet's formula: export its value" for name in FOUR),
        *(
            f"{name} is a word that may mean no value (NULL, N/A, nan, …): name those that do with --null-words"
            for name in FOUR
        ),
        "date_of_birth is before 1850",
        "date_of_birth is after today",
    }
    for column in FOUR:
        try:
            parse(recognise(OWN), GOOD | {column: value}, OWN)
        except BadRowError as error:
            assert str(error) in known  # noqa: PT017  # most values are good ones


def test_patients_differ_only_in_what_the_file_speaks_of() -> None:
    """A column that the file lacks is not compared; in JSON, 1 and true are not the same."""
    one = Patient(patient_id="PT-1", ssn="987-65-4321", name="A", address={"x": 1, "y": 2})
    other = Patient(patient_id="PT-1", ssn="987-65-4321", name="B", address={"y": 2, "x": True})
    assert differing(recognise(OWN).fields, one, other) == ["name", "address"]
    assert differing(recognise(["patient_id", "ssn"]).fields, one, other) == []
    assert MAX_JSON_DEPTH > 1
