"""`status` and `verify` as a process: their JSON contract, their words, and their exit codes."""

from __future__ import annotations

import gc
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from tests.cli.conftest import COMMAND, ROTATE, Run
from voiceassist_db import Database, Patient
from voiceassist_db.cli import cli
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.examination import UNINDEXED

PATIENTS = [
    Patient(patient_id=f"PT-{number:03d}", ssn=f"900-00-{number:04d}", mrn=f"M{number}", name=f"Zoë Hidden {number}")
    for number in range(12)
]


@pytest.fixture
def filled(environment: dict[str, str], database: Database) -> dict[str, str]:
    """The environment of a database with patients."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
    return environment


def test_status_has_the_fields_of_its_contract(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """One object on the last line, whose dates a machine can read, before a rotation and after."""
    before = run("status", "--json", env=filled)
    assert (before.code, before.stderr, before.stdout.count("\n")) == (0, "", 1)
    assert set(before.json) == {"keys", "tables", "unencrypted", "rotations", "key_age_days", "overdue", "gaps"}
    (key,) = before.json["keys"]
    assert key == key | {"version": 1, "state": "current", "scheme": "bound", "replaced_at": None, "retired_at": None}
    assert before.json["tables"] == {"clinical_notes": {}, "patient_data": {"1": len(PATIENTS)}}
    assert before.json["rotations"] == before.json["gaps"] == []
    assert before.json["overdue"] is False
    assert 0 <= before.json["key_age_days"] < 1
    assert run("--json", env=filled, command=rotate_command).code == 0
    after = run("status", "--json", env=filled).json
    assert [(each["version"], each["state"]) for each in after["keys"]] == [(1, "previous"), (2, "current")]
    assert after["tables"] == {"clinical_notes": {}, "patient_data": {"2": len(PATIENTS)}}
    (rotation,) = after["rotations"]
    known = {"from_version": 1, "to_version": 2, "state": "finished", "rows": len(PATIENTS), "quarantined": 0}
    assert rotation == rotation | known
    moments = [
        after["keys"][0]["created_at"],
        rotation["started_at"],
        rotation["heartbeat_at"],
        rotation["finished_at"],
    ]
    assert all("T" in moment and datetime.fromisoformat(moment).utcoffset() is not None for moment in moments)
    assert all(earlier <= later for earlier, later in pairwise(map(datetime.fromisoformat, moments)))


def test_status_in_words(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """A person reads the same: versions, rows, what is overdue."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE encryption_keys SET created_at = now() - interval '45 days'"))
    done = run("status", env=filled)
    assert (done.code, done.stderr) == (0, "")
    assert "key version 1: current, scheme bound, since 20" in done.stdout
    assert "the current key is 45 days old, more than 35: rotate it" in done.stdout
    assert "patient_data: 12 under version 1\n" in done.stdout
    assert "clinical_notes: empty\n" in done.stdout
    assert "rotate it" not in run("status", "--max-age-days", "50", env=filled).stdout


def test_status_needs_no_key_store(run: Run, filled: dict[str, str]) -> None:
    """The database alone tells where it stands, with Vault down or not configured at all."""
    assert run("status", "--json", env={"DATABASE_URL": filled["DATABASE_URL"]}).code == 0
    assert run("status", "--json", env=filled | {"VAULT_ADDR": "http://127.0.0.1:1"}).code == 0


def test_status_before_the_first_key(run: Run, fresh_environment: dict[str, str]) -> None:
    """A database that has no key yet says which command makes one."""
    assert "voiceassist-db init-keys" in run("status", env=fresh_environment).stdout
    empty = run("status", "--json", env=fresh_environment).json
    assert (empty["keys"], empty["key_age_days"], empty["overdue"]) == ([], None, False)


def test_verify_has_the_fields_of_its_contract(run: Run, filled: dict[str, str]) -> None:
    """All is well: ok, code 0, and each table's counts."""
    done = run("verify", "--json", env=filled)
    assert (done.code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    well = {"unindexed": 0, "failed": 0, "failures": []}
    assert done.json == {
        "ok": True,
        "tables": {
            "clinical_notes": {"rows": 0, "values": 0} | well,
            "patient_data": {"rows": 12, "values": 36} | well,
        },
    }
    words = run("verify", env=filled)
    assert words.code == 0
    assert words.stdout.splitlines()[1] == "patient_data: 12 rows, 36 values, all well"


def test_verify_names_a_damaged_value_and_ends_with_1(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """The row and the field, in JSON and in words; never what they hold."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patient_data SET name_encrypted = set_byte(name_encrypted, 50, get_byte(name_encrypted, 50) # 1), "
                "ssn_index = NULL "
                "WHERE patient_id = 'PT-007'"
            )
        )
    row = str(PATIENTS[7].id)
    done = run("verify", "--json", env=filled)
    assert (done.code, done.json["ok"]) == (1, False)
    table = done.json["tables"]["patient_data"]
    assert (table["rows"], table["values"], table["unindexed"], table["failed"]) == (12, 36, 0, 2)
    problem = "does not open: damaged, or under another key"
    assert {"row_id": row, "field": "name", "problem": problem} in table["failures"]
    assert {"row_id": row, "field": "ssn", "problem": UNINDEXED} in table["failures"]
    words = run("verify", env=filled)
    assert words.code == 1
    assert words.stdout.splitlines()[1:] == [
        "patient_data: 12 rows, 36 values, 2 FAILED",
        f"  patient_data.ssn of row {row} {UNINDEXED}",
        f"  patient_data.name of row {row} {problem}",
    ]
    assert "Hidden" not in done.stdout + done.stderr + words.stdout + words.stderr


def test_more_failures_than_shown_are_counted(filled: dict[str, str], engine: Engine) -> None:
    """A table that is damaged as a whole prints as many lines as are kept, and says how many more there are."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET key_version = 9"))
    with patch("voiceassist_db.verification.KEPT_FAILURES", 5):
        done = CliRunner().invoke(cli, ["verify"], env=filled)
    assert done.exit_code == 1
    assert "12 FAILED" in done.output
    assert done.output.count("is under key version 9") == 5
    assert "  … and 7 more\n" in done.output


@pytest.mark.wide
def test_a_pipe_that_is_closed_early_is_no_traceback(run_process: Run, filled: dict[str, str], engine: Engine) -> None:
    """Whoever reads only the first line does not make the command complain."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET key_version = 9"))
    shell = ["/bin/sh", "-c", '"$@" | head -n 1', "sh", *COMMAND]
    for arguments in (["verify"], ["status"]):
        done = run_process(*arguments, env=filled, command=shell)
        assert (done.code, done.stderr, done.stdout.count("\n")) == (0, "", 1), arguments


def test_commands_close_what_they_open(fresh_environment: dict[str, str]) -> None:
    """In a process that goes on, such as this one, no connection is left to the garbage collector."""
    for arguments in (["init-keys"], ["status"], ["verify"]):
        assert CliRunner().invoke(cli, arguments, env=fresh_environment).exit_code == 0
    gc.collect()


@pytest.mark.wide
def test_a_command_runs_from_anywhere(run_process: Run, filled: dict[str, str], tmp_path: Path) -> None:
    """No command needs the checkout as its directory."""
    assert run_process("status", "--json", env=filled, cwd=tmp_path).code == 0
    assert run_process("--json", env=filled, cwd=tmp_path, command=ROTATE).code == 0
