"""A service of several processes lives through rotations, crashes of PostgreSQL and outages of Vault.

Every write that was acknowledged is there, and errors come only while a server is away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import requests

from tests.cli.conftest import ROTATE
from tests.conftest import plain
from tests.durable import DurableServer, durable_server
from tests.rotation.conftest import until
from voiceassist_db import Database, create_engine
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.keyring import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.schema import migrate
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

ROOT: Final = Path(__file__).parents[2]
KINDS: Final = ("threads", "tasks")


@dataclass
class Service:
    """The processes, the servers under them, and when these were away.

    Attributes:
        vault: The key store.
        server: The database.
        environment: Leads every process to both.
        pace_s: About how long a rotation takes, which is slowed down so that something can happen in its middle; and an outage of Vault.
        away: What was away, from when to when, as of ``time.monotonic()``.
    """

    vault: EmbeddedOpenBao
    server: DurableServer
    environment: dict[str, str]
    pace_s: float = 4.0
    away: list[tuple[str, float, float]] = field(default_factory=list)

    @contextmanager
    def without(self, what: str, is_back: Callable[[], bool]) -> Iterator[None]:
        """Note that a server is away in the block, and after it until it answers."""
        began = time.monotonic()
        yield
        until(is_back, seconds=60)
        self.away.append((what, began, time.monotonic()))

    def crash(self) -> None:
        """Kill PostgreSQL with signal 9, and start it again."""
        with self.without("PostgreSQL", self._answers):
            self.server.kill()
            self.server.start(synchronous_commit="on")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.environment["DATABASE_URL"]).close()
        except psycopg.OperationalError:
            return False
        return True

    def seal(self) -> None:
        """Seal Vault, and unseal it."""
        with self.without("Vault, sealed", self._is_unsealed):
            self._call("sys/seal", {})
            time.sleep(self.pace_s)
            self._call("sys/unseal", {"key": self.vault.unseal_key})

    def hang(self) -> None:
        """Stop Vault in its tracks: it takes connections and answers nothing."""
        with self.without("Vault, hung", self._is_unsealed):
            os.kill(self.vault.pid, signal.SIGSTOP)
            time.sleep(self.pace_s)
            os.kill(self.vault.pid, signal.SIGCONT)

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

    def rotate(self, happens: Callable[[], None] | None) -> None:
        """Rotate the key to its end, and retire the old one; something may happen in the middle."""
        rows = self._count()
        slowly = ("--max-rows-per-second", str(max(100.0, rows / self.pace_s)), "--json")
        process = self._tool(*slowly)
        if happens is not None:
            time.sleep(self.pace_s / 2)
            happens()
        until(lambda: self._is_done(process), seconds=300)

    def _is_done(self, process: subprocess.Popen[str]) -> bool:
        code = process.wait(timeout=300)
        while code != 0:
            code = self._tool("--json").wait(timeout=300)
        return self._tool("--retire", "--grace-days", "0", "--json").wait(timeout=300) == 0

    def _tool(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ROTATE, *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _count(self) -> int:
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            row = connection.execute("SELECT count(*) FROM patient_data").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture
def service() -> Iterator[Service]:
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
        yield Service(vault, server, environment)


def run(
    service: Service, number_of_processes: int, seconds: float, happenings: list[Callable[[], None] | None]
) -> list[dict[str, Any]]:
    """Let the processes work, and rotate once for each happening; return what the processes tell."""
    command = [sys.executable, "-m", "tests.service.process"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(number), KINDS[number % 2]],
                    env=service.environment,
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(number_of_processes)
        ]
        started = time.monotonic()
        for number, happens in enumerate(happenings):
            time.sleep(max(0.0, started + seconds * number / len(happenings) - time.monotonic()) + 1.0)
            service.rotate(happens)
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        return [json.loads(each.communicate(timeout=300)[0]) for each in processes]


def lasting(
    failures: list[dict[str, Any]], away: list[tuple[str, float, float]], moment: str, grace_s: float
) -> list[str]:
    """Return the errors whose moment, ``began`` or ``ended``, was later than so many seconds after a server was back, or before it was away."""

    def is_due(failure: dict[str, Any]) -> bool:
        return any(began <= failure["ended"] and failure[moment] <= back + grace_s for _, began, back in away)

    return [each["what"] for each in failures if not is_due(each)]


def missing(service: Service, outcomes: list[dict[str, Any]]) -> list[str]:
    """Return what is in the database otherwise than a process was told."""
    engine = create_engine(service.server.url())
    provider = VaultKeyProvider(service.vault.address, TokenLogin(service.vault.root_token))
    found: dict[str, str | None] = {}
    with Database(engine, provider) as database:
        with database.transaction() as tx:
            page = tx.patients.page(limit=5000)
            while page:
                found |= {each.patient_id: each.name for each in page}
                page = tx.patients.page(after=page[-1], limit=5000)
        assert [each.failures for each in verify(engine, database.keys) if each.failed] == []
    known = {patient_id: names for each in outcomes for patient_id, names in each["known"].items()}
    assert found.keys() <= known.keys()
    return [patient_id for patient_id, names in known.items() if found.get(patient_id) not in names]


@pytest.mark.parametrize(
    ("processes", "seconds", "pace_s", "happenings", "moment", "grace_s"),
    [
        (2, 4.0, 0.5, ("crash", "hang"), "began", 5.0),
        pytest.param(4, 600.0, 4.0, ("crash", "seal", "hang", "crash", None), "ended", 0.5, marks=pytest.mark.long),
    ],
)
def test_a_service_outlives_rotations_crashes_and_outages(
    service: Service,
    processes: int,
    seconds: float,
    pace_s: float,
    happenings: tuple[str | None, ...],
    moment: str,
    grace_s: float,
) -> None:
    """No acknowledged write is lost; errors come while a server is away, and only then.

    The long form, for a quiet machine, looks when an error came; the short one looks when what failed began, so that a machine which is
    busy makes no difference.
    """
    service.pace_s = pace_s
    outcomes = run(service, processes, seconds, [getattr(service, name) if name else None for name in happenings])
    failures = [failure for each in outcomes for failure in each["failures"]]
    kinds = Counter(each["what"].partition(":")[0] for each in failures)
    transactions = sum(each["transactions"] for each in outcomes)
    conflicts = sum(each["conflicts"] for each in outcomes)
    print(f"{transactions} transactions, {conflicts} tried again, errors: {dict(kinds)}")
    for what, began, back in service.away:
        after = [each["ended"] - back for each in failures if began <= each["ended"] <= back + 60]
        last = f"last of {len(after)} errors {max(after, default=0.0):+.2f} s after it was back"
        print(f"{what}: away for {back - began:.1f} s, {last}")
    assert [finding for each in outcomes for finding in each["findings"]] == []
    assert missing(service, outcomes) == []
    assert lasting(failures, service.away, moment, grace_s) == []
    assert all(each["transactions"] > 100 for each in outcomes)
