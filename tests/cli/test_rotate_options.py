"""What `scripts/rotate_keys.py` can be asked for beside a rotation, and how `status` tells of a run in progress."""

from __future__ import annotations

import subprocess

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from tests.cli.conftest import ROTATE, Run
from voiceassist_db import Database, Patient
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.status import read_status

PATIENTS = [
    Patient(patient_id=f"PT-{n:04d}", ssn=f"9{n:08d}", mrn=f"MRN-{n}", name=f"Zoë Hidden {n}") for n in range(600)
]


@pytest.fixture
def filled(environment: dict[str, str], database: Database) -> dict[str, str]:
    """The environment of a database with patients."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
    return environment


def test_a_month_goes_by(run: Run, filled: dict[str, str], provider: VaultKeyProvider) -> None:
    """A rotation; its retirement, refused within the grace period and done after it; and the next rotation."""
    assert run(env=filled, command=rotate_command).code == 0
    assert "21 days after it was replaced" in run("--retire", env=filled, command=rotate_command).error
    retired = run("--retire", "--grace-days", "0", "--json", env=filled, command=rotate_command)
    assert (retired.code, retired.json) == (
        0,
        {"version": 1, "floor": 2, "tables": ["clinical_notes", "patient_data"], "removed": True, "needed_by": []},
    )
    nothing = run("--retire", env=filled, command=rotate_command)
    assert nothing.code == 0
    assert "nothing to retire" in nothing.stdout
    assert run("--json", env=filled, command=rotate_command).json["to_version"] == 3
    told = run("status", env=filled).stdout
    assert "retirement of key version 1: finished" in told
    assert "key version 1: retired" in told
    in_words = run("--retire", "--grace-days", "0", env=filled, command=rotate_command).stdout
    assert "key version 2 is retired: clinical_notes, patient_data accept key version 3 and later only" in in_words
    assert list(provider.fetch().versions()) == [3]


def test_the_plan_is_shown_and_nothing_done(run: Run, filled: dict[str, str], provider: VaultKeyProvider) -> None:
    """A dry run says what would be rotated, in words and in JSON, and leaves key store and rows as they were."""
    before = provider.fetch()
    planned = run("--dry-run", "--json", env=filled, command=rotate_command)
    assert planned.code == 0
    known = {
        "from_version": 1,
        "to_version": 2,
        "unfinished": False,
        "rows": {"clinical_notes": 0, "patient_data": 600},
    }
    assert planned.json == planned.json | known
    assert "patient_data: 600 rows to re-encrypt" in run("--dry-run", env=filled, command=rotate_command).stdout
    assert before == provider.fetch()
    assert run("status", "--json", env=filled).json["rotations"] == []


def test_the_index_key_from_the_shell(run: Run, filled: dict[str, str], database: Database) -> None:
    """Rotated and told in JSON; every patient is found."""
    done = run("--index-key", "--json", env=filled, command=rotate_command)
    assert (done.code, done.stderr) == (0, "")
    assert done.json == done.json | {"rows": 600, "remaining": 0, "quarantined": 0, "interrupted": False}
    assert run("--index-key", env=filled, command=rotate_command).stdout.startswith("blind-index key: 600 rows in ")
    with database.transaction() as tx:
        assert tx.patients.find_by_mrn("MRN-77") is not None
    assert "rotation of the blind-index key 1 → 2: finished" in run("status", env=filled).stdout


def test_some_tables_first(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """With one table named the rest is left, and said to be (code 3); the next run finishes. An unknown table is refused."""
    some = run("--tables", "clinical_notes", "--json", env=filled, command=rotate_command)
    assert (some.code, some.json["rows"], some.json["remaining"]) == (3, 0, 600)
    assert "no encrypted table nobody" in run("--tables", "nobody", env=filled, command=rotate_command).error
    rest = run("--resume", "--json", env=filled, command=rotate_command)
    assert (rest.code, rest.json["rows"], rest.json["remaining"]) == (0, 600, 0)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT DISTINCT key_version FROM patient_data")).scalars().all() == [2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--retire", "--index-key"],
        ["--retire", "--tables", "patient_data"],
        ["--index-key", "--dry-run"],
        ["--workers", "0"],
        ["--max-rows-per-second", "0"],
        ["--target-batch-seconds", "0"],
        ["--grace-days", "-1"],
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(filled: dict[str, str], engine: Engine, arguments: list[str]) -> None:
    """None is passed over in silence, and nothing is begun."""
    done = CliRunner().invoke(rotate_command, arguments, env=filled)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr
    with engine.connect() as connection:
        assert read_status(connection).rotations == ()


def test_status_tells_of_a_run_in_progress(run: Run, filled: dict[str, str], engine: Engine) -> None:
    """Who is at it, how far and how fast; and, once it is killed and its lease has ended, how to go on."""
    slow = [*ROTATE, "--max-rows-per-second", "5"]  # two minutes, of which it needs a few seconds
    process = subprocess.Popen(slow, env=filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told: dict[str, object] = {}
        while not told.get("rows_per_second"):
            assert process.poll() is None
            rotations = run("status", "--json", env=filled).json["rotations"]
            told = rotations[0] if rotations else {}
        assert told == told | {"is_active": True, "state": "running", "rows_total": 600}
        assert str(told["holder_name"]).endswith(f":{process.pid}")
        assert float(str(told["rows_per_second"])) > 0
        assert f":{process.pid} is at it" in run("status", env=filled).stdout
    finally:
        process.kill()
        process.wait()
    with engine.begin() as connection:
        connection.execute(text("UPDATE key_rotations SET lease_until = heartbeat_at"))
    ended = run("status", env=filled).stdout
    assert "rotation 1 → 2: died" in ended
    assert "run `voiceassist-db rotate` to go on" in ended
