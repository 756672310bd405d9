"""`scripts/rotate_keys.py` as a process: to the end, killed on the way and continued, and refused."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from tests.cli.conftest import ROTATE, Run
from voiceassist_db import Database, Patient
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.providers.vault import VaultKeyProvider

ROWS = 4000
PATIENTS = [Patient(patient_id=f"PT-{number:04d}", name=f"Zoë Hidden {number}") for number in range(ROWS)]


@pytest.fixture
def filled(environment: dict[str, str], database: Database) -> dict[str, str]:
    """The environment of a database with more patients than a batch holds."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
    return environment


def versions(engine: Engine) -> dict[int, int]:
    """Return how many rows there are under each version."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT key_version, count(*) AS rows FROM patient_data GROUP BY 1 ORDER BY 1"))
        return {row.key_version: row.rows for row in rows}


@contextmanager
def locked(engine: Engine, patient_id: str) -> Iterator[None]:
    """Hold a row, so that no rotation gets past it."""
    with engine.connect() as connection:
        query = text("SELECT FROM patient_data WHERE patient_id = :id FOR UPDATE")
        connection.execute(query, {"id": patient_id})
        yield
        connection.rollback()


def names(engine: Engine, provider: VaultKeyProvider) -> dict[str, str | None]:
    """Return every patient's name, read as an application that starts now would."""
    with Database(engine, provider).transaction() as tx:
        return {each.patient_id: each.name for each in tx.patients.page(limit=ROWS + 1, fields=["name"])}


def test_a_rotation_from_the_shell(run: Run, run_process: Run, filled: dict[str, str], engine: Engine) -> None:
    """Every row under the new version, told in JSON; status and verify agree; another one must wait for a retirement."""
    done = run_process("--json", env=filled, command=ROTATE)
    assert (done.code, done.stderr) == (0, "")
    result = done.json
    known = {"from_version": 1, "to_version": 2, "rows": ROWS, "remaining": 0, "verified": True}
    assert result == result | known
    assert result["seconds"] > 0
    assert result["rows_per_second"] > 0
    status = run("status", "--json", env=filled).json
    assert status["tables"]["patient_data"] == {"2": ROWS}
    assert [(key["version"], key["state"]) for key in status["keys"]] == [(1, "previous"), (2, "current")]
    verified = run("verify", "--json", env=filled)
    assert (verified.code, verified.json["ok"]) == (0, True)
    assert verified.json["tables"]["patient_data"]["values"] == ROWS
    assert "retire it first" in run(env=filled, command=rotate_command).error
    assert versions(engine) == {2: ROWS}


def test_a_rotation_in_words(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """A person reads a line; an empty table rotates too."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM patient_data"))
    done = run(env=filled, command=rotate_command)
    assert (done.code, done.stderr) == (0, "")
    assert re.fullmatch(
        r"key version 1 → 2: 0 rows in [0-9.]+ s \([0-9,]+/s\), 0 remaining, verified; tables x1.00, indexes x1.00\n",
        done.stdout,
    )


def test_a_killed_rotation_is_continued_and_no_row_is_lost(
    run: Run, filled: dict[str, str], engine: Engine, provider: VaultKeyProvider
) -> None:
    """After kill -9 between two batches, both versions are read, the next run does the rest, and every name is there."""
    expected = {each.patient_id: each.name for each in PATIENTS}
    with locked(engine, PATIENTS[-1].patient_id):
        process = subprocess.Popen(ROTATE, env=filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while 2 not in versions(engine) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
    halfway = versions(engine)
    assert set(halfway) == {1, 2}
    assert names(engine, provider) == expected
    status = run("status", "--json", env=filled).json
    assert status["tables"]["patient_data"] == {str(version): rows for version, rows in halfway.items()}
    assert [each["state"] for each in status["rotations"]] == ["running"]
    assert run("verify", "--json", env=filled).json["ok"] is True
    again = run("--json", env=filled, command=rotate_command)
    assert (again.code, again.json["from_version"], again.json["to_version"]) == (0, 1, 2)
    assert (again.json["remaining"], again.json["verified"]) == (0, True)
    assert versions(engine) == {2: ROWS}
    assert names(engine, provider) == expected
    assert {each["state"] for each in run("status", "--json", env=filled).json["rotations"]} == {"finished"}


def test_rows_that_cannot_be_verified_are_code_3(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """A moved value is carried over as it is, and the result does not say that all is well."""
    swap = """
        UPDATE patient_data SET name_encrypted = (SELECT name_encrypted FROM patient_data WHERE patient_id = 'PT-0001')
        WHERE patient_id = 'PT-0002'
    """
    with engine.begin() as connection:
        connection.execute(text(swap))
    done = run("--json", env=filled, command=rotate_command)
    assert done.code == 3
    assert (done.json["remaining"], done.json["verified"]) == (0, False)
    assert "Hidden" not in done.stdout + done.stderr
