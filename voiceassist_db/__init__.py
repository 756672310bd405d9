"""Encrypted patient data on stock PostgreSQL: keys in Vault, ciphertext by pgcrypto, keys rotated online.

Names are imported when they are first used (PEP 562), for SQLAlchemy and psycopg take half a second: a command's ``--help`` needs
neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from voiceassist_db.database import AsyncDatabase, AsyncTransaction, Database, Repositories
    from voiceassist_db.engine import create_async_engine, create_engine
    from voiceassist_db.errors import VoiceAssistDBError
    from voiceassist_db.normalisers import register_normaliser
    from voiceassist_db.repositories import (
        ClinicalNote,
        ClinicalNoteRepository,
        Encrypted,
        EncryptedRecord,
        Patient,
        PatientRepository,
        Record,
        Repository,
        field,
        key,
        record,
        uuid7,
    )

__all__ = [
    "AsyncDatabase",
    "AsyncTransaction",
    "ClinicalNote",
    "ClinicalNoteRepository",
    "Database",
    "Encrypted",
    "EncryptedRecord",
    "Patient",
    "PatientRepository",
    "Record",
    "Repositories",
    "Repository",
    "VoiceAssistDBError",
    "create_async_engine",
    "create_engine",
    "field",
    "key",
    "record",
    "register_normaliser",
    "uuid7",
]

_MODULES: Final = {
    "AsyncDatabase": "database",
    "AsyncTransaction": "database",
    "Database": "database",
    "Repositories": "database",
    "VoiceAssistDBError": "errors",
    "create_async_engine": "engine",
    "create_engine": "engine",
    "register_normaliser": "normalisers",
}
"""Where a name is, if not in ``repositories``."""


if not TYPE_CHECKING:  # or a type checker would let every name pass

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'repositories')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
