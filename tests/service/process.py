"""One process of the service: threads or tasks that write and read patients of their own, and remember what was acknowledged.

It prints a line at its first error. When its standard input ends, it writes one JSON object to a file: the patients as they must
be, and the errors that it got. Times are of ``time.monotonic()``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Pool, QueuePool

from voiceassist_db import AsyncDatabase, Database, Patient
from voiceassist_db.database import Repositories
from voiceassist_db.errors import NotFoundError, TransactionConflictError, VoiceAssistDBError

WORKERS: Final = 4
"""Threads or tasks; a pool has five connections."""

MANY: Final = 50
"""Patients of a worker from which on it seldom adds more."""

MAX_PAUSE_S: Final = 0.1
RETRIES: Final = 3
"""How often a transaction is tried again whose error says so."""


@dataclass
class Failure:
    """An error that a thread got.

    Attributes:
        began: When its transaction began.
        ended: When it came.
        what: Its class and message.
    """

    began: float
    ended: float
    what: str


@dataclass
class Step:
    """One transaction.

    Attributes:
        work: What is done in it.
        done: What is known once its result is acknowledged.
    """

    work: Callable[[Repositories], Any]
    done: Callable[[Any], object]


@dataclass
class Worker:
    """One thread or task.

    Attributes:
        name: What its patients' ids begin with.
        known: By id, the names that the patient may have: the one that was acknowledged, then those whose COMMIT failed.
        successes: When each acknowledged transaction began and ended.
        failures: The errors that it got.
        findings: What was read and must not be.
        writes: How many rows were written in acknowledged transactions.
        is_well: Whether its last transaction was acknowledged.
        conflicts: How many were tried again, because their error said so.
    """

    name: str
    known: dict[str, list[str | None]] = field(default_factory=dict)
    successes: list[tuple[float, float]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    writes: int = 0
    is_well: bool = False
    conflicts: int = 0

    def __post_init__(self) -> None:
        """Make its own randomness."""
        self.random = random.Random(self.name)  # noqa: S311  # to be repeated, not to be secret

    def next(self) -> Step:
        """Return what it does next."""
        if len(self.known) < MANY or self.random.random() < 1 / MANY:
            return self.random.choice([self.add, self.add_many])()
        return self.random.choice([self.change, self.change, self.read, self.read, self.read_many, self.find])()

    @contextmanager
    def noting(self, attempt: int) -> Iterator[None]:
        """Note how a transaction ends."""
        began = time.monotonic()
        try:
            yield
            self.is_well = True
            self.successes.append((began, time.monotonic()))
        except VoiceAssistDBError as error:
            if isinstance(error, TransactionConflictError) and attempt < RETRIES:
                self.conflicts += 1
                raise
            self.is_well = False
            self.failures.append(Failure(began, time.monotonic(), f"{type(error).__name__}: {error}"))

    def pause(self) -> float:
        """Return the seconds until the next transaction."""
        return self.random.uniform(0.0, MAX_PAUSE_S)

    def add(self) -> Step:
        """Add a patient; until it is acknowledged, it may be there or not."""
        patient = self._new()
        return Step(
            lambda tx: tx.patients.add(patient), lambda _: self._is_acknowledged({patient.patient_id: patient.name})
        )

    def add_many(self) -> Step:
        """Add some patients at once."""
        patients = [self._new() for _ in range(5)]
        names = {patient.patient_id: patient.name for patient in patients}
        return Step(lambda tx: tx.patients.add_many(patients), lambda _: self._is_acknowledged(names))

    def change(self) -> Step:
        """Change a patient's name."""
        patient_id = self._chosen()
        if None in self.known[patient_id]:
            return self.read()  # nobody knows yet whether it is there
        name = f"Name {self.random.getrandbits(64):x}"
        self.known[patient_id].append(name)
        changed = {"name": name, "address": {"of": patient_id, "named": name}}
        return Step(
            lambda tx: tx.patients.update(patient_id, **changed), lambda _: self._is_acknowledged({patient_id: name})
        )

    def read(self) -> Step:
        """Read a patient by its id."""
        patient_id = self._chosen()

        def work(tx: Repositories) -> Patient | None:
            try:
                return tx.patients.get(patient_id)
            except NotFoundError:
                return None

        return Step(work, lambda found: self._look(patient_id, found))

    def read_many(self) -> Step:
        """Read some patients at once."""
        ids = sorted({self._chosen() for _ in range(10)})
        return Step(
            lambda tx: tx.patients.get_many(ids),
            lambda found: deque(map(self._look, ids, map(found.get, ids)), maxlen=0),
        )

    def find(self) -> Step:
        """Search a patient by its record number."""
        patient_id = self._chosen()
        return Step(lambda tx: tx.patients.find_by_mrn(f"M-{patient_id}"), lambda found: self._look(patient_id, found))

    def _new(self) -> Patient:
        patient_id, name = f"{self.name}-{len(self.known)}", f"Name {len(self.known)}"
        self.known[patient_id] = [None, name]
        return Patient(patient_id=patient_id, mrn=f"M-{patient_id}", name=name, address={"of": patient_id})

    def _is_acknowledged(self, names: dict[str, str | None]) -> None:
        self.known |= {patient_id: [name] for patient_id, name in names.items()}
        self.writes += len(names)

    def _chosen(self) -> str:
        return self.random.choice(list(self.known))

    def _look(self, patient_id: str, found: Patient | None) -> None:
        """Compare what was read with what may be there, of which it then is the only one."""
        name = None if found is None else found.name
        if name not in self.known[patient_id] or (found is not None and not is_whole(found, patient_id)):
            self.findings.append(f"{patient_id} is {name!r}, and may be {self.known[patient_id]}")
        else:
            self.known[patient_id] = [name]


