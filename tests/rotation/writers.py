"""A trial of the rotation: writers who remember what they wrote, beside one rotation after the other.

Each writer is a process of an application as far as a thread can be one: with a database, connections and keys of its own, and
a memory of all that it was told is committed. ``test_writers`` proves that the trial finds what is broken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from random import Random
from typing import Any, Final
from uuid import UUID

from voiceassist_db import ClinicalNote, Database, Patient, Repositories
from voiceassist_db.errors import RotationError, TransactionConflictError, VoiceAssistDBError
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, Progress, retire, rotate
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

ROWS_EACH: Final = 100
"""Patients of a writer, about."""

ROTATIONS: Final = 2
"""At least; as many as the time allows."""

MAX_PAUSE_S: Final = 0.02
"""Between two transactions of a writer; without any, the writers would wait for each other's share of one interpreter."""

REFUSED_BY_FLOOR: Final = "23514"
"""The one error that a writer may get: it wrote under a key that was being retired. Its transaction is undone, and it goes on."""

RUNS: Final = 3
"""How often a run may end with rows left over, because a writer had not learned of the new key, before that is a finding."""


@dataclass
class Writer:
    """One process of an application: it remembers what it was told is written, and finds what is otherwise.

    Attributes:
        number: Which one; it seeds what it does.
        database: Its own connections and keys.
        patients: What it has written and not deleted.
        notes: The same of notes.
        transactions: How many it has ended.
        findings: What was wrong.
    """

    number: int
    database: Database
    patients: dict[UUID, Patient] = field(default_factory=dict)
    notes: dict[UUID, ClinicalNote] = field(default_factory=dict)
    transactions: int = 0
    findings: list[str] = field(default_factory=list)
    serial: int = 0

    def __post_init__(self) -> None:
        """Make its own randomness."""
        self.random = Random(self.number)  # noqa: S311  # to be repeated, not to be secret

    def write_until(self, stop: threading.Event) -> None:
        """Do one thing after the other until it is told to stop, or has found something."""
        ways = [self.add, self.add_many, self.change, self.change, self.rename, self.annotate, self.amend, self.delete]
        reads = [self.read, self.read_many, self.find, self.read_notes]
        while not stop.is_set() and not self.findings:
            try:
                self.random.choice(ways)()
                self.random.choice(reads)()
                time.sleep(self.random.uniform(0.0, MAX_PAUSE_S))
            except TransactionConflictError as error:
                if error.sqlstate != REFUSED_BY_FLOOR:
                    self.findings.append(f"writer {self.number}: {error}")
            except VoiceAssistDBError as error:
                self.findings.append(f"writer {self.number}: {type(error).__name__}: {error}")

    @contextmanager
    def transaction(self) -> Iterator[Repositories]:
        """A transaction that sometimes stays open for a while, longer than a rotation waits for a row."""
        with self.database.transaction() as tx:
            yield tx
            if self.random.random() < 0.03:
                time.sleep(self.random.uniform(0.0, 0.2))
        self.transactions += 1

    def patient(self) -> Patient:
        """Make up a patient."""
        self.serial += 1
        name = f"{self.number}-{self.serial}"
        return Patient(patient_id=f"PT-{name}", mrn=f"MRN-{name}", **self.values())

    def values(self) -> dict[str, Any]:
        """Make up what a patient has, beside what is unique."""
        number = self.random.randrange(10**8)
        return {
            "ssn": f"9{number:08d}",
            "name": f"Zoë Écoute {number}" if number % 5 else None,
            "date_of_birth": date(1930 + number % 90, 1 + number % 12, 1 + number % 28),
            "address": {"street": f"{number} Main", "zip": number} if number % 3 else None,
        }

    def some(self) -> Patient:
        """Choose one of its patients."""
        return self.random.choice(list(self.patients.values()))

    def add(self) -> None:
        """Write one patient."""
        new = self.patient()
        with self.transaction() as tx:
            tx.patients.add(new)
        self.patients[new.id] = new

    def add_many(self) -> None:
        """Write some patients at once."""
        new = [self.patient() for _ in range(self.random.randint(2, 6))]
        with self.transaction() as tx:
            tx.patients.add_many(new)
        self.patients |= {each.id: each for each in new}

    def change(self) -> None:
        """Change encrypted fields of one patient, or of several in one transaction."""
        changed = []
        with self.transaction() as tx:
            for patient in self.random.sample(list(self.patients.values()), self.random.choice([1, 1, 1, 3])):
                values = self.values()
                changes = {name: values[name] for name in self.random.sample(list(values), self.random.randint(1, 4))}
                tx.patients.update(patient.patient_id, **changes)
                changed.append(replace(patient, **changes))
        self.patients |= {each.id: each for each in changed}

    def rename(self) -> None:
        """Change the column of a patient that is not encrypted, and is indexed."""
        patient = self.some()
        self.serial += 1
        renamed = replace(patient, patient_id=f"PT-{self.number}-{self.serial}")
        with self.transaction() as tx:
            tx.patients.update(patient.patient_id, patient_id=renamed.patient_id)
        self.patients[patient.id] = renamed

    def annotate(self) -> None:
        """Write a note on a patient."""
        note = ClinicalNote(patient=self.some().id, note=f"seen\r\n{self.random.random()}", metadata={"by": "é"})
        with self.transaction() as tx:
            tx.clinical_notes.add(note)
        self.notes[note.id] = note

    def amend(self) -> None:
        """Change a note."""
        if self.notes:
            note = self.random.choice(list(self.notes.values()))
            amended = replace(note, note="long " * self.random.randint(1, 1000), metadata=None)
            with self.transaction() as tx:
                tx.clinical_notes.update(note.patient, note.id, note=amended.note, metadata=None)
            self.notes[note.id] = amended

    def delete(self) -> None:
        """Delete some patients with their notes, about as many as are written."""
        for patient in self.random.sample(list(self.patients.values()), max(1, len(self.patients) - ROWS_EACH)):
            notes = [each for each in self.notes.values() if each.patient == patient.id]
            with self.transaction() as tx:
                for note in notes:
                    tx.clinical_notes.delete(note.patient, note.id)
                tx.patients.delete(patient.patient_id)
            del self.patients[patient.id]
            for note in notes:
                del self.notes[note.id]

    def expect(self, what: str, expected: object, actual: object) -> None:
        """Find a difference; it is told without values."""
        if expected != actual:
            self.findings.append(f"writer {self.number} read something else than it had written: {what}")

    def read(self) -> None:
        """Read one patient."""
        patient = self.some()
        with self.transaction() as tx:
            self.expect(f"patient {patient.id}", patient, tx.patients.get(patient.patient_id))

    def read_many(self) -> None:
        """Read some patients in one statement."""
        wanted = {each.patient_id: each for each in self.random.sample(list(self.patients.values()), 10)}
        with self.transaction() as tx:
            self.expect("several patients", wanted, tx.patients.get_many(wanted))

    def find(self) -> None:
        """Find a patient by a value that no two have."""
        patient = self.some()
        assert patient.mrn is not None
        with self.transaction() as tx:
            self.expect(f"patient {patient.id}, searched", patient, tx.patients.find_by_mrn(patient.mrn))

    def read_notes(self) -> None:
        """Read a patient's notes."""
        patient = self.some()
        mine = {each.id: each for each in self.notes.values() if each.patient == patient.id}
        with self.transaction() as tx:
            found = {each.id: each for each in tx.clinical_notes.of_patient(patient.id)}
        self.expect(f"notes of {patient.id}", mine, found)


