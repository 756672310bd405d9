"""Every wait is told within seconds, with its cause: who has the lock, or which standby is missing. Then the work is finished."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from psycopg import sql

from tests.cli.conftest import Run
from tests.rotation.conftest import until
from tests.waits.conftest import ROLES, Spoilt
from voiceassist_db import Database, decision
from voiceassist_db.cli import attending, output
from voiceassist_db.cli.rotating import EXIT_LEFT_OVER, exit_code
from voiceassist_db.errors import RotationActiveError, RotationError
from voiceassist_db.rotation import Pace, retire, rotate
from voiceassist_db.rotation import lease as lease_module
from voiceassist_db.waits import watching

pytestmark = pytest.mark.wide

At = Callable[[str], Database]
Env = Callable[[str], dict[str, str]]


def told_of(wait: str, database: Database, work: Callable[[], object], end: Callable[[], object]) -> list[str]:
    """Do work that waits; end the wait when it is told of, and return what was told."""
    told: list[str] = []
    done: list[object] = []
    with watching(database.engine, told.append):
        thread = threading.Thread(target=lambda: done.append(work()))
        thread.start()
        until(lambda: any(wait in each for each in told) or not thread.is_alive())
        end()
        thread.join()
    assert done, told
    return told


def test_a_synchronous_standby_that_is_missing(spoilt: Spoilt, at: At) -> None:
    """A run that waits for it says so, with the setting and what is connected, and goes on when the setting is changed."""
    rotator = at(ROLES.rotator)
    spoilt.set("synchronous_commit", "on")
    spoilt.set("synchronous_standby_names", "paris")
    told = told_of(
        "synchronous standby",
        rotator,
        lambda: rotate(rotator.engine, rotator.keys).done,
        lambda: spoilt.set("synchronous_standby_names", ""),
    )
    assert any("'paris', and 0 standbys are connected" in each for each in told), told


def test_a_table_that_is_locked_elsewhere(spoilt: Spoilt, clinic: str, at: At) -> None:
    """ACCESS EXCLUSIVE: the wait names the process, its role, its application and since when."""
    rotator = at(ROLES.rotator)
    with spoilt.admin(clinic) as admin:
        pid = admin.info.backend_pid
        admin.execute("SET application_name = 'nightly job'")
        admin.execute("BEGIN")
        admin.execute("LOCK TABLE patient_data IN ACCESS EXCLUSIVE MODE")
        told = told_of(
            "waiting for a lock",
            rotator,
            lambda: rotate(rotator.engine, rotator.keys).done,
            lambda: admin.execute("ROLLBACK"),
        )
    assert any(f"pid {pid} (role postgres, application nightly job, since 20" in each for each in told), told


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_command_that_waits_says_so(
    spoilt: Spoilt, clinic: str, env: Env, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Commands other than the rotation wait for locks as well, and print whom they wait for while they wait."""
    said = threading.Event()

    def say(line: str, *, err: bool) -> None:
        output.say(line, err=err)
        said.set()

    monkeypatch.setattr(attending, "say", say)
    with spoilt.admin(clinic) as admin:
        admin.execute("BEGIN")
        admin.execute("LOCK TABLE patient_data IN ACCESS EXCLUSIVE MODE")
        ending = threading.Thread(target=lambda: (said.wait(60), admin.execute("ROLLBACK")))
        ending.start()
        done = run(command, env=env(ROLES.auditor if command == "status" else ROLES.rotator))
        ending.join()
        assert said.is_set()
        assert f"waiting for a lock of pid {admin.info.backend_pid} (role postgres" in done.stderr


def test_a_prepared_transaction_that_was_forgotten(spoilt: Spoilt, clinic: str, at: At) -> None:
    """No session has its locks: the report and the wait name it as COMMIT PREPARED needs it."""
    rotator = at(ROLES.rotator)
    with spoilt.admin(clinic) as admin:
        admin.execute("BEGIN")
        admin.execute("UPDATE patient_data SET updated_at = now() WHERE patient_id = 'PT-7'")
        admin.execute("PREPARE TRANSACTION 'forgotten order 66'")
        told: list[str] = []
        with watching(rotator.engine, told.append):
            report = rotate(rotator.engine, rotator.keys, pace=Pace(patience_s=2))
        assert exit_code(report) == EXIT_LEFT_OVER
        (waits_for,) = report.waits_for
        for each in (waits_for, *told):
            assert "the prepared transaction 'forgotten order 66' of postgres, since 20" in each
            assert "ROLLBACK PREPARED" in each
        assert told
        owner = at(ROLES.owner)
        with pytest.raises(RotationError):
            retire(owner.engine, owner.keys, grace_days=0)
        admin.execute("ROLLBACK PREPARED 'forgotten order 66'")
    assert rotate(rotator.engine, rotator.keys).done


def test_a_reader_that_keeps_a_retirement_out(spoilt: Spoilt, clinic: str, at: At) -> None:
    """An ACCESS EXCLUSIVE lock waits for readers, too: the refusal names the one that does not end."""
    rotator, owner = at(ROLES.rotator), at(ROLES.owner)
    assert rotate(rotator.engine, rotator.keys).done
    with spoilt.admin(clinic) as admin:
        admin.execute("BEGIN")
        admin.execute("SELECT count(*) FROM patient_data")
        with pytest.raises(RotationError, match=f"in use.*pid {admin.info.backend_pid} .*role postgres"):
            retire(owner.engine, owner.keys, grace_days=0, patience_s=0.1)
        admin.execute("ROLLBACK")
    assert retire(owner.engine, owner.keys, grace_days=0).version == 1


def test_only_who_writes_to_the_registry_can_hold_a_run_up(
    spoilt: Spoilt, clinic: str, at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The auditor may take every advisory lock and every lock that it has the right to: a rotation goes on. A writer is named."""
    monkeypatch.setattr(lease_module, "TAKE_TIMEOUT_MS", 200)
    rotator, auditor = at(ROLES.rotator), at(ROLES.auditor)
    with auditor.engine.connect() as held:
        for number in (0x766F6963_726F7461, 0x766F6963_6B657973):
            held.exec_driver_sql(f"SELECT pg_advisory_lock({number})")
        for table in ("encryption_keys", "index_keys", "key_rotations", "key_rotation_failures"):
            held.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        assert rotate(rotator.engine, rotator.keys).done
    with spoilt.admin(clinic) as admin:
        admin.execute("BEGIN")
        admin.execute(sql.SQL("LOCK TABLE key_rotations IN SHARE UPDATE EXCLUSIVE MODE"))
        with pytest.raises(RotationActiveError, match=f"begins or ends.*pid {admin.info.backend_pid} .role postgres"):
            lease_module.Lease.take(rotator.engine, decision.Run("encryption", 7, 8))
        admin.execute("ROLLBACK")