def is_whole(patient: Patient, patient_id: str) -> bool:
    """Say whether the fields of a patient are of this id, and of one and the same write."""
    address = patient.address or {}
    return (patient.patient_id, address.get("of"), patient.mrn, address.get("named", patient.name)) == (
        patient_id,
        patient_id,
        f"M-{patient_id}",
        patient.name,
    )


def work_in_thread(worker: Worker, database: Database, stop: threading.Event) -> None:
    """Do one thing after the other, until the stop, and then until one succeeds."""
    while not (stop.is_set() and worker.is_well):
        step = worker.next()
        for attempt in range(RETRIES + 1):
            with suppress(TransactionConflictError):
                with worker.noting(attempt):
                    with database.transaction() as tx:
                        result = step.work(tx)
                    step.done(result)
                break
        time.sleep(worker.pause())


async def work_in_task(worker: Worker, database: AsyncDatabase, stop: threading.Event) -> None:
    """Do the same on an event loop."""
    while not (stop.is_set() and worker.is_well):
        step = worker.next()
        for attempt in range(RETRIES + 1):
            with suppress(TransactionConflictError):
                with worker.noting(attempt):
                    async with database.transaction() as tx:
                        result = await tx.run(step.work)
                    step.done(result)
                break
        await asyncio.sleep(worker.pause())


def work_in_threads(workers: list[Worker], stop: threading.Event) -> int:
    """Let each worker have a thread, until they are told to stop; return how many connections are then in use."""
    with Database.from_env() as database:
        with ThreadPoolExecutor(len(workers)) as threads:
            ends = [threads.submit(work_in_thread, worker, database, stop) for worker in workers]
        for end in ends:
            end.result()
        return in_use(database.engine.pool)


async def work_in_tasks(workers: list[Worker], stop: threading.Event) -> int:
    """Let each worker have a task, until they are told to stop; return how many connections are then in use."""
    async with AsyncDatabase.from_env() as database:
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(work_in_task(worker, database, stop))
        return in_use(database.engine.pool)


def in_use(pool: Pool) -> int:
    """Return how many connections a pool has handed out."""
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


def announce_first_failure(workers: list[Worker], stop: threading.Event) -> None:
    """Print a line once a worker got an error."""
    while not any(worker.failures for worker in workers):
        if stop.wait(0.02):
            return
    print("an error", flush=True)


def main(number: str, kind: str, file: str) -> None:
    """Work until standard input ends."""
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    workers = [Worker(f"S{number}-{each}") for each in range(WORKERS)]
    threading.Thread(target=listen, daemon=True).start()
    threading.Thread(target=announce_first_failure, args=(workers, stop), daemon=True).start()
    held = work_in_threads(workers, stop) if kind == "threads" else asyncio.run(work_in_tasks(workers, stop))
    outcome = {
        "known": {patient_id: names for worker in workers for patient_id, names in worker.known.items()},
        "successes": sorted(success for worker in workers for success in worker.successes),
        "failures": [asdict(failure) for worker in workers for failure in worker.failures],
        "findings": [finding for worker in workers for finding in worker.findings],
        "writes": sum(worker.writes for worker in workers),
        "conflicts": sum(worker.conflicts for worker in workers),
        "held": held,
    }
    Path(file).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