class Trial:
    """Writers and rotations at the same time, and what was wrong in the end.

    Args:
        database: Where the rotations run.
        provider: Their key store.
        writers: The writers.
    """

    def __init__(self, database: Database, provider: VaultKeyProvider, writers: list[Writer]) -> None:
        self.database = database
        self.provider = provider
        self.writers = writers
        self.findings: list[str] = []
        self.rotations = 0

    def run(self, seconds: float) -> list[str]:
        """Rotate and retire again and again beside the writers, for a time or until something is found; return the findings."""
        until = time.monotonic() + seconds
        stop = threading.Event()
        with ThreadPoolExecutor(len(self.writers)) as pool:
            writing = [pool.submit(each.write_until, stop) for each in self.writers]
            try:
                while (time.monotonic() < until or self.rotations < ROTATIONS) and not self.found():
                    self.rotate()
                    self.retire()
            finally:
                stop.set()
        for each in writing:
            each.result()
        if not self.found():
            self.compare()
        return self.found()

    def found(self) -> list[str]:
        """Return all findings so far."""
        return self.findings + [finding for each in self.writers for finding in each.findings]

    def older(self) -> int:
        """Count the rows under another version than the newest."""
        newest = self.provider.fetch().version
        with self.database.engine.connect() as connection:
            tables = read_status(connection).tables.values()
        return sum(rows for table in tables for version, rows in table.items() if version != newest)

    def quarantined(self) -> int:
        """Count the rows that a rotation could not read."""
        with self.database.engine.connect() as connection:
            return read_status(connection).rotations[0].quarantined

    def rotate(self) -> None:
        """Rotate, or finish a rotation, until a run says that it is done."""
        if self.provider.fetch().previous_key is not None and not self.older():
            return
        stop = threading.Event()

        def stop_if_broken(_now: Progress) -> None:
            if self.found() or self.quarantined():
                stop.set()

        for _ in range(RUNS):
            report = rotate(
                self.database.engine,
                self.database.keys,
                pace=Pace(workers=2, patience_s=1.0),
                stop=stop,
                on_progress=stop_if_broken,
            )
            if report.quarantined:
                self.findings.append(f"{report.quarantined} sound rows were quarantined")
            if report.done or self.found():
                return
        self.findings.append(f"after {RUNS} runs, {report.remaining} rows are left over, verified: {report.verified}")

    def retire(self) -> None:
        """Retire the previous key, without a grace period; where a row turns out to need it still, rotate once more."""
        for _ in range(RUNS):
            if self.found():
                return
            try:
                retire(self.database.engine, self.database.keys, grace_days=0)
            except RotationError:
                self.rotate()
            else:
                self.rotations += 1
                return
        self.findings.append(f"the previous key could not be retired {RUNS} times")

    def compare(self) -> None:
        """Compare the database with all that the writers remember, as a process that starts now would read it."""
        if older := self.older():
            self.findings.append(f"{older} rows are under a dead version")
            return
        patients = {id_: patient for each in self.writers for id_, patient in each.patients.items()}
        notes = {id_: note for each in self.writers for id_, note in each.notes.items()}
        with Database(self.database.engine, self.provider).transaction() as tx:
            if patients != {each.id: each for each in tx.patients.page(limit=10**6)}:
                self.findings.append("the patients are not those that were written")
            if notes != {each.id: each for each in tx.clinical_notes.page(limit=10**6)}:
                self.findings.append("the notes are not those that were written")
        for report in verify(self.database.engine, self.database.keys):
            if report.failed or report.unindexed:
                self.findings.append(f"{report.failed} values of {report.table} cannot be trusted")
