"""The rotation against its ceiling, which is the crypto alone, and against batches along the primary key; in one run.

On a server of its own, with the durability of a real one. Each round measures the ceiling before and after the rotation; figures
are medians of the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.conftest import VaultServer, plain
from voiceassist_db import Database, create_engine
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.keyring import initialise_keys
from voiceassist_db.keys import Key
from voiceassist_db.pgcrypto.expressions import OPTIONS
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.rotation import Pace, RotationReport, retire, rotate
from voiceassist_db.schema import migrate

ROWS = 200_000
MANY_ROWS = 2_000_000
ROUNDS = 5
BATCH_ROWS = 5000
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB"}

ORDERED_ID = "('0190' || lpad(to_hex(n), 8, '0') || '7000' || '8' || substr(md5(n::text), 1, 15))::uuid"
"""As UUIDv7s are: in the order of insertion."""

OTHER_TABLE = """
    CREATE TABLE two (
        id uuid PRIMARY KEY, plain text UNIQUE, a_encrypted bytea, b_encrypted bytea, key_version integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 75);
    COMMENT ON COLUMN two.a_encrypted IS 'encrypted two.a as text';
    COMMENT ON COLUMN two.b_encrypted IS 'encrypted two.b as text';
"""
FORMAT = "ALTER TABLE two ADD CHECK (substring({0} from 1 for 6) = '\\xc30c04090108' AND substring({0} from 15 for 1) = '\\xd2')"


@dataclass(frozen=True)
class Shape:
    """A table to rotate, and how its rows are made."""

    table: str
    fields: dict[str, str]
    plain: dict[str, str]


TWO = Shape("two", {"a": "'123-45-' || n", "b": "'MRN-' || n"}, {"plain": "'PT-' || n"})
TOKEN = "substring(sha256(n::text::bytea) from 1 for 16)"
PATIENTS = Shape(
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


class Bench:
    """A server with one table of many rows, and what is measured on it."""

    def __init__(self, server: EmbeddedPostgres, provider: VaultKeyProvider) -> None:
        self.engine = create_engine(server.url(), pool_size=12)
        self.provider = provider
        self.raw = psycopg.connect(plain(server.url()), autocommit=True)
        self.raw.execute("SET max_parallel_workers_per_gather = 0; SET jit = off")
        migrate(self.engine)
        with self.engine.begin() as connection:
            initialise_keys(provider, connection)
        self.raw.execute(OTHER_TABLE)
        for column in ("a_encrypted", "b_encrypted"):
            self.raw.execute(FORMAT.format(column))

    def fill(self, shape: Shape, rows: int) -> None:
        """Make the rows inside the server, under the current key; what the table held before is gone."""
        keys = self._keys(shape, self.provider.fetch().key)
        values = (
            f"pgcrypto.pgp_sym_encrypt('{shape.table}.{name}:' || id || ':' || {value}, %s, '{OPTIONS}')"
            for name, value in shape.fields.items()
        )
        columns = ", ".join([*shape.plain, *(f"{name}_encrypted" for name in shape.fields)])
        self.raw.execute(f"TRUNCATE {shape.table} CASCADE")
        self.raw.execute(
            f"INSERT INTO {shape.table} (id, {columns}, key_version) SELECT id, {', '.join(shape.plain.values())}, "
            f"{', '.join(values)}, {self.provider.fetch().version} "
            f"FROM (SELECT {ORDERED_ID} AS id, n FROM generate_series(1, {rows}) n) g",
            keys,
        )

    def settle(self, shape: Shape) -> None:
        """Let the table rest, as it would between two rotations."""
        self.raw.execute(f"VACUUM ANALYZE {shape.table}")
        self.raw.execute("CHECKPOINT")

    @staticmethod
    def _keys(shape: Shape, key: Key) -> list[str]:
        return [key.derive(f"{shape.table}.{name}").expose().decode() for name in shape.fields]

    def ceiling(self, shape: Shape, rows: int) -> float:
        """Return the rows per second of decrypting and encrypting alone, on one core, with nothing written."""
        old = self._keys(shape, self.provider.fetch().key)
        new = self._keys(shape, Key.generate())
        both = [key for pair in zip(old, new, strict=True) for key in pair]
        crypto = (
            f"count(pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt({name}_encrypted, %s), %s, '{OPTIONS}'))"
            for name in shape.fields
        )
        started = time.perf_counter()
        self.raw.execute(f"SELECT {', '.join(crypto)} FROM {shape.table}", both)
        return rows / (time.perf_counter() - started)

    def wal(self) -> int:
        """Return the position of the write-ahead log, in bytes."""
        row = self.raw.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
        assert row is not None
        return int(row[0])

    def rotate(self, pace: Pace) -> RotationReport:
        """Rotate to the end, and retire the older key at once."""
        keys = Database(self.engine, self.provider).keys
        report = rotate(self.engine, keys, pace=pace)
        assert report.done
        retire(self.engine, keys, grace_days=0)
        return report

    def by_primary_key(self, shape: Shape) -> int:
        """Re-encrypt in batches of the primary key, as one would without thinking; return the bytes of WAL."""
        key = self.provider.fetch().key
        old, new = self._keys(shape, key), self._keys(shape, Key.generate())
        both = [key for pair in zip(old, new, strict=True) for key in pair]
        crypto = ", ".join(
            f"{name}_encrypted = pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt({name}_encrypted, %s), %s, '{OPTIONS}')"
            for name in shape.fields
        )
        before, after = self.wal(), "00000000-0000-0000-0000-000000000000"
        while True:
            page = self.raw.execute(
                f"SELECT id::text FROM {shape.table} WHERE id > %s ORDER BY id LIMIT {BATCH_ROWS}", [after]
            ).fetchall()
            if not page:
                return self.wal() - before
            self.raw.execute(
                f"UPDATE {shape.table} SET {crypto} WHERE id > %s AND id <= %s", [*both, after, page[-1][0]]
            )
            after = page[-1][0]

    def close(self) -> None:
        """Close the connections."""
        self.raw.close()
        self.engine.dispose()


@pytest.fixture
def bench(vault: VaultServer, vault_path: str) -> Iterator[Bench]:
    """A server of its own and keys."""
    mount, _, path = vault_path.partition("/")
    with EmbeddedPostgres(settings=SETTINGS) as server:
        made = Bench(server, VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount=mount, path=path))
        yield made
        made.close()


def measure(bench: Bench, shape: Shape, rows: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Rotate with one worker and with two, in turns, beside the ceiling; return medians, and the worst growth and HOT share."""
    bench.fill(shape, rows)
    ratios: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    reports, wal = [], []
    for _ in range(rounds):
        for workers in (1, 2):
            bench.settle(shape)
            before, ceiling = bench.wal(), bench.ceiling(shape, rows)
            report = bench.rotate(Pace(workers=workers))
            wal.append((bench.wal() - before) / rows)
            ceiling = (ceiling + bench.ceiling(shape, rows)) / 2
            ratios[workers].append(report.rows_per_second / ceiling)
            rates[workers].append(report.rows_per_second)
            reports.append(report)
    return {
        "rows_per_second": round(statistics.median(rates[1])),
        "of_ceiling": round(statistics.median(ratios[1]), 3),
        "of_ceiling_worst": round(min(ratios[1]), 3),
        "of_ceiling_best": round(max(ratios[1]), 3),
        "two_workers_over_one": round(statistics.median(rates[2]) / statistics.median(rates[1]), 2),
        "table_growth": round(max(report.table_growth for report in reports), 3),
        "index_growth": round(max(report.index_growth for report in reports), 3),
        "hot_ratio": round(min(report.hot_ratio or 0.0 for report in reports), 3),
        "wal_bytes_per_row": round(statistics.median(wal)),
    }


