"""Which characters the encoding of a database has, so that a line with another one is named by its number."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from typing import Final, Self

from voiceassist_db.importing.columns import BadRowError
from voiceassist_db.repositories import Patient

_OF_ALL_CHARACTERS: Final = ("UTF8", "SQL_ASCII")


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of a database.

    Attributes:
        name: What PostgreSQL calls it.
        codec: What Python calls it; empty where it has every character, or Python does not know it, so that the server decides.
    """

    name: str
    codec: str

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the encoding that PostgreSQL calls so."""
        if name in _OF_ALL_CHARACTERS:
            return cls(name, "")
        try:
            return cls(name, codecs.lookup(name.replace("WIN", "cp", 1)).name)
        except LookupError:
            return cls(name, "")

    def require(self, patient: Patient) -> None:
        """Refuse a patient with a character that the encoding lacks.

        Raises:
            BadRowError: It has one; the message names the field.
        """
        address = patient.address and json.dumps(patient.address, ensure_ascii=False)
        fields = {
            "patient_id": patient.patient_id,
            "ssn": patient.ssn,
            "mrn": patient.mrn,
            "name": patient.name,
            "address": address,
        }
        for field, value in fields.items():
            try:
                (value or "").encode(self.codec)
            except UnicodeEncodeError:
                raise BadRowError(
                    f"{field} has a character that the database's encoding {self.name} lacks (SQLSTATE 22P05)"
                ) from None


UTF8: Final = Encoding("UTF8", "")
