"""The command tells a person, a script and a log what became of each line, and never whose line it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.conftest import Outcome, Run
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
