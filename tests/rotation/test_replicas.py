"""A rotation waits for a real replica that lags, is cut off or cannot be watched, and for WAL that a slot retains."""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from tests.cli.conftest import Run
from tests.conftest import VaultServer, leading_to, plain, throwaway_server
from tests.rotation.patients import fill
from tests.rotation.standby import NAME, Standby
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.process import poll
from voiceassist_db.errors import RotationError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import fetched
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, Progress, RotationReport, plan, rotate
from voiceassist_db.safety import SETTINGS
from voiceassist_db.schema import migrate

pytestmark = pytest.mark.wide

PATIENTS = 400
PACE = Pace(max_rows_per_second=250, max_replica_lag_s=0.6)
PATIENCE_S = 20.0
TEMPLATE = "migrated"


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    """A server that replicas may follow, with a migrated database to copy."""
    with throwaway_server({"wal_level": "replica"}) as server:
        admin(server, f"CREATE DATABASE {TEMPLATE}")
        engine = create_engine(server.url(TEMPLATE))
        migrate(engine)
        engine.dispose()
        yield server


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Iterator[Standby]:
    """A replica of that server, which follows it."""
    with Standby(primary) as server:
        yield server


@pytest.fixture
def followed(
    primary: EmbeddedPostgres, new_provider: Callable[..., VaultKeyProvider], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A database on that server, with patients, and a throttle that looks often."""
    monkeypatch.setattr("voiceassist_db.rotation.throttle.PROBE_EVERY_S", 0.1)
    name = f"followed_{secrets.token_hex(4)}"
    admin(primary, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
    engine = create_engine(primary.url(name))
    with engine.begin() as connection:
        initialise_keys(provider := new_provider(), connection)
    database = Database(engine, provider)
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"9{n:08d}") for n in range(PATIENTS))
    yield database
    engine.dispose()


def admin(server: EmbeddedPostgres, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
    """Execute a statement as the superuser; return its rows."""
    with psycopg.connect(plain(server.url(database)), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Interrupted:
    """Watches a rotation that is disturbed in its midst until it pauses, looks that it stands still, and mends it.

    Args:
        disturb: Called once some rows are done.
        mend: Called when the rotation has stood still for a while with the note that is expected.
        note: What its progress must say meanwhile.
    """

    def __init__(self, disturb: Callable[[], object], mend: Callable[[], object], note: str) -> None:
        self._disturb = disturb
        self._mend = mend
        self._note = note
        self._since: float | None = None
        self._rows = 0
        self._give_up = 0.0
        self.is_disturbed = self.is_mended = False

    def __call__(self, now: Progress) -> None:
        if not self.is_disturbed:
            if now.rows:
                self._disturb()
                self.is_disturbed, self._give_up = True, time.monotonic() + PATIENCE_S
        elif not self.is_mended:
            assert time.monotonic() < self._give_up, f"it did not pause: {now}"
            if self._note not in now.note:
                self._since = None
            elif self._since is None:
                self._since, self._rows = time.monotonic(), now.rows
            elif time.monotonic() > self._since + 0.4:
                assert self._rows == now.rows < PATIENTS
                self._mend()
                self.is_mended = True

    def rotate(self, database: Database, pace: Pace = PACE) -> RotationReport:
        """Rotate under this watch; return the report of a rotation that paused, went on and came to its end."""
        report = rotate(database.engine, database.keys, pace=pace, on_progress=self)
        assert self.is_mended
        assert (report.rows, report.done) == (PATIENTS, True)
        return report


def test_it_waits_while_a_replica_lags(followed: Database, standby: Standby) -> None:
    """A replica that does not replay stops the rotation before long, and one that has caught up lets it go on."""
    Interrupted(
        lambda: standby.execute("SELECT pg_wal_replay_pause()"),
        lambda: standby.execute("SELECT pg_wal_replay_resume()"),
        f"paused: replica {NAME} is ",
    ).rotate(followed)


@pytest.mark.parametrize("lag", ["told", "untold"])
def test_it_waits_for_a_replica_that_has_fallen_silent(
    followed: Database, primary: EmbeddedPostgres, standby: Standby, lag: str
) -> None:
    """A connection that is open but answers no more tells its last lag for ever, or none: that is not taken for none."""
    with psycopg.connect(plain(standby.url)) as connection:
        receiver = connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
    assert receiver is not None

    def silence() -> None:
        os.kill(receiver[0], signal.SIGSTOP)

    if lag == "untold":
        # The server tells none of a replica that has had nothing to replay for a while.
        for _ in poll(PATIENCE_S):
            if admin(primary, "SELECT replay_lag FROM pg_stat_replication") == [(None,)]:
                break
            time.sleep(0.1)
        silence()
    try:
        Interrupted(silence, lambda: os.kill(receiver[0], signal.SIGCONT), f"paused: replica {NAME} is ").rotate(
            followed
        )
    finally:
        os.kill(receiver[0], signal.SIGCONT)


def test_it_waits_for_a_replica_that_is_cut_off(followed: Database, standby: Standby) -> None:
    """Nobody knows how far a replica is that is not connected, so the rotation waits until it is again."""
    Interrupted(standby.stop, standby.start, "paused: no replica is connected").rotate(followed)


def test_one_of_two_replicas_that_is_cut_off_is_missed(
    followed: Database, primary: EmbeddedPostgres, standby: Standby
) -> None:
    """That another one keeps up says nothing of the one that is gone."""
    with Standby(primary, "second") as second:
        Interrupted(second.stop, second.start, "paused: replica second is no longer connected").rotate(followed)


def test_it_waits_while_replicas_cannot_be_watched(
    followed: Database, primary: EmbeddedPostgres, standby: Standby
) -> None:
    """A look that fails is a lag, and never none."""
    name = followed.engine.url.database
    assert name is not None
    admin(primary, "CREATE ROLE rotator LOGIN PASSWORD 'x' IN ROLE pg_read_all_stats")
    admin(primary, "GRANT USAGE ON SCHEMA pgcrypto TO rotator", name)
    admin(primary, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO rotator", name)
    engine = create_engine(primary.url(name).set(username="rotator", password="x"))
    view = "SELECT ON pg_catalog.pg_stat_replication"
    try:
        Interrupted(
            lambda: admin(primary, f"REVOKE {view} FROM PUBLIC", name),
            lambda: admin(primary, f"GRANT {view} TO PUBLIC", name),
            "paused: replication cannot be watched (42501)",
        ).rotate(Database(engine, followed.keys.provider))
    finally:
        engine.dispose()
        admin(primary, "DROP OWNED BY rotator", name)


def test_a_slot_that_retains_too_much_is_waited_for(
    followed: Database, primary: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that nobody reads would fill the disk, with or without a limit of lag."""
    monkeypatch.setattr("voiceassist_db.rotation.throttle.MAX_SLOT_BYTES", 100_000)
    Interrupted(
        lambda: admin(primary, "SELECT pg_create_physical_replication_slot('forgotten', true)"),
        lambda: admin(primary, "SELECT pg_drop_replication_slot('forgotten')"),
        "paused: replication slot forgotten retains",
    ).rotate(followed, Pace(max_rows_per_second=250))


def test_the_proof_waits_for_no_replica(followed: Database, primary: EmbeddedPostgres, standby: Standby) -> None:
    """It only reads: however far behind a replica is by then, waiting would not help it."""
    phases: list[str] = []

    def watch(now: Progress) -> None:
        if now.phase == "verifying":
            if now.phase not in phases:
                standby.execute("SELECT pg_wal_replay_pause()")
                admin(primary, "SELECT pg_logical_emit_message(false, 'test', 'not replayed')")
            assert "paused" not in now.note
        phases.append(now.phase)

    try:
        report = rotate(followed.engine, followed.keys, pace=PACE, on_progress=watch)
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")
    assert (report.done, "verifying" in phases) == (True, True)


def refused(database: Database, why: str) -> None:
    """Look that a plan and a rotation with a limit of lag are refused, and have changed nothing."""
    stored = database.keys.provider.fetch()
    for refuse in (plan, rotate):
        with pytest.raises(RotationError, match=why):
            refuse(database.engine, database.keys, pace=PACE)
    assert stored == database.keys.provider.fetch()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM key_rotations")).scalar_one() == 0
        assert connection.execute(text("SELECT max(version) FROM encryption_keys")).scalar_one() == 1


def test_a_limit_without_any_replica_is_refused(database: Database) -> None:
    """A lag that nobody has cannot be kept small, so that the limit is a mistake."""
    refused(database, "no replica is connected")


def test_a_role_that_may_not_see_lag_is_refused(
    followed: Database, primary: EmbeddedPostgres, standby: Standby
) -> None:
    """To an ordinary role the server shows that a replica is there, and nothing of it."""
    name = followed.engine.url.database
    assert name is not None
    admin(primary, "CREATE ROLE blind LOGIN PASSWORD 'x' IN ROLE pg_write_all_data, pg_read_all_data")
    engine = create_engine(primary.url(name).set(username="blind", password="x"))
    try:
        refused(Database(engine, followed.keys.provider), "GRANT pg_read_all_stats")
    finally:
        engine.dispose()


@pytest.fixture
def replayed(primary: EmbeddedPostgres, standby: Standby) -> Callable[[], None]:
    """A function that waits until the replica has all that the server has."""

    def wait() -> None:
        ((place,),) = admin(primary, "SELECT pg_current_wal_lsn()")
        with psycopg.connect(plain(standby.url), autocommit=True) as connection:
            for _ in poll(PATIENCE_S):
                if connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [place]).fetchone() == (True,):
                    return
        raise AssertionError("the replica is behind")

    return wait


