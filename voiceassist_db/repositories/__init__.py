"""What application code calls: records, and the repositories that keep them encrypted."""

from dataclasses import field

from voiceassist_db.repositories.patients import ClinicalNoteRepository, PatientRepository
from voiceassist_db.repositories.records import ClinicalNote, Patient, Record, record, uuid7
from voiceassist_db.repositories.repository import Repository

__all__ = [
    "ClinicalNote",
    "ClinicalNoteRepository",
    "Patient",
    "PatientRepository",
    "Record",
    "Repository",
    "field",
    "record",
    "uuid7",
]
