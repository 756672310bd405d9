"""The command tells a person, a script and a log what became of each line, and never whose line it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.conftest import ROOT, Outcome, Run
from voiceassist_db import Database
from voiceassist_db.cli.import_command import command

HEADER = "patient_id,ssn,mrn,name,date_of_birth,address,shoe_size\n"
GOOD = 'PT-1,987-65-0001,MRN-QUUX,Zoë Quuxley,1971-12-13,"{""street"": ""77 Quuxstraße""}",43\n'
BROKEN = (
    "PT-2,987-65-4,MRN-QUUX-2,Bob Quuxley,1972-11-10,,43\n"
    "PT-3,987-65-0003,MRN-QUUX,Eve Quuxley,1973-10-09,,43\n"
    "PT-1,987-65-0004,MRN-QUUX-4,Max Quuxley,1974-09-08,,43\n"
)
SECRETS = ("987", "65-0", "QUUX", "Quux", "197", "Bob", "Eve", "Max", "Zoë", "77 ")


@pytest.fixture
def load(run: Run, environment: dict[str, str]) -> Run:
    """A function that runs ``voiceassist-db import``."""

    def call(*arguments: str | Path) -> Outcome:
        return run("import", *map(str, arguments), env=environment)

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one good line and three broken ones."""
    path = tmp_path / "patients.csv"
    path.write_text(HEADER + GOOD + BROKEN, encoding="utf-8")
    return path


def count(database: Database) -> int:
    """Return how many patients there are."""
    with database.transaction() as tx:
        return len(tx.patients.page())


def test_broken_lines_exit_3_and_nothing_is_imported(load: Run, path: Path, database: Database) -> None:
    """Every broken line is on standard error, the summary on standard output, and no value on either."""
    done = load(path, "--ignore-columns")
    assert done.code == 3
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["line 3", "line 4", "line 5"]
    assert "0 imported, 0 already there and unchanged, 3 broken" in done.stdout
    assert "columns that are not imported: shoe_size" in done.stdout
    assert "--skip-bad" in done.stdout
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    assert count(database) == 0


def test_a_file_whose_column_is_another_number_is_refused_with_its_columns(load: Run, database: Database) -> None:
    """Its header is one of ours, so that only the values tell: the columns that were found are named, and what says what they are."""
    path = ROOT / "tests" / "importing" / "cases" / "nhs-own.csv"
    done = load(path)
    assert (done.code, count(database)) == (3, 0)
    assert done.stderr.splitlines()[-1] == "line 2: ssn must have 9 digits"
    assert "columns that are imported: patient_id, ssn, mrn, name, date_of_birth\n" in done.stdout
    assert "say with --map what a column is" in done.stdout
    assert load(path, "--map", "ssn=mrn").code == 0
    with database.transaction() as tx:
        (found,) = tx.patients.page()
    assert (found.patient_id, found.mrn, found.ssn) == ("NHS-1", "9000000009", None)


def test_skipped_lines_exit_4_and_the_rest_is_imported(load: Run, path: Path, database: Database) -> None:
    """The broken lines are listed all the same; once there, the good one counts as unchanged."""
    done = load(path, "--skip-bad", "--ignore-columns")
    assert done.code == 4
    assert len(done.stderr.splitlines()) == 3
    assert "1 imported, 0 already there and unchanged, 3 broken" in done.stdout
    assert count(database) == 1
    assert "0 imported, 1 already there and unchanged, 3 broken" in load(path, "--skip-bad", "--ignore-columns").stdout


def test_json_is_the_last_line_and_has_every_field(load: Run, path: Path) -> None:
    """A script reads one object; people's lines stay on standard error."""
    done = load(path, "--json", "--ignore-columns")
    assert done.code == 3
    report = done.json
    assert report.pop("bad_lines")[0] == {"line": 3, "problem": "ssn must have 9 digits"}
    assert report == {
        "format": "voiceassist-db",
        "lines": 4,
        "imported": 0,
        "unchanged": 0,
        "updated": 0,
        "changes": {},
        "empty": 0,
        "bad": 3,
        "columns": ["patient_id", "ssn", "mrn", "name", "date_of_birth", "address"],
        "missing_columns": [],
        "ignored_columns": ["shoe_size"],
        "committed": False,
    }


def test_a_second_import_of_synthea_says_that_it_changed_nothing(load: Run, synthea_csv: Path) -> None:
    """Exit code 0 both times."""
    first, second = load(synthea_csv), load(synthea_csv)
    assert (first.code, second.code) == (0, 0)
    assert "1171 imported, 0 already there and unchanged" in first.stdout
    assert "0 imported, 1171 already there and unchanged" in second.stdout
    assert second.stderr == ""


def test_a_dash_reads_standard_input(run_process: Run, environment: dict[str, str], database: Database) -> None:
    """So that a file need not lie on a disk unencrypted."""
    done = run_process("import", "-", "--ignore-columns", env=environment | {"PYTHONUTF8": "1"}, given=HEADER + GOOD)
    assert (done.code, done.stderr) == (0, "")
    assert count(database) == 1


