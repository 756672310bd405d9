"""The tables, and the way to declare more of them. Nothing here knows a key."""

from voiceassist_db.models.base import Base, EncryptedInPlace, EncryptedRow, table_of
from voiceassist_db.models.declaration import (
    BlindIndex,
    EncryptedField,
    EncryptedTable,
    Kind,
    blind_index_column,
    declared_tables,
    encrypted_column,
    undeclared_columns,
    undeclared_in,
)
from voiceassist_db.models.keys import (
    REGISTRY_ROWS,
    DatabaseIdentityRow,
    EncryptionKeyRow,
    IndexKeyRow,
    KeyRotationFailureRow,
    KeyRotationRow,
)
from voiceassist_db.models.patients import ClinicalNoteRow, PatientRow

__all__ = [
    "REGISTRY_ROWS",
    "Base",
    "BlindIndex",
    "ClinicalNoteRow",
    "DatabaseIdentityRow",
    "EncryptedField",
    "EncryptedInPlace",
    "EncryptedRow",
    "EncryptedTable",
    "EncryptionKeyRow",
    "IndexKeyRow",
    "KeyRotationFailureRow",
    "KeyRotationRow",
    "Kind",
    "PatientRow",
    "blind_index_column",
    "declared_tables",
    "encrypted_column",
    "table_of",
    "undeclared_columns",
    "undeclared_in",
]
