"""One run at a time: who holds the lease, who may take it over, and that a run which lost it commits nothing more."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from tests.rotation.conftest import Start, Trial, ended, killed, until
from voiceassist_db.decision import Run
from voiceassist_db.errors import (
    DatabaseUnavailableError,
    LeaseLostError,
    RotationActiveError,
    TransactionConflictError,
)
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.rotation import lease, rotate
from voiceassist_db.rotation.lease import Lease

SLOWLY = ("--max-rows-per-second", "1500", "--json")
WANTED = Run("encryption", 1, 2)

# The same command with a lease of one second, for tests that cannot wait for a real one to end.
HASTY = """
from sqlalchemy import func, text
from voiceassist_db.cli import run
from voiceassist_db.cli.rotate_command import rotate_keys as command
from voiceassist_db.rotation import lease
lease.HEARTBEAT_S = 0.3
lease._UNTIL = func.clock_timestamp() + text("interval '1 second'")
assert "'15s'" in lease._FENCE.sql
lease._FENCE._query = lease._FENCE.sql.replace("'15s'", "'1s'").encode()
lease._LIMIT_SILENCE = text("SELECT set_config('idle_in_transaction_session_timeout', '1s', true)")
run(command)
"""
HASTILY = [sys.executable, "-c", HASTY]

STATES = """
    SELECT state, EXISTS (
        SELECT FROM pg_locks l
        WHERE l.pid = a.pid AND l.relation = 'patient_data'::regclass AND l.mode = 'RowExclusiveLock'
    )
    FROM pg_stat_activity a
    WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


WHEN_STOPPED = [
    pytest.param(True, id="in a batch"),
    pytest.param(False, id="between batches", marks=pytest.mark.long),
]

WAITING = "SELECT FROM pg_locks WHERE relation = 'patient_data'::regclass AND mode = 'RowExclusiveLock' AND NOT granted"


def stop(trial: Trial, process: subprocess.Popen[str], *, in_a_batch: bool) -> None:
    """Stop a process, as a laptop that is closed does, between two batches, or when one has written and not committed."""
    until(lambda: trial.versions().get(2, 0) > 0)
    while True:
        assert process.poll() is None
        with trial.engine.connect() as connection:
            if in_a_batch:
                connection.execute(text("LOCK TABLE patient_data IN SHARE MODE"))
                until(lambda: trial.ask(WAITING))
            process.send_signal(signal.SIGSTOP)
            connection.rollback()
        time.sleep(0.05)  # for its statement to end
        if trial.ask(STATES) == ([("idle in transaction", True)] if in_a_batch else []):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


def written(trial: Trial) -> list[tuple[Any, ...]]:
    """Return every row as it is stored, and who wrote it last."""
    return trial.ask("SELECT xmin::text, * FROM patient_data ORDER BY id")


def test_a_second_start_is_refused_at_once(trial: Trial, environment: dict[str, str], start: Start) -> None:
    """It ends while the first one runs, with the code for it, and says who is at it; the first one is not disturbed."""
    first = start("--max-rows-per-second", "100", env=environment)
    until(lambda: trial.is_run_by(first))
    second = ended(start(env=environment))
    assert (5, "") == (second.code, second.stdout)
    holder = f"{socket.gethostname()}:{first.pid}"
    said = rf"the rotation 1 → 2 is being run by {re.escape(holder)} \(last heartbeat [^)]+\): watch it"
    assert re.match(f"error: {said}", second.stderr)
    with pytest.raises(RotationActiveError, match=said):
        rotate(trial.engine, KeyringSource(trial.provider))
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert 6 == ended(first).code
    trial.finish()


def test_the_lease_of_a_process_that_died_here_is_taken_over_at_once(
    trial: Trial, environment: dict[str, str], start: Start
) -> None:
    """Its time is not waited for, unlike that of a process elsewhere, of which nobody here knows whether it lives."""
    process = start(*SLOWLY, env=environment)
    until(lambda: trial.versions().get(2, 0) > 0)
    assert killed(process)
    ((is_held, name),) = trial.ask("SELECT lease_until > clock_timestamp() + '5 s', holder_name FROM key_rotations")
    assert is_held
    trial.ask("UPDATE key_rotations SET holder_name = 'elsewhere:1'")
    with pytest.raises(RotationActiveError, match="run by elsewhere:1"):
        rotate(trial.engine, KeyringSource(trial.provider))
    trial.ask("UPDATE key_rotations SET holder_name = :name", name=name)
    trial.finish()


@pytest.mark.parametrize("in_a_batch", WHEN_STOPPED)
@pytest.mark.parametrize(
    "command", [pytest.param(HASTILY, id="hasty"), pytest.param(None, id="real", marks=pytest.mark.long)]
)
def test_a_run_that_lost_its_lease_commits_nothing_more(
    trial: Trial, environment: dict[str, str], start: Start, command: list[str] | None, in_a_batch: bool
) -> None:
    """It was stopped, and another one took over: awake again, with most rows still to be done, it says so and does none."""
    options: dict[str, Any] = {"command": command} if command else {}
    sleeper = start(*SLOWLY, env=environment, **options)
    stop(trial, sleeper, in_a_batch=in_a_batch)
    until(lambda: trial.ask("SELECT FROM key_rotations WHERE lease_until < clock_timestamp()"))
    successor = Lease.take(trial.engine, WANTED)
    rows, journal = written(trial), trial.ask("SELECT * FROM key_rotations")
    assert trial.versions()[1] > 0
    sleeper.send_signal(signal.SIGCONT)
    awake = ended(sleeper)
    assert (1, "") == (awake.code, awake.stdout)
    assert awake.stderr.splitlines()[-1].startswith("error: another process took this rotation over")
    assert (rows, journal) == (written(trial), trial.ask("SELECT * FROM key_rotations"))
    successor.release(finished=False)
    trial.finish()


