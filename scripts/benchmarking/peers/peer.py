"""What a library must do to be measured, and the patients that all of them store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Final, Protocol

from benchmarking.ways import Way
from voiceassist_db import Patient

FIELDS: Final = ("ssn", "mrn", "name", "date_of_birth", "address")
"""The encrypted fields of a patient."""

PAGE_ROWS: Final = 1000


def patients(count: int) -> list[Patient]:
    """Return made-up patients of ordinary size, all different."""
    return [
        Patient(
            patient_id=f"PT-{n:06d}",
            ssn=f"9{n % 90 + 10:02d}-{n // 90 % 90 + 10}-{n % 10000:04d}",
            mrn=f"MRN-{n:08d}",
            name=f"Zoë Patient-{n}",
            date_of_birth=date(1930 + n % 90, 1 + n % 12, 1 + n % 28),
            address={"street": f"{n} Main Street", "city": "Española", "state": "NM", "zip": "87532"},
        )
        for n in range(count)
    ]


def as_text(patient: Patient) -> dict[str, str]:
    """Return a patient's values as text, which is what every library stores."""
    return {
        "patient_id": patient.patient_id,
        "ssn": patient.ssn or "",
        "mrn": patient.mrn or "",
        "name": patient.name or "",
        "date_of_birth": str(patient.date_of_birth),
        "address": json.dumps(patient.address, ensure_ascii=False),
    }


class Store(Protocol):
    """A table of patients, read and written by the means of one library, in a transaction that is rolled back.

    Attributes:
        name: What the report calls it.
        can_find: Whether it offers search by an encrypted value.
    """

    name: str
    can_find: bool

    def begin(self) -> None:
        """Begin a transaction, so that what comes next is measured without it."""

    def rollback(self) -> None:
        """Undo it."""

    def commit(self) -> None:
        """Keep it."""

    def add(self, patient: Patient) -> None:
        """Write a new patient."""

    def get(self, patient: Patient) -> None:
        """Read a patient by ``patient_id``, with all fields."""

    def find(self, patient: Patient) -> None:
        """Find a patient by medical record number."""

    def update(self, patient: Patient) -> None:
        """Change a patient's name and address."""

    def add_many(self, patients: Sequence[Patient]) -> None:
        """Write many new patients."""

    def page(self) -> int:
        """Read a thousand patients in the order of the primary key, and return how many there were."""

    def close(self) -> None:
        """Close its connections."""


class Peer(Way, Protocol):
    """A library: a way to re-encrypt a table, and a store of patients."""

    def store(self) -> Store:
        """Create its table of patients, empty."""
