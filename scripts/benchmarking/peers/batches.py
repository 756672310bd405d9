"""Re-encryption inside the database by batches, as it is usually written: along the primary key, or by LIMIT and SKIP LOCKED."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import psycopg

from benchmarking.deployment import Deployment, connect
from benchmarking.tables import FORMAT, OTHERS, TWO
from benchmarking.ways import Copied
from voiceassist_db.keys import Key

BATCH_ROWS: Final = 5000
NEW_VERSION: Final = 1_000_000
"""A key version that no rotation of ours reaches, nor the tables' checks refuse."""


class _Batches(Copied, ABC):
    """A copy of our own table, re-encrypted by other statements with the same keys, options and durability.

    Args:
        deployment: The database.
        rows: How many rows to re-encrypt.
        connections: How many connections share the work.
    """

    what: str
    note = ""

    def __init__(self, deployment: Deployment, *, rows: int, connections: int = 1) -> None:
        table = f"{type(self).__name__.lower()}_{connections}"
        super().__init__(deployment, table)
        self.name = self.what if connections == 1 else f"{self.what}, {connections} connections"
        self.version = f"PostgreSQL {deployment.postgres}"
        self.table = table
        self.rows = rows
        self.connections = connections
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

    def run(self) -> float:
        """Re-encrypt 5,000 rows at a time, each batch in a transaction, on all connections at the same time."""
        with ExitStack() as stack:
            opened = [stack.enter_context(connect(self._deployment.url)) for _ in range(self.connections)]
            pool = stack.enter_context(ThreadPoolExecutor(self.connections))
            started = time.perf_counter()
            running = [pool.submit(self._share, each, number) for number, each in enumerate(opened)]
            for each in running:
                each.result()
            return time.perf_counter() - started

    @abstractmethod
    def _share(self, raw: psycopg.Connection[Any], number: int) -> None:
        """Re-encrypt one connection's share."""


class PrimaryKeyBatches(_Batches):
    """Batches of consecutive primary keys; each connection has a range of its own."""

    what = "primary-key batches"

    def _share(self, raw: psycopg.Connection[Any], number: int) -> None:
        after = self._first_after(raw, number * self.rows // self.connections)
        end = self._first_after(raw, (number + 1) * self.rows // self.connections)
        while page := raw.execute(
            f"SELECT id::text FROM {self.table} WHERE id > %s AND id <= %s ORDER BY id LIMIT {BATCH_ROWS}", [after, end]
        ).fetchall():
            last = page[-1][0]
            raw.execute(f"{self._update} WHERE id > %s AND id <= %s", [*self._keys, after, last])
            after = last

    def _first_after(self, raw: psycopg.Connection[Any], rows: int) -> str:
        if rows == 0:
            return str(uuid.UUID(int=0))
        row = raw.execute(f"SELECT id::text FROM {self.table} ORDER BY id LIMIT 1 OFFSET {rows - 1}").fetchone()
        return str(row[0]) if row else str(uuid.UUID(int=2**128 - 1))


class SkipLockedBatches(_Batches):
    """Batches of whatever rows are left and not locked, found by an index on the key version."""

    what = "LIMIT … SKIP LOCKED batches"

    def create(self) -> None:
        """Copy our table, and index the key version, without which each batch would read the whole table."""
        super().create()
        self._raw.execute(f"CREATE INDEX ON {self.table} (key_version)")

    def _share(self, raw: psycopg.Connection[Any], number: int) -> None:
        left = (
            f"SELECT id FROM {self.table} WHERE key_version < {NEW_VERSION} LIMIT {BATCH_ROWS} FOR UPDATE SKIP LOCKED"
        )
        while raw.execute(f"{self._update} WHERE id IN ({left})", self._keys).rowcount:
            pass
