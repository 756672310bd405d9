"""Trials of a rotation: patients that it must carry over whole, its command as a process, and what must hold at any moment."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.cli.conftest import ROOT, ROTATE, TIMEOUT_S, Outcome, check, run
from voiceassist_db import Database, Patient
from voiceassist_db.keyring import KeyringSource, registered_keys
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import RotationReport, retire, rotate
from voiceassist_db.status import read_status

__all__ = ["check", "run"]

ROWS = 1200


class Trial:
    """A database with patients, the key store that opens it, and what must be found there whatever happens on the way.

    Args:
        engine: An engine on the database.
        provider: The key store, with keys that the database has registered.
        rows: How many patients to add.
    """

    def __init__(self, engine: Engine, provider: VaultKeyProvider, rows: int = ROWS) -> None:
        self.engine = engine
        self.provider = provider
        self.rows = rows
        with Database(engine, provider).transaction() as tx:
            tx.patients.add_many(
                Patient(
                    patient_id=f"PT-{n:05d}", ssn=f"9{n:08d}", name=f"Zoë\r\n{n}", address={"n": n} if n % 3 else None
                )
                for n in range(rows)
            )
        self._expected = self._everything()
        assert rows == len(self._expected)

    def _everything(self) -> dict[str, Patient]:
        with Database(self.engine, self.provider).transaction() as tx:
            return {each.patient_id: each for each in tx.patients.page(limit=2 * self.rows)}

    def ask(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or change something, in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(query), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    def versions(self) -> dict[int, int]:
        """Return how many patients there are under each key version."""
        return dict(map(tuple, self.ask("SELECT key_version, count(*) FROM patient_data GROUP BY 1")))

    def check(self) -> None:
        """Assert that no patient is lost, that each reads back as it was, and that key store and registry agree."""
        found = self._everything()
        lost = self._expected.keys() - found.keys()
        wrong = {each for each, patient in found.items() if patient != self._expected.get(each)}
        assert (set(), set()) == (lost, wrong)
        stored = self.provider.fetch().versions().keys()
        with self.engine.connect() as connection:
            live = {each.version for each in registered_keys(connection).values() if each.state != "retired"}
        assert live <= stored
        assert self.versions().keys() <= live

    def is_run_by(self, process: subprocess.Popen[str]) -> bool:
        """Say whether a process has the lease, or had it last."""
        return bool(self.ask("SELECT FROM key_rotations WHERE holder_name LIKE :name", name=f"%:{process.pid}"))

    def expire_lease(self) -> None:
        """Let the time of a lease pass."""
        self.ask("UPDATE key_rotations SET lease_until = clock_timestamp() WHERE lease_until IS NOT NULL")

    def is_complete(self) -> bool:
        """Say whether nothing is left to be done but to retire the previous key."""
        with self.engine.connect() as connection:
            runs = read_status(connection).rotations  # newest first
        newest = self.provider.fetch()
        return newest.previous_version is not None and (runs[0].to_version, runs[0].state) == (
            newest.version,
            "finished",
        )

    def finish(self) -> RotationReport:
        """Rotate, or finish the rotation, in this process, and assert that it is done."""
        report = rotate(self.engine, KeyringSource(self.provider))
        assert report.done
        self.check()
        assert {self.provider.fetch().version: self.rows} == self.versions()
        return report

    def retire(self) -> None:
        """Retire the previous key, so that another rotation may begin."""
        retire(self.engine, KeyringSource(self.provider), grace_days=0)


@pytest.fixture
def trial(engine: Engine, provider: VaultKeyProvider) -> Trial:
    """A trial in the test's own database and key store."""
    return Trial(engine, provider)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a rotation as a process; those that the test leaves are killed."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str, env: dict[str, str], command: list[str] = ROTATE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *arguments], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a process to end, and return what it left."""
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in stderr, stderr
    return Outcome(process.returncode, stdout, stderr)


def killed(process: subprocess.Popen[str]) -> bool:
    """Kill -9 a process, and say whether it was still running."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def chance() -> random.Random:
    """Return a source of random points, whose seed a failure shows."""
    seed = secrets.randbelow(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)  # noqa: S311  # nothing here is a secret


def until(condition: Callable[[], object], *, seconds: float = 300) -> None:
    """Wait for a condition; after so long it is taken for one that never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
