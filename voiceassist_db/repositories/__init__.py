"""What application code calls: records, and the repositories that keep them encrypted."""

from dataclasses import field

from voiceassist_db.repositories.annotations import Encrypted
from voiceassist_db.repositories.declarations import EncryptedRecord, key
from voiceassist_db.repositories.patients import ClinicalNoteRepository, PatientRepository
from voiceassist_db.repositories.records import ClinicalNote, Patient, Record, record, uuid7
from voiceassist_db.repositories.repository import Repository

__all__ = [
    "ClinicalNote",
    "ClinicalNoteRepository",
    "Encrypted",
    "EncryptedRecord",
    "Patient",
    "PatientRepository",
    "Record",
    "Repository",
    "field",
    "key",
    "record",
    "uuid7",
]
