"""Re-encryption inside the database by batches, as it is usually written: along the primary key, or by LIMIT and SKIP LOCKED."""

from __future__ import annotations

import time
from typing import Final

from benchmarking.deployment import Deployment
from benchmarking.tables import FORMAT, OTHERS, TWO
from benchmarking.ways import Copied
from voiceassist_db.keys import Key

BATCH_ROWS: Final = 5000
NEW_VERSION: Final = 1_000_000
"""A key version that no rotation of ours reaches, nor the tables' checks refuse."""


class _Batches(Copied):
    """A copy of our own table, re-encrypted by other statements with the same keys, options and durability."""

    note = ""

    def __init__(self, deployment: Deployment, *, table: str, rows: int) -> None:
        super().__init__(deployment, table)
        self.version = f"PostgreSQL {deployment.postgres}"
        self.table = table
        self.rows = rows
        self._deployment = deployment
        self._keys: list[str] = []
        crypto = ", ".join(f"{column} = {sql}" for column, sql in TWO.crypto(suffix="").items())
        self._update = f"UPDATE {table} SET {crypto}, key_version = {NEW_VERSION}"

    def create(self) -> None:
        """Copy our table, which is under the key of the day."""
        self._raw.execute(OTHERS.format(self.table, 75))
        for column in TWO.fields:
            self._raw.execute(FORMAT.format(self.table, column))
        self._raw.execute(f"INSERT INTO {self.table} SELECT * FROM {TWO.table} ORDER BY id LIMIT {self.rows}")
        self._keys = TWO.both_keys(self._deployment.provider.fetch().key, Key.generate())
        self.keep()

    def prove(self) -> None:
        """Decrypt all values with the new keys, which pgcrypto refuses where one is wrong."""
        count = ", ".join(f"count(pgcrypto.pgp_sym_decrypt({name}, %s))" for name in TWO.fields)
        row = self._raw.execute(f"SELECT {count} FROM {self.table}", self._keys[1::2]).fetchone()
        assert row == (self.rows, self.rows)


class PrimaryKeyBatches(_Batches):
    """Batches of consecutive primary keys."""

    name = "primary-key batches"

    def run(self) -> float:
        """Re-encrypt 5,000 rows at a time, each batch in a transaction."""
        started = time.perf_counter()
        after = "00000000-0000-0000-0000-000000000000"
        while page := self._raw.execute(
            f"SELECT id::text FROM {self.table} WHERE id > %s ORDER BY id LIMIT {BATCH_ROWS}", [after]
        ).fetchall():
            last = page[-1][0]
            self._raw.execute(f"{self._update} WHERE id > %s AND id <= %s", [*self._keys, after, last])
            after = last
        return time.perf_counter() - started


class SkipLockedBatches(_Batches):
    """Batches of whatever rows are left and not locked, found by an index on the key version."""

    name = "LIMIT … SKIP LOCKED batches"

    def create(self) -> None:
        """Copy our table, and index the key version, without which each batch would read the whole table."""
        super().create()
        self._raw.execute(f"CREATE INDEX ON {self.table} (key_version)")

    def run(self) -> float:
        """Re-encrypt 5,000 rows at a time, each batch in a transaction."""
        started = time.perf_counter()
        left = (
            f"SELECT id FROM {self.table} WHERE key_version < {NEW_VERSION} LIMIT {BATCH_ROWS} FOR UPDATE SKIP LOCKED"
        )
        while self._raw.execute(f"{self._update} WHERE id IN ({left})", self._keys).rowcount:
            pass
        return time.perf_counter() - started
