"""A service of several processes lives through rotations, crashes of PostgreSQL and outages of Vault.

Every write that was acknowledged is there, and errors come only while a server is away.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import requests

from tests.cli.conftest import ROTATE
from tests.conftest import plain
from tests.durable import DurableServer, durable_server
from tests.rotation.conftest import until
from tests.service.process import is_whole
from voiceassist_db import Database, create_engine
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.schema import migrate
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

ROOT: Final = Path(__file__).parents[2]
KINDS: Final = ("threads", "tasks")
PATIENCE_S: Final = 300.0
"""After which something hangs, however busy the machine is."""

NEWEST: Final = "SELECT max(version) FROM encryption_keys"
GRACE_S: Final = 0.5
"""How long after a server is back an error may still come."""


@dataclass(frozen=True)
class Away:
    """A time without a server.

    Attributes:
        server: Which.
        how: What happened to it.
        began: When, of ``time.monotonic()``.
        back: When it first answered the control.
    """

    server: str
    how: str
    began: float
    back: float


@dataclass
class Child:
    """A process that works until its standard input ends, and leaves one JSON object in a file."""

    process: subprocess.Popen[str]
    file: Path

    def wait_for_an_error(self) -> None:
        """Wait until it got its first error."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "it got no error, and hangs"
        assert self.process.stdout.readline() == "an error\n"

    def stop(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def outcome(self) -> dict[str, Any]:
        """Let it end, and return what it left."""
        self.stop()
        assert self.process.wait(timeout=PATIENCE_S) == 0
        outcome: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return outcome


@dataclass
class Service:
    """The processes, the servers under them, and when these were taken away.

    Attributes:
        vault: The key store.
        server: The database.
        environment: Leads every process to both.
        directory: Where the processes leave their outcomes.
        stack: Ends the processes.
        pace_s: About how long a rotation takes, which is slowed down so that something can happen in its middle; and an outage of Vault.
        children: The processes of the service.
        replaced: Those that were told to end, with others in their places.
        taken: What was taken away, how and when.
        rotations: How many were brought to their end.
    """

    vault: EmbeddedOpenBao
    server: DurableServer
    environment: dict[str, str]
    directory: Path
    stack: ExitStack
    pace_s: float = 4.0
    children: list[Child] = field(default_factory=list)
    replaced: list[Child] = field(default_factory=list)
    taken: list[tuple[str, str, float]] = field(default_factory=list)
    rotations: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def child(self, module: str, *arguments: str) -> Child:
        """Start a process."""
        file = self.directory / f"{module}-{'-'.join(arguments)}.json"
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.service.{module}", *arguments, str(file)],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return Child(process, file)

    def begin(self) -> Child:
        """Begin one more process of the service, of threads and of tasks in turn."""
        number = next(self._numbers)
        made = self.child("process", str(number), KINDS[number % 2])
        self.children.append(made)
        return made

    def crash(self) -> None:
        """Kill PostgreSQL with signal 9 in the middle of a rotation, and start it again."""
        time.sleep(self.pace_s / 2)
        self.taken.append(("PostgreSQL", "killed", time.monotonic()))
        self.server.kill()
        self.server.start(synchronous_commit="on")

    def seal(self) -> None:
        """Seal Vault, and unseal it."""
        self.taken.append(("Vault", "sealed", time.monotonic()))
        self._call("sys/seal", {})
        with self._deployment():
            time.sleep(self.pace_s)
        self._call("sys/unseal", {"key": self.vault.unseal_key})
        until(self._is_unsealed, seconds=PATIENCE_S)

    def hang(self) -> None:
        """Stop Vault in its tracks: it takes connections and answers nothing."""
        self.taken.append(("Vault", "hung", time.monotonic()))
        os.kill(self.vault.pid, signal.SIGSTOP)
        try:
            with self._deployment():
                time.sleep(self.pace_s)
        finally:
            os.kill(self.vault.pid, signal.SIGCONT)
        until(self._is_unsealed, seconds=PATIENCE_S)

    @contextmanager
    def _deployment(self) -> Iterator[None]:
        """Replace a process, the new one of which has no keys yet and cannot get any."""
        self.begin().wait_for_an_error()
        self.replaced.append(self.children.pop(0))
        self.replaced[-1].stop()
        yield

    def _call(self, path: str, body: dict[str, str]) -> None:
        headers = {"X-Vault-Token": self.vault.root_token}
        requests.put(f"{self.vault.address}/v1/{path}", json=body, headers=headers, timeout=30).raise_for_status()

    def _is_unsealed(self) -> bool:
        headers = {"X-Vault-Token": self.vault.root_token}
        try:
            answer = requests.get(f"{self.vault.address}/v1/sys/mounts", headers=headers, timeout=30)
        except requests.RequestException:
            return False
        return bool(answer.status_code == requests.codes.ok)

    def rotate(self, happens: Callable[[], None]) -> None:
        """Rotate the key to its end, and retire the old one; something happens as soon as the new key is registered."""
        rows, newest = self.ask("SELECT (SELECT count(*) FROM patient_data), max(version) FROM encryption_keys")
        running = self._tool("--max-rows-per-second", str(max(300.0, rows / self.pace_s)))
        with psycopg.connect(self.environment["DATABASE_URL"], autocommit=True) as connection:
            registered = "SELECT FROM encryption_keys WHERE version > %s"
            until(lambda: connection.execute(registered, [newest]).fetchone() is not None, seconds=PATIENCE_S)
        happens()
        if running.wait(timeout=PATIENCE_S) != 0:
            until(lambda: self._tool("--resume").wait(timeout=PATIENCE_S) == 0, seconds=PATIENCE_S)
        until(lambda: self._tool("--retire", "--grace-days", "0").wait(timeout=PATIENCE_S) == 0, seconds=PATIENCE_S)
        self.rotations += 1

    def _tool(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*ROTATE, *arguments, "--json"],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def ask(self, query: str) -> tuple[Any, ...]:
        """Return the one row of a query."""
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return row


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Servers of its own, with a migrated database and registered keys."""
    with ExitStack() as stack:
        server = stack.enter_context(durable_server())
        vault = stack.enter_context(EmbeddedOpenBao())
        engine = create_engine(server.url())
        migrate(engine)
        with engine.begin() as connection:
            initialise_keys(VaultKeyProvider(vault.address, TokenLogin(vault.root_token)), connection)
        engine.dispose()
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": plain(server.url()),
            "VAULT_ADDR": vault.address,
            "VAULT_TOKEN": vault.root_token,
        }
        yield Service(vault, server, environment, tmp_path, stack)


Control = dict[str, list[tuple[float, float, bool]]]
"""By server, when the control asked it, when that ended, and whether it answered."""


def run(
    service: Service, number_of_processes: int, seconds: float, happenings: list[Callable[[], None]]
) -> tuple[list[dict[str, Any]], Control]:
    """Let the processes work, and have one thing after the other happen; return what the processes and the control tell."""
    control = service.child("control")
    for _ in range(number_of_processes):
        service.begin()
    started = time.monotonic()
    for number, happens in enumerate(happenings):
        time.sleep(max(0.0, started + seconds * number / len(happenings) - time.monotonic()) + 1.0)
        happens()
    time.sleep(max(1.0, started + seconds - time.monotonic()))
    for child in service.children:
        child.stop()
    return [child.outcome() for child in service.replaced + service.children], control.outcome()


def outages(service: Service, control: Control) -> list[Away]:
    """Return when the servers were away: from when they were taken until they answer the control again."""

    def back(server: str, began: float) -> float:
        failed = next(ended for asked, ended, is_answered in control[server] if asked >= began and not is_answered)
        return next(ended for asked, ended, is_answered in control[server] if asked >= failed and is_answered)

    return [Away(server, how, began, back(server, began)) for server, how, began in service.taken]


def late(outcome: dict[str, Any], away: list[Away]) -> list[str]:
    """Return the errors that came before a server was away, or more than the grace after it was back."""

    def is_due(failure: dict[str, Any]) -> bool:
        return any(each.began <= failure["ended"] <= each.back + GRACE_S for each in away)

    return [failure["what"] for failure in outcome["failures"] if not is_due(failure)]


def relapsed(outcome: dict[str, Any], away: list[Away]) -> list[str]:
    """Return the errors of transactions that began before a server was away, or after the process's first success once it was back.

    However busy the machine is, there are none.
    """

    def recovered(each: Away) -> float:
        return next((ended for began, ended in outcome["successes"] if began >= each.back), math.inf)

    times = [(each.began, recovered(each)) for each in away]

    def is_due(failure: dict[str, Any]) -> bool:
        return any(began <= failure["ended"] and failure["began"] <= end for began, end in times)

    return [failure["what"] for failure in outcome["failures"] if not is_due(failure)]


def missing(service: Service, outcomes: list[dict[str, Any]]) -> list[str]:
    """Return what is in the database otherwise than a process was told."""
    engine = create_engine(service.server.url())
    provider = VaultKeyProvider(service.vault.address, TokenLogin(service.vault.root_token))
    found: dict[str, str | None] = {}
    with Database(engine, provider) as database:
        with database.transaction() as tx:
            page = tx.patients.page(limit=5000)
            while page:
                assert [patient for patient in page if not is_whole(patient, patient.patient_id)] == []
                found |= {patient.patient_id: patient.name for patient in page}
                page = tx.patients.page(after=page[-1], limit=5000)
        assert [table.failures for table in verify(engine, database.keys) if table.failed] == []
    known = {patient_id: names for outcome in outcomes for patient_id, names in outcome["known"].items()}
    assert found.keys() <= known.keys()
    return [patient_id for patient_id, names in known.items() if found.get(patient_id) not in names]


def tell(outcomes: list[dict[str, Any]], control: Control, away: list[Away]) -> None:
    """Print the figures of a trial."""
    failures = [outcome["failures"] for outcome in outcomes]
    transactions = sum(len(outcome["successes"]) for outcome in outcomes)
    writes = sum(outcome["writes"] for outcome in outcomes)
    conflicts = sum(outcome["conflicts"] for outcome in outcomes)
    print(
        f"{transactions} transactions, {writes} rows written, {conflicts} tried again, {sum(map(len, failures))} errors"
    )
    ends = [each.began for each in away[1:]] + [math.inf]
    for each, end in zip(away, ends, strict=True):
        during = [[failure for failure in of if each.began <= failure["ended"] < end] for of in failures]
        kinds = dict(Counter(failure["what"].partition(":")[0] for of in during for failure in of))
        last = max((failure["ended"] - each.back for of in during for failure in of), default=-math.inf)
        print(
            f"{each.server}, {each.how}: away for {each.back - each.began:.2f} s, {kinds} in {sum(map(bool, during))} processes, "
            f"the last {last:+.3f} s after it was back"
        )
        for server, answers in control.items():
            after = [(ended, is_answered) for _, ended, is_answered in answers if each.back <= ended <= each.back + 1]
            gap = max((later - earlier for (earlier, _), (later, _) in itertools.pairwise(after)), default=math.inf)
            lost = sum(not is_answered for _, is_answered in after)
            print(f"  control of {server} in the second after: {lost} of {len(after)} lost, longest gap {gap:.3f} s")


def passed(
    service: Service, processes: int, seconds: float, happenings: list[Callable[[], None]]
) -> tuple[list[dict[str, Any]], list[Away]]:
    """Run a trial, and check all of it but when errors came; return what the processes tell, and when servers were away."""
    (before,) = service.ask(NEWEST)
    outcomes, control = run(service, processes, seconds, happenings)
    away = outages(service, control)
    tell(outcomes, control, away)
    assert [finding for outcome in outcomes for finding in outcome["findings"]] == []
    assert missing(service, outcomes) == []
    assert {outcome["held"] for outcome in outcomes} == {0}
    (newest,) = service.ask(NEWEST)
    assert newest == before + service.rotations
    assert service.ask("SELECT count(*) FROM encryption_keys WHERE state <> 'retired'") == (1,)
    return outcomes, away


@pytest.mark.parametrize(
    ("began", "ended", "is_late", "is_relapse"),
    [
        (9.0, 9.9, True, True),
        (9.0, 10.1, False, False),
        (19.0, 20.4, False, False),
        (20.2, 20.6, True, False),
        (20.4, 20.45, False, True),
        (40.0, 40.1, True, True),
    ],
)
def test_an_error_out_of_its_time_is_found(began: float, ended: float, *, is_late: bool, is_relapse: bool) -> None:
    """The trial itself can fail: a server was away from 10 to 20, and the first transaction that began later ended at 20.3."""
    successes = [[5.0, 5.1], [19.9, 20.1], [20.1, 20.3], [30.0, 30.1]]
    outcome = {"successes": successes, "failures": [{"began": began, "ended": ended, "what": "an error"}]}
    away = [Away("Vault", "sealed", 10.0, 20.0)]
    assert (is_late, is_relapse) == (bool(late(outcome, away)), bool(relapsed(outcome, away)))


def test_a_service_outlives_a_rotation_a_crash_and_an_outage(service: Service) -> None:
    """No acknowledged write is lost; after a server's outage, nothing fails any more once something succeeded.

    This looks in which order errors and successes came, and not how fast, so that a machine which is busy makes no difference.
    """
    service.pace_s = 0.5
    outcomes, away = passed(service, 2, 0.0, [lambda: service.rotate(service.crash), service.seal])
    assert [error for outcome in outcomes for error in relapsed(outcome, away)] == []
    assert all(outcome["successes"] for outcome in outcomes)


@pytest.mark.long
def test_a_service_lives_for_ten_minutes(service: Service) -> None:
    """No acknowledged write is lost; errors come while a server is away, and at most half a second after it is back."""
    during = (service.crash, service.seal, service.hang, service.crash, lambda: None)
    outcomes, away = passed(service, 4, 600.0, [partial(service.rotate, happens) for happens in during])
    assert [error for outcome in outcomes for error in late(outcome, away)] == []
    assert all(len(outcome["successes"]) > 1000 for outcome in outcomes)