@pytest.mark.parametrize("shape", [TWO, PATIENTS], ids=["two columns", "five columns"])
def test_rotation_over_its_ceiling(bench: Bench, benchmark: BenchmarkFixture, shape: Shape) -> None:
    """No bloat; the share of the ceiling, the scaling and the WAL against primary-key batches are in the figures."""
    figures = measure(bench, shape, ROWS)
    bench.settle(shape)
    figures["wal_over_primary_key_batches"] = round(
        figures["wal_bytes_per_row"] / (bench.by_primary_key(shape) / ROWS), 2
    )
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[no-untyped-call]  # untyped there; the figures are above
    assert figures["hot_ratio"] >= 0.95
    assert max(figures["table_growth"], figures["index_growth"]) <= 1.03


@pytest.mark.long
def test_the_rate_does_not_depend_on_the_number_of_rows(bench: Bench, benchmark: BenchmarkFixture) -> None:
    """Of two million rows it is within a tenth of that of two hundred thousand."""
    few = measure(bench, TWO, ROWS, rounds=3)
    many = measure(bench, TWO, MANY_ROWS, rounds=1)
    benchmark.extra_info.update({"few": few, "many": many})
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[no-untyped-call]  # as above
    assert abs(many["of_ceiling"] / few["of_ceiling"] - 1) <= 0.1
