"""Files that people really have: what importing each of them must do, as ``cases/README.md`` says."""

from __future__ import annotations

import filecmp
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from voiceassist_db import Database, Patient
from voiceassist_db.blind_index import SPREADSHEET_NUMBER
from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing import Reading, import_patients

CASES = Path(__file__).parent / "cases"
SHARED = Path(__file__).parents[3] / "shared" / "cases"
FILES = sorted(path.name for path in CASES.iterdir() if path.name != "README.md")

BORN = date(1970, 1, 1)
SYNTHEA_BORN = date(1970, 1, 2)
NO_WORD = "is a word that may mean no value (NULL, N/A, nan, …): name those that do with --null-words"
OTHER_SPELLING = "patient_id is another spelling of one that the database or an earlier line has: case or blanks differ"
AGAIN = "duplicate patient_id: the database or an earlier line has this patient with another"


@dataclass(frozen=True)
class Outcome:
    """What an import of a file does: the patients it adds, the lines it refuses, or why it refuses the file."""

    patients: tuple[Patient, ...] = ()
    bad: dict[int, str] = field(default_factory=dict)
    empty: int = 0
    refused: str = ""
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def patient(patient_id: str, **values: object) -> Patient:
    """Return a patient whose id in the database does not matter."""
    return Patient(patient_id=patient_id, **values)  # type: ignore[arg-type]  # of any field


def synthea(number: int, ssn: str, name: str = "Abe604 Lind54", **address: str) -> Patient:
    """Return a patient of one of Synthea's files."""
    key = f"00000000-0000-4000-8000-{number:012}"
    whole = {"street": "1 Main", "city": "Lowell", "state": "Massachusetts", "zip": "01850"} | address
    return patient(key, mrn=key, ssn=ssn, name=name, date_of_birth=SYNTHEA_BORN, address=whole)


IGNORED_2018 = (
    *("DEATHDATE", "DRIVERS", "PASSPORT", "PREFIX", "MAIDEN", "MARITAL", "RACE", "ETHNICITY", "GENDER", "BIRTHPLACE"),
)
COSTS = ("HEALTHCARE_EXPENSES", "HEALTHCARE_COVERAGE")
PLACE = {"county": "Middlesex County", "latitude": "42.1", "longitude": "-71.2"}
OUR_OPTIONAL = ("mrn", "date_of_birth", "address")

