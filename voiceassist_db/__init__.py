"""Encrypted patient data on stock PostgreSQL: keys in Vault, ciphertext by pgcrypto, keys rotated online."""

from voiceassist_db.database import AsyncDatabase, AsyncTransaction, Database, Repositories
from voiceassist_db.engine import create_async_engine, create_engine
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.repositories import (
    ClinicalNote,
    ClinicalNoteRepository,
    Patient,
    PatientRepository,
    Record,
    Repository,
    field,
    record,
    uuid7,
)

__all__ = [
    "AsyncDatabase",
    "AsyncTransaction",
    "ClinicalNote",
    "ClinicalNoteRepository",
    "Database",
    "Patient",
    "PatientRepository",
    "Record",
    "Repositories",
    "Repository",
    "VoiceAssistDBError",
    "create_async_engine",
    "create_engine",
    "field",
    "record",
    "uuid7",
]
