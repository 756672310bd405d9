"""Signals, `--resume` and `--dry-run` of `scripts/rotate_keys.py`."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.rotation.conftest import Start, Trial, ended, until

SLOWLY = ("--max-rows-per-second", "1500", "--json")


def state_of_all(trial: Trial) -> dict[str, Any]:
    """Return what a run could change: the secret's revision, and every row of every table, with who wrote it last."""
    tables = (
        "patient_data",
        "database_identity",
        "encryption_keys",
        "index_keys",
        "key_rotations",
        "key_rotation_failures",
    )
    rows = {table: sorted(map(repr, trial.ask(f"SELECT xmin::text, * FROM {table}"))) for table in tables}
    return rows | {"revision": trial.provider.fetch().revision}


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.wide), signal.SIGTERM], ids=lambda number: number.name
)
def test_a_signal_ends_the_run_after_the_batch_under_way(
    trial: Trial, environment: dict[str, str], start: Start, number: signal.Signals
) -> None:
    """It ends with rows left, prints its report and exit code 6, gives the lease back, and the next run does the rest."""
    process = start(*SLOWLY, env=environment)
    until(lambda: trial.versions().get(2, 0) > 0)
    process.send_signal(number)
    interrupted = ended(process)
    assert 6 == interrupted.code
    assert "stopping after the batches that are under way; once more to stop at once\n" == interrupted.said
    report = interrupted.json
    assert (True, report["rows"]) == (report["interrupted"], trial.versions()[2])
    assert (True, trial.rows - report["rows"]) == (report["remaining"] > 0, report["remaining"])
    assert [("interrupted", report["rows"], None)] == trial.ask("SELECT state, rows, lease_until FROM key_rotations")
    trial.check()
    if number is signal.SIGTERM:
        resumed = ended(start("--resume", "--json", env=environment))
        assert (0, report["remaining"], 0) == (resumed.code, resumed.json["rows"], resumed.json["remaining"])
    else:
        assert report["remaining"] == trial.finish().rows
    assert [("finished", trial.rows)] == trial.ask("SELECT state, rows FROM key_rotations")
    trial.check()


@pytest.mark.parametrize(
    "when",
    ["before the first rotation", "after the last one", pytest.param("after its retirement", marks=pytest.mark.long)],
)
def test_resume_begins_nothing(trial: Trial, environment: dict[str, str], start: Start, when: str) -> None:
    """With nothing unfinished it changes nothing, says so, and that is no failure."""
    if when != "before the first rotation":
        trial.finish()
    if when == "after its retirement":
        trial.retire()
    before = state_of_all(trial)
    done = ended(start("--resume", env=environment))
    assert (0, "") == (done.code, done.said)
    assert "no rotation is unfinished: nothing to do\n" == done.stdout
    assert before == state_of_all(trial)


@pytest.mark.parametrize("when", ["before a rotation", "in the midst of one"])
def test_dry_run_changes_nothing(trial: Trial, environment: dict[str, str], start: Start, when: str) -> None:
    """No key, no row, no line of the registry or the journal; the plan says what a run would do."""
    is_unfinished = when == "in the midst of one"
    if is_unfinished:
        process = start(*SLOWLY, env=environment)
        until(lambda: trial.versions().get(2, 0) > 0)
        process.send_signal(signal.SIGTERM)
        assert 6 == ended(process).code
    before = state_of_all(trial)
    left = trial.versions()[1]
    done = ended(start("--dry-run", "--json", env=environment))
    assert (0, "") == (done.code, done.said)
    plan = done.json
    assert (1, 2, is_unfinished) == (plan["from_version"], plan["to_version"], plan["unfinished"])
    assert {"patient_data": left, "clinical_notes": 0} == plan["rows"]
    assert before == state_of_all(trial)