EXPECTED = {
    # --- delimiters, encodings and other formats
    "sc-semicolon.csv": Outcome(
        (patient("SC-1", ssn="900-11-0001", mrn="SC1", name="Ana Ruiz", date_of_birth=SYNTHEA_BORN),),
        missing=("address",),
    ),
    "sc-bom-semicolon.csv": Outcome(
        (patient("SC-2", ssn="900-11-0002", mrn="SC2", name="Ana"),), missing=("date_of_birth", "address")
    ),
    "tab.tsv": Outcome(
        (patient("TB-1", ssn="900-11-0003", mrn="TB1", name="Ana"),), missing=("date_of_birth", "address")
    ),
    "utf16le.csv": Outcome(refused=r"^the file is UTF-16, not CSV in UTF-8: .*iconv -f UTF-16 -t UTF-8"),
    "patients.csv.gz": Outcome(refused=r"^the file is compressed with gzip, not CSV in UTF-8: .*gunzip -c"),
    "fhir-patient.json": Outcome(refused=r"^the file is JSON \(FHIR\), not CSV in UTF-8: export its patients as CSV"),
    # --- rows and cells
    "trailing-empty-rows.csv": Outcome((patient("TE-1", mrn="TE1", name="Ana", date_of_birth=BORN),), empty=2),
    "null-words2.csv": Outcome(
        bad=dict.fromkeys((2, 3, 4), f"mrn {NO_WORD}; name {NO_WORD}"), missing=("date_of_birth", "address")
    ),
    "excel-sci.csv": Outcome(bad=dict.fromkeys((2, 3), f"mrn {SPREADSHEET_NUMBER}")),
    "ssn-float.csv": Outcome(bad=dict.fromkeys((2, 3, 4), f"ssn {SPREADSHEET_NUMBER}"), missing=OUR_OPTIONAL),
    "ssn-text.csv": Outcome(
        bad={
            2: "ssn must be 9 digits and nothing else: 123-45-6789, 123 45 6789 or 123456789",
            3: f"ssn {SPREADSHEET_NUMBER}",
            4: "ssn must be 9 digits and nothing else: 123-45-6789, 123 45 6789 or 123456789",
        }
    ),
    "excel-formula-text.csv": Outcome(
        (
            patient("0012", mrn="00123", name="Ana", date_of_birth=BORN),
            patient("0013", mrn="00124", name="Bo", date_of_birth=BORN),
        )
    ),
    "future-1900-date.csv": Outcome(
        bad={2: "date_of_birth is after today", 3: "date_of_birth is before 1850", 4: "date_of_birth is after today"}
    ),
    # --- headers
    "mixed-case-header.csv": Outcome((patient("MH-1", mrn="MH1", name="Ana", date_of_birth=BORN),)),
    "typo-header.csv": Outcome(
        refused=r'^the header has columns that are not known: column 3 "mnr" \(is it mrn\?\), '
        r'column 5 "dob" \(is it date_of_birth\?\)\. .*--ignore-columns'
    ),
    "typo-fixed.csv": Outcome((patient("TY-1", ssn="900-11-0020", mrn="TY1", name="Ana", date_of_birth=BORN),)),
    "only-unknown.csv": Outcome(
        refused=r'column 2 "birth_date" \(is it date_of_birth\?\), column 3 "first_name" \(is it name\?\), '
        r'column 4 "last_name" \(is it name\?\), column 5 "social" \(is it ssn\?\)'
    ),
    # --- one patient, not four
    "pid-space.csv": Outcome(
        (patient("PS-1", mrn="PS1", name="Ana"),),
        bad={3: f"{AGAIN} mrn, name", 4: OTHER_SPELLING, 5: f"{AGAIN} mrn, name"},
    ),
    "pid-nfc.csv": Outcome((patient("José", mrn="NF1", name="Ana"),), bad={3: f"{AGAIN} mrn, name"}),
    # --- Synthea's exports
    "syn-2017.csv": Outcome(
        (
            patient(
                "00000000-0000-4000-8000-000000000001",
                mrn="00000000-0000-4000-8000-000000000001",
                ssn="999-11-1111",
                name="Abe604 Lind54",
                date_of_birth=SYNTHEA_BORN,
                address={"street": "1 Main Lowell MA 01850 US"},
            ),
        ),
        unknown=IGNORED_2018,
        missing=("CITY", "STATE", "ZIP"),
    ),
    "syn-2018.csv": Outcome((synthea(2, "999-11-1112"),), unknown=IGNORED_2018),
    "syn-2020.csv": Outcome((synthea(3, "999-11-1113", **PLACE),), unknown=(*IGNORED_2018, *COSTS)),
    "syn-2024.csv": Outcome(
        (synthea(4, "999-11-1114", "Abe604 Zed1 Lind54 Jr.", **PLACE | {"zip": "00000"}),),
        unknown=(*IGNORED_2018, "FIPS", *COSTS, "INCOME"),
    ),
    "syn-lower.csv": Outcome((synthea(5, "999-11-1115"),), unknown=tuple(map(str.lower, IGNORED_2018))),
    "syn-ID-upper.csv": Outcome((synthea(22, "999-11-1112"),), unknown=IGNORED_2018),
    "syn-append.csv": Outcome(
        (synthea(8, "999-11-1112"), synthea(9, "999-11-1112")),
        bad={3: "repeats the header: another file begins here"},
        unknown=IGNORED_2018,
    ),
    # --- other systems' files, without a mapping
    "desynpuf.csv": Outcome(
        refused=r'^the first line is not a header that is known: .*The file has the columns "DESYNPUF_ID", "BENE_BIRTH_DT", '
        r'.*"BENE_COUNTY_CD".*--map COLUMN=field'
    ),
    "nhs-own.csv": Outcome(bad={2: "ssn must have 9 digits"}, missing=("address",)),
}


def stored(database: Database) -> dict[str, tuple[object, ...]]:
    """Return what can be imported of every patient, by id."""
    with database.transaction() as tx:
        return {each.patient_id: values(each) for each in tx.patients.page()}


def values(each: Patient) -> tuple[object, ...]:
    """Return what can be imported of a patient."""
    return each.patient_id, each.ssn, each.mrn, each.name, each.date_of_birth, each.address


