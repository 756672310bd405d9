"""The HIPAA guide's own recipe: ``pgp_sym_encrypt(value, key)`` with pgcrypto's default options."""

from __future__ import annotations

import time

from benchmarking.deployment import Deployment
from benchmarking.tables import ORDERED_ID, OTHERS
from benchmarking.ways import Copied
from voiceassist_db.keys import Key


class Recipe(Copied):
    """One UPDATE of all rows, by the functions and options of the guide."""

    name = "the guide's recipe"
    note = "pgcrypto's default options stretch each key, which is random already"
    table = "recipe"

    def __init__(self, deployment: Deployment, *, rows: int) -> None:
        super().__init__(deployment, self.table)
        self.version = f"PostgreSQL {deployment.postgres}"
        self.rows = rows
        self._old, self._new = (Key.generate().expose().decode() for _ in range(2))

    def create(self) -> None:
        """Create the table as the guide has it, and fill it by its INSERT."""
        self._raw.execute(OTHERS.format(self.table, 100))
        self._raw.execute(
            f"INSERT INTO {self.table} SELECT {ORDERED_ID}, 'PT-' || n, pgcrypto.pgp_sym_encrypt('123-45-' || n, %(old)s), "
            f"pgcrypto.pgp_sym_encrypt('MRN-' || n, %(old)s) FROM generate_series(1, {self.rows}) n",
            {"old": self._old},
        )
        self.keep()

    def run(self) -> float:
        """Decrypt with the old key and encrypt with the new one, in one statement."""
        started = time.perf_counter()
        changes = ", ".join(
            f"{column} = pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt({column}, %(old)s), %(new)s)"
            for column in ("a", "b")
        )
        self._raw.execute(f"UPDATE {self.table} SET {changes}", {"old": self._old, "new": self._new})
        return time.perf_counter() - started

    def prove(self) -> None:
        """Decrypt all values with the new key, which pgcrypto refuses where one is wrong."""
        count = ", ".join(f"count(pgcrypto.pgp_sym_decrypt({column}, %(new)s))" for column in ("a", "b"))
        row = self._raw.execute(f"SELECT {count} FROM {self.table}", {"new": self._new}).fetchone()
        assert row == (self.rows, self.rows)
