"""One process of the service: threads or tasks that write and read patients of their own, and remember what was acknowledged.

It prints one JSON object when its standard input ends: the patients as they must be, and the errors that it got. Times are of
``time.monotonic()``, which all processes of a machine share.
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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from voiceassist_db import AsyncDatabase, Database, Patient
from voiceassist_db.database import Repositories
from voiceassist_db.errors import NotFoundError, TransactionConflictError, VoiceAssistDBError

WORKERS: Final = 4
"""Threads or tasks; a pool has five connections."""

MANY: Final = 50
"""Patients of a worker from which on it seldom adds more."""

MAX_PAUSE_S: Final = 0.02
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
        failures: The errors that it got.
        findings: What was read and must not be.
        transactions: How many were acknowledged.
        conflicts: How many were tried again, because their error said so.
    """

    name: str
    known: dict[str, list[str | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    transactions: int = 0
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
            self.transactions += 1
        except VoiceAssistDBError as error:
            if isinstance(error, TransactionConflictError) and attempt < RETRIES:
                self.conflicts += 1
                raise
            self.failures.append(Failure(began, time.monotonic(), f"{type(error).__name__}: {error}"))

    def pause(self) -> float:
        """Return the seconds until the next transaction."""
        return self.random.uniform(0.0, MAX_PAUSE_S)

    def add(self) -> Step:
        """Add a patient; until it is acknowledged, it may be there or not."""
        patient = self._new()
        return Step(lambda tx: tx.patients.add(patient), lambda _: self._is_acknowledged([patient]))

    def add_many(self) -> Step:
        """Add some patients at once."""
        patients = [self._new() for _ in range(5)]
        return Step(lambda tx: tx.patients.add_many(patients), lambda _: self._is_acknowledged(patients))

    def change(self) -> Step:
        """Change a patient's name."""
        patient_id = self._chosen()
        if None in self.known[patient_id]:
            return self.read()  # nobody knows yet whether it is there
        name = f"Name {self.random.getrandbits(64):x}"
        self.known[patient_id].append(name)
        changed = {"name": name, "address": {"of": patient_id, "named": name}}
        return Step(
            lambda tx: tx.patients.update(patient_id, **changed), lambda _: self.known.update({patient_id: [name]})
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

    def _is_acknowledged(self, patients: list[Patient]) -> None:
        self.known |= {each.patient_id: [each.name] for each in patients}

    def _chosen(self) -> str:
        return self.random.choice(list(self.known))

    def _look(self, patient_id: str, found: Patient | None) -> None:
        """Compare what was read with what may be there, of which it then is the only one."""
        name = None if found is None else found.name
        is_right = found is None or (found.patient_id == patient_id and (found.address or {}).get("of") == patient_id)
        if name not in self.known[patient_id] or not is_right:
            self.findings.append(f"{patient_id} is {name!r}, and may be {self.known[patient_id]}")
        else:
            self.known[patient_id] = [name]


def work_in_thread(worker: Worker, database: Database, stop: threading.Event) -> None:
    """Do one thing after the other."""
    while not stop.is_set():
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
    while not stop.is_set():
        step = worker.next()
        for attempt in range(RETRIES + 1):
            with suppress(TransactionConflictError):
                with worker.noting(attempt):
                    async with database.transaction() as tx:
                        result = await tx.run(step.work)
                    step.done(result)
                break
        await asyncio.sleep(worker.pause())


def work_in_threads(workers: list[Worker], stop: threading.Event) -> None:
    """Let each worker have a thread, until they are told to stop."""
    with Database.from_env() as database:
        threads = [threading.Thread(target=work_in_thread, args=(each, database, stop)) for each in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def work_in_tasks(workers: list[Worker], stop: threading.Event) -> None:
    """Let each worker have a task, until they are told to stop."""
    async with AsyncDatabase.from_env() as database, asyncio.TaskGroup() as tasks:
        for each in workers:
            tasks.create_task(work_in_task(each, database, stop))


def main(number: str, kind: str) -> None:
    """Work until standard input ends."""
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    workers = [Worker(f"S{number}-{each}") for each in range(WORKERS)]
    if kind == "threads":
        work_in_threads(workers, stop)
    else:
        asyncio.run(work_in_tasks(workers, stop))
    outcome = {
        "known": {patient_id: names for each in workers for patient_id, names in each.known.items()},
        "failures": [asdict(failure) for each in workers for failure in each.failures],
        "findings": [finding for each in workers for finding in each.findings],
        "transactions": sum(each.transactions for each in workers),
        "conflicts": sum(each.conflicts for each in workers),
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