@pytest.mark.parametrize("content", ["", "PT-1,987-65-0001,Zoë Quuxley\n"], ids=["empty", "no header"])
def test_a_file_that_is_none_of_ours_exits_1(load: Run, tmp_path: Path, content: str) -> None:
    """One line says why, without the first line of the file."""
    path = tmp_path / "other.csv"
    path.write_text(content, encoding="utf-8")
    done = load(path)
    assert done.code == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_a_missing_file_and_a_directory_exit_2(load: Run, tmp_path: Path) -> None:
    """Click says which path."""
    for path in (tmp_path / "missing.csv", tmp_path):
        done = load(path)
        assert done.code == 2
        assert str(path) in done.stderr


def test_help_names_formats_and_exit_codes() -> None:
    """Whoever scripts it finds the codes where they look first."""
    shown = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for part in (
        "patient_id,ssn,mrn,name,date_of_birth,address",
        "Synthea",
        "--skip-bad",
        "--json",
        "Exit codes: 0",
        "4 some",
    ):
        assert part in shown


# --- options ---------------------------------------------------------------------------------------------------------

FOREIGN = "PID;BORN;FIRST NAME;LAST NAME;NO\nX-1;31.12.1970;Quuxa;Quuxley;N/A\n;;;;\n"
MAPPED = (
    "--map",
    "PID=patient_id",
    "--map",
    "BORN=date_of_birth",
    "--map",
    "first name=name",
    "--map",
    "last name=name",
)


def test_a_foreign_file_is_imported_by_its_owners_words(load: Run, tmp_path: Path, database: Database) -> None:
    """Columns, dates and words that mean no value, all by options; a row without any value is counted."""
    path = tmp_path / "foreign.csv"
    path.write_text(FOREIGN, encoding="utf-8")
    refused = load(path)
    assert refused.code == 1
    assert 'The file has the columns "PID", "BORN", "FIRST NAME", "LAST NAME", "NO"' in refused.stderr
    done = load(path, *MAPPED, "--map", "NO=mrn", "--date-format", "%d.%m.%Y", "--null-words", "n/a, null")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "format: mapped columns",
        "columns that are imported: PID, BORN, FIRST NAME, LAST NAME, NO",
        "1 imported, 0 already there and unchanged, 1 without any value and passed over",
    ]
    with database.transaction() as tx:
        (patient,) = tx.patients.page()
    assert (patient.patient_id, patient.name, patient.mrn) == ("X-1", "Quuxa Quuxley", None)
    assert str(patient.date_of_birth) == "1970-12-31"


def test_a_patient_is_completed_and_the_command_says_what_changes(
    load: Run, tmp_path: Path, database: Database
) -> None:
    """First it says what would be filled, then it fills; another value needs a word more."""
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("patient_id,name\nPT-1,Zoë Quuxley\n", encoding="utf-8")
    second.write_text("patient_id,mrn,name\nPT-1,MRN-QUUX,Eve Quuxley\nPT-2,MRN-QUUX-2,\n", encoding="utf-8")
    assert load(first).code == 0
    for options, problem in (((), "; --update would fill mrn"), (("--update",), " name; --overwrite would replace it")):
        done = load(second, *options)
        assert done.code == 3
        assert done.stderr.startswith("line 2: duplicate patient_id: ")
        assert done.stderr.rstrip().endswith(problem)
        assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    done = load(second, "--update", "--overwrite")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        "1 imported, 0 already there and unchanged, 1 updated",
        "fields that were updated, by lines: mrn 1, name 1",
    ]
    with database.transaction() as tx:
        assert tx.patients.get("PT-1").name == "Eve Quuxley"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--overwrite",), "--overwrite is for --update"),
        (("--map", "PID"), "must be COLUMN=FIELD"),
        (("--map", "=mrn"), "must be COLUMN=FIELD"),
        (("--map", "PID=shoe_size"), "there is no field shoe_size"),
        (("--date-format", "%d.%m.%y"), "a year of two digits does not tell the century"),
    ],
)
def test_an_option_that_cannot_be_followed_exits_2(
    load: Run, path: Path, options: tuple[str, ...], problem: str
) -> None:
    """Wrong usage, and what is wrong about it; no file is read and no database is asked."""
    done = load(path, *options)
    assert done.code == 2
    assert problem in done.stderr


def test_text_of_the_file_cannot_act_on_the_terminal(load: Run, tmp_path: Path) -> None:
    """Names of columns are escaped in messages and results, and ids and record numbers are not shown at all."""
    path = tmp_path / "hostile.csv"
    path.write_text(
        "patient_id,mrn,\x1b[2J\x9b1m\u202eeman\nEVIL\x1b[31m,M-1,\nEVIL-1,M-2,\nEVIL-2,m-2,\nevil-1,M-3,\nEVIL-1,M-4,\n",
        encoding="utf-8",
    )
    for options in ((), ("--ignore-columns",), ("--ignore-columns", "--skip-bad"), ("--ignore-columns", "--json")):
        done = load(path, *options)
        assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
        assert "evil" not in (done.stdout + done.stderr).lower()
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["line 2", "line 4", "line 5", "line 6"]
    assert load(path).stderr.startswith("error: the header has columns that are not known: column 3 ")


@pytest.mark.parametrize(
    "option", ["--update", "--overwrite", "--map", "--date-format", "--null-words", "--ignore-columns"]
)
def test_every_option_is_documented(option: str) -> None:
    """In the help, and in docs/importing.md."""
    assert option in CliRunner().invoke(command, ["--help"]).output
    assert option in (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
