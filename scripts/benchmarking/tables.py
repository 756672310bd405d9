"""The tables that are rotated, their rows, and the ceiling: the crypto alone, with nothing written.

Owns how rows are made inside the server, under the key of the day. Rotates nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from benchmarking.deployment import Deployment
from voiceassist_db.keys import Key
from voiceassist_db.pgcrypto.expressions import OPTIONS

ORDERED_ID: Final = "('0190' || lpad(to_hex(n), 8, '0') || '7000' || '8' || substr(md5(n::text), 1, 15))::uuid"
"""As UUIDv7s are: in the order of insertion."""

OURS: Final = """
    CREATE TABLE two (
        id uuid PRIMARY KEY, plain text UNIQUE, a_encrypted bytea, b_encrypted bytea, key_version integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 75);
    COMMENT ON COLUMN two.a_encrypted IS 'encrypted two.a as text';
    COMMENT ON COLUMN two.b_encrypted IS 'encrypted two.b as text';
"""
OTHERS: Final = """
    CREATE TABLE {0} (
        id uuid PRIMARY KEY, plain text UNIQUE, a bytea, b bytea, key_version integer NOT NULL DEFAULT 1,
        created_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = {1});
"""
"""The same, by names under which it is not one of those that we rotate."""

FORMAT: Final = "ALTER TABLE {0} ADD CHECK (substring({1} from 1 for 6) = '\\xc30c04090108' AND substring({1} from 15 for 1) = '\\xd2')"


@dataclass(frozen=True)
class Shape:
    """A table to rotate, and how its rows are made.

    Attributes:
        table: Its name.
        fields: Each encrypted field's value, as SQL of the row's number ``n``.
        plain: The same of the other columns.
    """

    table: str
    fields: dict[str, str]
    plain: dict[str, str]

    def keys(self, key: Key) -> list[str]:
        """Return the key of each field, as psycopg's own user would send it."""
        return [key.derive(f"{self.table}.{name}").expose().decode() for name in self.fields]

    def both_keys(self, old: Key, new: Key) -> list[str]:
        """Return old and new key of each field, in the order in which :meth:`crypto` names them."""
        return [key for pair in zip(self.keys(old), self.keys(new), strict=True) for key in pair]

    def crypto(self, suffix: str = "_encrypted") -> dict[str, str]:
        """Return, for each encrypted column, the SQL that decrypts and encrypts it.

        Args:
            suffix: What follows a field's name in its column's.
        """
        return {
            column: f"pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt({column}, %s), %s, '{OPTIONS}')"
            for column in (name + suffix for name in self.fields)
        }


CEILING_ROWS: Final = 100_000
"""At most; it takes two seconds, and does not depend on the number of rows."""

TWO: Final = Shape("two", {"a": "'123-45-' || n", "b": "'MRN-' || n"}, {"plain": "'PT-' || n"})
TOKEN: Final = "substring(sha256(n::text::bytea) from 1 for 16)"  # noqa: S105  # of a blind index, and of no secret
PATIENTS: Final = Shape(
    "patient_data",
    {
        "ssn": "'123-45-' || n",
        "mrn": "'MRN-' || n",
        "name": "'Zoe Patient-' || n",
        "date_of_birth": "'1930-01-01'",
        "address": """'{"street":"' || n || ' Main Street","city":"Espanola","state":"NM","zip":"87532"}'""",
    },
    {"patient_id": "'PT-' || n", "ssn_index": TOKEN, "mrn_index": TOKEN, "name_index": TOKEN},
)


def create(deployment: Deployment) -> None:
    """Create the table of the shape :data:`TWO`."""
    deployment.raw.execute(OURS)
    for column in ("a_encrypted", "b_encrypted"):
        deployment.raw.execute(FORMAT.format(TWO.table, column))


def fill(deployment: Deployment, shape: Shape, rows: int) -> None:
    """Make the rows inside the server, under the current key; what the table held before is gone."""
    stored = deployment.provider.fetch()
    values = (
        f"pgcrypto.pgp_sym_encrypt('{shape.table}.{name}:' || id || ':' || {value}, %s, '{OPTIONS}')"
        for name, value in shape.fields.items()
    )
    columns = ", ".join([*shape.plain, *(f"{name}_encrypted" for name in shape.fields)])
    statement = (
        f"INSERT INTO {shape.table} (id, {columns}, key_version) SELECT id, {', '.join(shape.plain.values())}, "
        f"{', '.join(values)}, {stored.version} FROM (SELECT {ORDERED_ID} AS id, n FROM generate_series(1, {rows}) n) g"
    )
    deployment.raw.execute(f"TRUNCATE {shape.table} CASCADE")
    deployment.raw.execute(statement, shape.keys(stored.key))


def ceiling(deployment: Deployment, shape: Shape, rows: int) -> float:
    """Return the rows per second of decrypting and encrypting alone, on one core, of the first rows of a table that has so many."""
    few = min(rows, CEILING_ROWS)
    keys = shape.both_keys(deployment.provider.fetch().key, Key.generate())
    crypto = ", ".join(f"count({each})" for each in shape.crypto().values())
    started = time.perf_counter()
    deployment.raw.execute(f"SELECT {crypto} FROM (SELECT * FROM {shape.table} LIMIT {few}) first", keys)
    return few / (time.perf_counter() - started)
