"""A database that hangs up, cancels, or does not say whether it committed: a rotation converges, and counts no row twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import URL, Engine

from tests.conftest import plain
from tests.rotation.conftest import Trial, chance
from tests.rotation.proxy import Point, Proxy, proxied
from voiceassist_db import create_engine
from voiceassist_db.errors import DatabaseError, DatabaseUnavailableError
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, lease, rotate

TRANSACTIONS = {
    "the lease": b"INSERT INTO key_rotations",
    "the registry": b"INSERT INTO encryption_keys",
    "the batch": b"UPDATE patient_data",
    "the sweep": b"SELECT ctid, patient_data.id",
    "the proof": b"count(*) FILTER (WHERE NOT",
    "the result": b"finished_at=",
}
"""The transactions of a run, each by words of one of its statements."""

READ_ONLY = ("the sweep", "the proof")

ROWS = 300
SLOW = Pace(max_rows_per_second=ROWS)
MANY = 10_000
"""More messages than a run sends."""


@pytest.fixture
def trial(engine: Engine, provider: VaultKeyProvider) -> Trial:
    """A small trial: these failures do not depend on the number of rows."""
    return Trial(engine, provider, ROWS)


@pytest.fixture
def proxy(database_url: URL) -> Iterator[Proxy]:
    """A proxy to the test's server."""
    assert database_url.host
    with proxied(database_url.host, database_url.port or 5432) as made:
        yield made


@pytest.fixture
def proxied_engine(proxy: Proxy, database_url: URL) -> Iterator[Engine]:
    """An engine on the test's database, through the proxy."""
    url = database_url.set(host="127.0.0.1", port=proxy.port).update_query_dict({"sslmode": "disable"})
    engine = create_engine(url)
    yield engine
    engine.dispose()


def run(trial: Trial, engine: Engine) -> tuple[int, DatabaseError | None]:
    """Rotate through a bad connection, and finish through a good one where that failed.

    Returns:
        Rows that the first run counted, and how it failed.
    """
    failure: DatabaseError | None = None
    rows = 0
    try:
        report = rotate(engine, KeyringSource(trial.provider))
    except DatabaseError as error:
        failure = error
        trial.expire_lease()  # as a process that has ended leaves it; this one has not
        trial.check()
        if not trial.is_complete():
            trial.finish()
    else:
        assert (True, 0) == (report.done, report.remaining)
        rows = report.rows
    trial.check()
    assert trial.is_complete()
    assert {trial.provider.fetch().version: trial.rows} == trial.versions()
    ((counted,),) = trial.ask("SELECT rows FROM key_rotations ORDER BY id DESC LIMIT 1")
    assert max(rows, counted) <= trial.rows
    return rows, failure


@pytest.mark.parametrize("is_done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize(
    "of",
    [
        "the lease",
        "the registry",
        "the batch",
        *(pytest.param(each, marks=pytest.mark.wide) for each in READ_ONLY),
        "the result",
    ],
)
def test_a_commit_without_an_answer_is_tried_again(
    trial: Trial, proxy: Proxy, proxied_engine: Engine, of: str, is_done: bool
) -> None:
    """Whether the server did it or never got it, the run goes on; at the lease, before anything is changed, it says so."""
    proxy.point = Point(b"COMMIT", after=TRANSACTIONS[of], is_forwarded=is_done)
    rows, failure = run(trial, proxied_engine)
    assert proxy.point.is_past
    if of == "the lease":
        assert isinstance(failure, DatabaseUnavailableError)
        assert "was lost in the middle of the work" in str(failure)
    else:
        assert failure is None
        # Rows whose commit nobody acknowledged are not claimed.
        assert (rows < trial.rows) == (of == "the batch" and is_done)


def test_a_batch_that_the_server_gave_up_is_done_again(
    trial: Trial, proxy: Proxy, proxied_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stands still in the midst of a batch loses its connection, and not its run."""
    assert "'15s'" in lease._FENCE.sql
    monkeypatch.setattr(lease._FENCE, "_query", lease._FENCE.sql.replace("'15s'", "'100ms'").encode())
    proxy.point = Point(b"COMMIT", after=TRANSACTIONS["the batch"], happens=lambda: time.sleep(0.5))
    assert (trial.rows, None) == run(trial, proxied_engine)
    assert proxy.point.is_past


@pytest.mark.long
@pytest.mark.parametrize("is_done", [False, True], ids=["undone", "done"])
def test_every_message_may_be_the_last(
    trial: Trial, proxy: Proxy, database_url: URL, proxied_engine: Engine, is_done: bool
) -> None:
    """Cut at the first message that the tool ever sends, at the second, and so on to the last one."""
    failures = 0
    for number in range(MANY):
        proxy.point = Point(skipped=number, is_forwarded=is_done)
        proxied_engine.dispose()
        _, failure = run(trial, proxied_engine)
        failures += failure is not None
        trial.retire()
        if not proxy.point.is_past:
            print(f"{number} messages, {failures} runs failed and were run again")
            return
    pytest.fail("the run sent no last message")


@pytest.mark.parametrize("does", ["pg_terminate_backend", "pg_cancel_backend"])
def test_backends_are_ended_and_statements_cancelled_at_random(
    trial: Trial, engine: Engine, database_url: URL, does: str
) -> None:
    """An administrator, or a failover, does it all the time: the run gets through, or the next one does."""
    dice = chance()
    disturb = f"SELECT count({does}(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    over = threading.Event()
    disturbed = 0

    def disturb_at_random() -> None:
        nonlocal disturbed
        with psycopg.connect(plain(database_url), autocommit=True) as connection:
            for _ in range(15):
                if over.wait(dice.uniform(0.01, 0.1)):
                    return
                disturbed += (connection.execute(disturb).fetchone() or (0,))[0]

    disturber = threading.Thread(target=disturb_at_random)
    disturber.start()
    try:
        report = None
        while report is None:
            try:
                report = rotate(engine, KeyringSource(trial.provider), pace=SLOW)
            except DatabaseError as error:
                print(f"run again after {type(error).__name__}: {error}")
                disturber.join()
                trial.expire_lease()
    finally:
        over.set()
        disturber.join()
    assert disturbed > 0
    assert report.done
    trial.check()
    assert {2: trial.rows} == trial.versions()