def test_every_file_has_an_expectation() -> None:
    """A file that is added is a test that fails until somebody says what must become of it; our copies are the originals."""
    assert sorted(EXPECTED) == FILES
    readme = (CASES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in FILES if name.split(".")[0] not in readme.replace("patients.csv.gz", "patients")]
    originals = sorted(path.name for path in (SHARED / "import").iterdir()) if SHARED.is_dir() else FILES
    assert originals == FILES
    if SHARED.is_dir():
        assert filecmp.cmpfiles(CASES, SHARED / "import", FILES, shallow=False) == (FILES, [], [])
        assert filecmp.cmp(CASES / "README.md", SHARED / "README.md", shallow=False)


@pytest.mark.parametrize("name", FILES)
def test_a_file_does_what_it_must(database: Database, name: str) -> None:
    """It is imported letter by letter, refused by its true name, or refused line by line; broken lines mean that nothing is."""
    expected = EXPECTED[name]
    path = CASES / name
    if expected.refused:
        with path.open("rb") as source, pytest.raises(ImportFileError) as caught:
            import_patients(database, source, skip_bad=True)
        assert re.search(expected.refused, str(caught.value))
        assert stored(database) == {}
        return
    if expected.bad:
        with path.open("rb") as source:
            nothing = import_patients(database, source)
        assert (nothing.committed, nothing.imported, stored(database)) == (False, 0, {})
    with path.open("rb") as source:
        report = import_patients(database, source, skip_bad=True)
    assert {each.line: each.problem for each in report.bad_lines} == expected.bad
    assert stored(database) == {each.patient_id: values(each) for each in expected.patients}
    assert (report.imported, report.empty) == (len(expected.patients), expected.empty)
    assert report.lines == report.imported + report.unchanged + report.updated + report.empty + report.bad
    assert (report.ignored_columns, report.missing_columns) == (expected.unknown, expected.missing)


# --- with an option --------------------------------------------------------------------------------------------------

OPTIONS = {
    "words that mean no value": (
        "null-words2.csv",
        Reading(null_words=("null", "n/a", "\\N")),
        (patient("NW-5"), patient("NW-6"), patient("NW-7")),
    ),
    "words that are values": (
        "null-words2.csv",
        Reading(null_words=()),
        (
            patient("NW-5", mrn="NULL", name="NULL"),
            patient("NW-6", mrn="N/A", name="N/A"),
            patient("NW-7", mrn="\\N", name="\\N"),
        ),
    ),
    "unknown columns that are passed over": (
        "typo-header.csv",
        Reading(ignore_columns=True),
        (patient("TY-1", ssn="900-11-0020", name="Ana"),),
    ),
    "columns that are named": (
        "typo-header.csv",
        Reading(columns=(("mnr", "mrn"), ("DOB ", "date_of_birth"))),
        (patient("TY-1", ssn="900-11-0020", mrn="TY1", name="Ana", date_of_birth=BORN),),
    ),
    "a name of two columns": (
        "only-unknown.csv",
        Reading(
            columns=(("birth_date", "date_of_birth"), ("first_name", "name"), ("last_name", "name"), ("social", "ssn"))
        ),
        (patient("OU-1", ssn="900-11-0033", name="Ana Ruiz", date_of_birth=BORN),),
    ),
    "another system's columns and dates": (
        "desynpuf.csv",
        Reading(columns=(("desynpuf_id", "patient_id"), ("BENE_BIRTH_DT", "date_of_birth")), date_format="%Y%m%d"),
        (patient("00AA00AA00AA00AA", date_of_birth=date(1923, 5, 1)),),
    ),
    "a number that is no SSN": (
        "nhs-own.csv",
        Reading(columns=(("ssn", ""),)),
        (patient("NHS-1", mrn="900 000 0009", name="Ana Ruiz", date_of_birth=date(1970, 2, 1)),),
    ),
    "a number that is another one": (
        "nhs-own.csv",
        Reading(columns=(("ssn", "mrn"),)),
        (patient("NHS-1", mrn="9000000009", name="Ana Ruiz", date_of_birth=date(1970, 2, 1)),),
    ),
}


@pytest.mark.parametrize(("name", "reading", "patients"), OPTIONS.values(), ids=OPTIONS.keys())
def test_an_option_imports_a_file_that_was_refused(
    database: Database, name: str, reading: Reading, patients: tuple[Patient, ...]
) -> None:
    """What the file does not tell, its owner says."""
    with (CASES / name).open("rb") as source:
        report = import_patients(database, source, reading=reading)
    assert stored(database) == {each.patient_id: values(each) for each in patients}
    assert (report.imported, report.bad) == (len(patients), 0)
