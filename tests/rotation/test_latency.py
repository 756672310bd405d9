"""What an application notices of a throttled rotation: the slowest of its reads and writes, with it and without, in turns."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from statistics import median, quantiles
from typing import Final

import pytest
from sqlalchemy import Engine, text

from tests.cli.conftest import ROTATE
from tests.rotation.patients import fill
from voiceassist_db import Database
from voiceassist_db.providers.vault import VaultKeyProvider

ROWS: Final = 150_000
ROWS_PER_SECOND: Final = 1000
ROUNDS: Final = 11
PHASE_S: Final = 3.0
INTERRUPTED: Final = 6
"""The command's exit code where it was asked to stop."""


def rotated(engine: Engine) -> int:
    """Return how many rows are under the new key."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM patient_data WHERE key_version = 2")).scalar_one())


@contextmanager
def rotating(engine: Engine, environment: dict[str, str]) -> Iterator[None]:
    """Run a throttled rotation beside, in a process of its own; it is at work when this returns, and interrupted at the end."""
    before = rotated(engine)
    throttled = [*ROTATE, f"--max-rows-per-second={ROWS_PER_SECOND}"]
    with subprocess.Popen(throttled, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while rotated(engine) < before + ROWS_PER_SECOND / 2:
            assert process.poll() is None
            time.sleep(0.1)
        started, done = time.monotonic(), rotated(engine)
        yield
        rate = (rotated(engine) - done) / (time.monotonic() - started)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == INTERRUPTED
    assert 0.5 * ROWS_PER_SECOND < rate < 1.2 * ROWS_PER_SECOND


def p99_ms(database: Database, random: Random) -> dict[str, float]:
    """Read and write single rows for the time of a phase; return the 99th percentile of each, in milliseconds."""

    def read(patient_id: str) -> None:
        with database.transaction() as tx:
            tx.patients.get(patient_id)

    def write(patient_id: str) -> None:
        with database.transaction() as tx:
            tx.patients.update(patient_id, name=f"Zoë {patient_id}", address={"street": patient_id})

    ways: dict[str, Callable[[str], None]] = {"read": read, "write": write}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    until = time.monotonic() + PHASE_S
    while time.monotonic() < until:
        for name, way in ways.items():
            patient_id = f"PT-{random.randint(1, ROWS)}"
            started = time.perf_counter()
            way(patient_id)
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: quantiles(values, n=100)[-1] for name, values in taken.items()}


@pytest.mark.long
def test_an_application_hardly_notices_a_throttled_rotation(
    database: Database, provider: VaultKeyProvider, environment: dict[str, str]
) -> None:
    """The 99th percentile of single-row reads and writes is at most 1.5 times that without, in the median of pairs of phases.

    Of pairs, side by side, because the machine's own pace drifts by more than what is measured.
    """
    random = Random(1)  # noqa: S311  # to be repeated, not to be secret
    with database.engine.begin() as connection:
        fill(connection, provider.fetch().key, rows=ROWS)
    p99_ms(database, random)
    beside: list[dict[str, float]] = []
    alone: list[dict[str, float]] = []
    for round_ in range(ROUNDS):
        if round_ % 2:
            alone.append(p99_ms(database, random))
        with rotating(database.engine, environment):
            beside.append(p99_ms(database, random))
        if not round_ % 2:
            alone.append(p99_ms(database, random))
    ratios = {}
    for way in ("read", "write"):
        without, with_ = (median(each[way] for each in phases) for phases in (alone, beside))
        ratios[way] = median(each[way] / other[way] for each, other in zip(beside, alone, strict=True))
        print(f"p99 of a {way}: {without:.2f} ms alone, {with_:.2f} ms beside, x{ratios[way]:.2f}")
    assert max(ratios.values()) <= 1.5, ratios
