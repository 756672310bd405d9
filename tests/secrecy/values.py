"""The trial's patients and keys: each value like no other, and known in all of its spellings."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from datetime import date
from typing import Any

from voiceassist_db import ClinicalNote, Patient
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.models import Base
from voiceassist_db.models.declaration import declared_tables


class Secrets:
    """Every key and every patient's value of the trial, as it is made.

    Attributes:
        known: All of them, by name.
    """

    def __init__(self) -> None:
        self.known: dict[str, str | bytes] = {}

    def keep(self, name: str, *spellings: object) -> None:
        """Add a value."""
        for each in spellings:
            self.known[f"{name} {each!r}"] = str(each)

    def refused(self, value: str) -> str:
        """Add and return a value that the product will refuse."""
        self.keep("refused", value)
        return value

    def patient(self, number: int, **given: Any) -> Patient:
        """Make a patient: every second one has the digits of the SSN alone."""
        ssn = f"917-54-{number:04d}"
        made = Patient(
            patient_id=f"PT-{number:04d}",
            ssn=ssn if number % 2 else ssn.replace("-", ""),
            mrn=f"Mrn-Qz8w-{number:04d}-k",
            name=f"Ælfþrÿð Žižková-{number:04d}-té",
            date_of_birth=date(1861, 1 + number % 12, 1 + number % 28),
            address={"street": f"{number:04d} Kvŕchovný Láne", "zip": f"Zp-{number:04d}-90417-té"},
        )
        self.keep(f"SSN {number}", ssn, ssn.replace("-", ""))
        self.keep(f"record number {number}", made.mrn, str(made.mrn).upper())
        self.keep(f"name {number}", made.name, str(made.name).casefold())
        self.keep(f"date of birth {number}", made.date_of_birth, repr(made.date_of_birth))
        self.keep(f"address {number}", *(made.address or {}).values())
        return replace(made, **given)

    def text(self, lines: int) -> str:
        """Make a text of 60 bytes a line, which cannot be compressed, so that the server would store it as it is."""
        made = [base64.b64encode(random.randbytes(45)).decode() for _ in range(lines)]  # noqa: S311  # only to be distinct
        self.keep("text", *made[::5])
        return "\n".join(made)

    def note(self, patient: Patient, *, lines: int = 400) -> ClinicalNote:
        """Make a note, and its metadata."""
        author = f"Dr. Ængström-{len(self.known):06d}"
        self.keep("metadata", author)
        return ClinicalNote(patient=patient.id, note=self.text(lines), metadata={"author": author})

    def store(self, keys: KeySet) -> None:
        """Add all keys of a key store, and those that are derived from them."""
        fields = [field for table in declared_tables(Base.metadata) for field in table.fields.values()]
        for version, root in keys.versions().items():
            self._key(f"key {version}", root, [each.context for each in fields])
        for root in filter(None, (keys.index_key, keys.previous_index_key)):
            self._key(
                f"index key beside {keys.version}", root, [index.info for each in fields for index in each.indexes]
            )

    def _key(self, name: str, root: Key, contexts: list[str]) -> None:
        for context in ("", *contexts):
            key = root.derive(context) if context else root
            self.known[f"{name} {context} raw {len(self.known)}"] = key._raw
            self.known[f"{name} {context} {len(self.known)}"] = key.expose().rstrip(b"=")