@pytest.mark.parametrize("has_keys", [True, False], ids=["with keys", "without a key"])
def test_a_standby_is_told_apart_before_anything_is_written(
    primary: EmbeddedPostgres,
    standby: Standby,
    replayed: Callable[[], None],
    new_provider: Callable[..., VaultKeyProvider],
    vault: VaultServer,
    vault_path: str,
    run: Run,
    tmp_path: Path,
    *,
    has_keys: bool,
) -> None:
    """Every command that writes says that it met a standby, and where to go. The key store is as it was, and readers work."""
    name, provider = f"followed_{secrets.token_hex(4)}", new_provider()
    for setting, value in SETTINGS.items():
        admin(primary, f"ALTER ROLE postgres SET {setting} = {value}")
    admin(primary, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    file = tmp_path / "patients.csv"
    file.write_text("patient_id,name\nPT-X,Zoë\n")
    commands = [["init-keys"], ["init-keys", "--join"]]
    rotations: list[list[str]] = []
    if has_keys:
        engine = create_engine(primary.url(name))
        with engine.begin() as connection:
            initialise_keys(provider, connection)
        engine.dispose()
        # As one that an earlier version made, to which init-keys adds the list of databases.
        provider.replace(provider.fetch(), replace(provider.fetch(), databases=""))
        commands.append(["import", str(file)])
        rotations += [[], ["--dry-run"], ["--resume"], ["--index-key"], ["--retire", "--grace-days", "0"]]
    replayed()
    env = leading_to(standby.url.set(database=name), vault, vault_path)
    before = fetched(provider)
    refusals = [run(*options, env=env, command=rotate_command) for options in rotations]
    refusals += [run(*command, env=env) for command in commands]
    for done in refusals:
        assert re.fullmatch(
            r"error: this server is a standby, which accepts no writes( on \w+)? \(SQLSTATE 25006\): set DATABASE_URL to the primary "
            r"\(with several hosts, target_session_attrs=read-write\)\. Nothing was changed",
            done.error,
        )
    assert before == fetched(provider)
    assert run("status", env=env).code == 0


SLOT = "of_standby"


@pytest.fixture(params=["", SLOT])
def feeding(primary: EmbeddedPostgres, standby: Standby, request: pytest.FixtureRequest) -> Iterator[str]:
    """A standby that tells of its transactions, through a replication slot or without one; the name of the slot."""
    slot: str = request.param
    if slot:
        admin(primary, f"SELECT pg_create_physical_replication_slot('{slot}')")
    standby.execute(f"ALTER SYSTEM SET primary_slot_name = '{slot}'")
    standby.execute("ALTER SYSTEM SET hot_standby_feedback = on")
    standby.execute("SELECT pg_reload_conf()")
    yield slot
    for setting in ("primary_slot_name", "hot_standby_feedback"):  # not all: primary_conninfo is one of them
        standby.execute(f"ALTER SYSTEM RESET {setting}")
    standby.execute("SELECT pg_reload_conf()")
    if slot:
        for _ in poll(PATIENCE_S):
            if admin(primary, f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active"):
                break
        admin(primary, f"SELECT pg_drop_replication_slot('{slot}')")


HELD = """
SELECT 1 FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
WHERE r.state = 'streaming' AND coalesce(s.slot_name, '') = '{slot}' AND coalesce(s.xmin, r.backend_xmin) IS NOT NULL
"""


def test_a_transaction_of_a_standby_is_named(
    primary: EmbeddedPostgres, standby: Standby, followed: Database, feeding: str
) -> None:
    """It keeps dead rows here as one of this server does: the run waits for it, says who it is, and continues."""
    notes: set[str] = set()
    with psycopg.connect(plain(standby.url)) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        for _ in poll(PATIENCE_S):
            if held := admin(primary, HELD.format(slot=feeding)):
                break
        assert held
        pace = Pace(target_batch_s=0.01, patience_s=3.0)
        done = rotate(followed.engine, followed.keys, pace=pace, on_progress=lambda now: notes.add(now.note))
    assert done.done
    who = f"the standby of the replication slot {feeding}" if feeding else f"the standby {NAME} (pid "
    assert any(note.startswith(who) and "by hot_standby_feedback: pages cannot be" in note for note in notes), notes


@pytest.mark.long
def test_a_standby_that_tells_late_grows_no_table(followed: Database, feeding: str) -> None:
    """A pass waits until the standby has told that it does not see the rows of the pass before: once a second here."""
    with followed.engine.begin() as connection:
        connection.execute(text("DELETE FROM patient_data"))
        fill(connection, followed.keys.provider.fetch().key, rows=15_000)
    with followed.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM FULL patient_data"))
    report = rotate(followed.engine, followed.keys, pace=Pace(target_batch_s=0.2))
    print(f"slot {feeding or 'none'}: x{report.table_growth:.2f}, HOT {report.hot_ratio:.2f}")
    assert report.table_growth < 1.05