@pytest.mark.parametrize("in_a_batch", WHEN_STOPPED)
def test_a_run_whose_lease_ended_goes_on_where_nobody_took_it(
    trial: Trial, environment: dict[str, str], start: Start, in_a_batch: bool
) -> None:
    """It waits for its heartbeat to renew it, and finishes; a batch that the server gave up meanwhile is done again."""
    process = start(*SLOWLY, env=environment, command=HASTILY)
    stop(trial, process, in_a_batch=in_a_batch)
    until(lambda: trial.ask("SELECT FROM key_rotations WHERE lease_until < clock_timestamp()"))
    until(lambda: not trial.ask(STATES))
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert (0, 0) == (done.code, done.json["remaining"]), done.stderr
    print(done.stderr)
    trial.check()
    assert {2: trial.rows} == trial.versions()


def test_a_take_over_waits_for_the_batch_under_way(trial: Trial) -> None:
    """Whoever takes over begins when the other's last batch is committed, or never: the next one does not pass the fence."""
    first = Lease.take(trial.engine, WANTED)
    with ThreadPoolExecutor() as pool:
        with trial.engine.begin() as connection:
            first.fence(connection)
            trial.expire_lease()
            second = pool.submit(Lease.take, trial.engine, WANTED)
            time.sleep(0.3)
            assert not second.done()
        second.result()
    with pytest.raises(LeaseLostError), trial.engine.begin() as connection:
        first.fence(connection)
    with trial.engine.begin() as connection:
        second.result().fence(connection)


def test_a_batch_that_does_not_end_keeps_others_out(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A take-over gives up after a while, and says what to do."""
    monkeypatch.setattr(lease, "TAKE_TIMEOUT_MS", 100)
    first = Lease.take(trial.engine, WANTED)
    with trial.engine.begin() as connection:
        first.fence(connection)
        trial.expire_lease()
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(
            RotationActiveError, match=f"begins or ends a rotation.*pid {pid} .*role .*application .*since 20"
        ):
            Lease.take(trial.engine, WANTED)


def test_a_take_over_that_was_cancelled_does_not_accuse_another_run(trial: Trial) -> None:
    """An administrator who cancels the statement is no other run: it may be tried again."""
    first = Lease.take(trial.engine, WANTED)
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ThreadPoolExecutor() as pool, trial.engine.begin() as connection:
        first.fence(connection)
        trial.expire_lease()
        second = pool.submit(Lease.take, trial.engine, WANTED)
        until(lambda: trial.ask(cancel))
        with pytest.raises(TransactionConflictError, match="try it again"):
            second.result()


def test_a_heartbeat_that_does_not_end_keeps_nobody_out(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still in the midst of it is disconnected by the server, which frees the lease's row."""
    monkeypatch.setattr(
        lease, "_LIMIT_SILENCE", text("SELECT set_config('idle_in_transaction_session_timeout', '200ms', true)")
    )
    first = Lease.take(trial.engine, WANTED)
    trial.expire_lease()
    with trial.engine.connect() as connection:
        first._write(connection, {"rows": 1})
        second = Lease.take(trial.engine, WANTED)
        connection.invalidate()
    assert first.run == second.run
    with trial.engine.begin() as connection:
        second.fence(connection)
    with pytest.raises(LeaseLostError), trial.engine.begin() as connection:
        first.fence(connection)


def test_a_lease_that_ended_does_not_pass_the_fence(trial: Trial) -> None:
    """Even where nobody took it yet: another one may at any moment."""
    held = Lease.take(trial.engine, WANTED)
    trial.expire_lease()
    with pytest.raises(DatabaseUnavailableError, match="lease has ended"), trial.engine.begin() as connection:
        held.fence(connection)


def test_one_of_two_takes_the_lease_under_repeatable_read(trial: Trial) -> None:
    """Who waited for the other to take it must see that it is taken, though its transaction began before."""
    with trial.engine.begin() as connection:
        name = connection.scalar(text("SELECT pg_catalog.quote_ident(pg_catalog.current_database())"))
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    trial.engine.dispose()

    def take(_: int) -> bool:
        try:
            Lease.take(trial.engine, WANTED)
        except RotationActiveError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool, trial.engine.begin() as connection:
        connection.execute(text("LOCK TABLE key_rotations IN SHARE UPDATE EXCLUSIVE MODE"))
        takers = [pool.submit(take, n) for n in range(2)]
        waiting = text(
            "SELECT count(*) FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database "
            "WHERE d.datname = pg_catalog.current_database() AND l.locktype = 'relation' AND NOT l.granted"
        )
        until(lambda: connection.scalar(waiting) == 2)
        connection.commit()
    assert sorted(each.result() for each in takers) == [False, True]
