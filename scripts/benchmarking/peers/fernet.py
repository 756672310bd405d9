"""Encryption in the application, without a library for the table: Fernet (cryptography) and psycopg."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator
from typing import Any

from cryptography.fernet import Fernet

from benchmarking.deployment import Deployment
from benchmarking.peers.peer import PAGE_ROWS
from benchmarking.tables import ORDERED_ID, OTHERS
from benchmarking.ways import Copied


class _Fernet(Copied):
    """A table of Fernet tokens, read and written in transactions of one page of rows."""

    note = ""

    def __init__(self, deployment: Deployment, *, table: str, rows: int) -> None:
        super().__init__(deployment, table)
        self.version = f"cryptography {importlib.metadata.version('cryptography')}"
        self.table = table
        self.rows = rows
        self._old, self._new = Fernet(Fernet.generate_key()), Fernet(Fernet.generate_key())

    def create(self) -> None:
        """Create the table, and encrypt its rows here."""
        self._raw.execute(OTHERS.format(self.table, 100))
        self._raw.execute(
            f"INSERT INTO {self.table} SELECT {ORDERED_ID}, 'PT-' || n FROM generate_series(1, {self.rows}) n"
        )
        for page in self._pages():
            values = [
                (self._old.encrypt(f"123-45-{row[1]}".encode()), self._old.encrypt(f"MRN-{row[1]}".encode()), row[0])
                for row in page
            ]
            self._raw.cursor().executemany(self._statement, values)
        self.keep()

    @property
    def _statement(self) -> str:
        return f"UPDATE {self.table} SET a = %s, b = %s WHERE id = %s"

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        after = "00000000-0000-0000-0000-000000000000"
        while page := self._raw.execute(
            f"SELECT id, plain, a, b FROM {self.table} WHERE id > %s ORDER BY id LIMIT {PAGE_ROWS}",
            [after],
        ).fetchall():
            yield page
            after = page[-1][0]

    def _reencrypted(self, row: tuple[Any, ...]) -> tuple[bytes, bytes, Any]:
        a, b = (self._new.encrypt(self._old.decrypt(value)) for value in row[2:])
        return a, b, row[0]

    def prove(self) -> None:
        """Decrypt all values with the new key, which Fernet refuses where one is wrong."""
        for page in self._pages():
            for _, plain, a, b in page:
                assert (self._new.decrypt(a), self._new.decrypt(b)) == (
                    f"123-45-{plain}".encode(),
                    f"MRN-{plain}".encode(),
                )


class FernetRowByRow(_Fernet):
    """One UPDATE at a time."""

    name = "Fernet in the application, row by row"

    def run(self) -> float:
        """Re-encrypt all rows."""
        started = time.perf_counter()
        for page in self._pages():
            with self._raw.transaction():
                for row in page:
                    self._raw.execute(self._statement, self._reencrypted(row))
        return time.perf_counter() - started


class FernetInBatches(_Fernet):
    """psycopg's ``executemany``, which sends the statements of a page one after the other without a wait."""

    name = "Fernet in the application, executemany"

    def run(self) -> float:
        """Re-encrypt all rows."""
        started = time.perf_counter()
        for page in self._pages():
            with self._raw.transaction():
                self._raw.cursor().executemany(self._statement, [self._reencrypted(row) for row in page])
        return time.perf_counter() - started
