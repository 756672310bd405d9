"""Many patients at once, for trials of the rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from voiceassist_db.keys import Key
from voiceassist_db.pgcrypto.expressions import OPTIONS

FIELDS: Final = {
    "ssn": "'9' || lpad(n::text, 8, '0')",
    "mrn": "'MRN-Hidden-' || n",
    "name": "'Zoë Hidden ' || n",
    "date_of_birth": "'19' || 10 + n % 90 || '-10-31'",
    "address": "'{\"street\"\\:\"' || n || ' Hidden Street\"}'",
}
"""What each encrypted column of the n-th patient holds, in SQL."""


def fill(connection: Connection, key: Key, *, rows: int, fields: Sequence[str] = tuple(FIELDS)) -> None:
    """Insert patients under key version 1, encrypted by the server as a repository would, in one statement."""
    names = ", ".join(f"{field}_encrypted" for field in fields)
    values = ", ".join(
        f"pgcrypto.pgp_sym_encrypt('patient_data.{field}\\:' || id || '\\:' || {FIELDS[field]}, :{field}, :options)"
        for field in fields
    )
    insert = f"""
        INSERT INTO patient_data (id, patient_id, key_version, {names})
        SELECT id, 'PT-' || n, 1, {values}
        FROM (SELECT n, lpad(to_hex(n), 32, '0')::uuid AS id FROM generate_series(1, :rows) n) given
    """
    keys = {field: key.derive(f"patient_data.{field}").expose().decode() for field in fields}
    connection.execute(text(insert), keys | {"options": OPTIONS, "rows": rows})
