"""The rotation against its ceiling, which is the crypto alone, and against batches along the primary key; in one run.

On a server of its own, with the durability of a real one; figures are medians of the rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarking import growth, tables
from benchmarking.deployment import SETTINGS, Deployment, made
from benchmarking.peers.batches import PrimaryKeyBatches
from benchmarking.rotation import Rounds, figures
from benchmarking.tables import PATIENTS, TWO, Shape
from benchmarking.ways import measured
from tests.conftest import VaultServer
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider

ROWS = 200_000
MANY_ROWS = 2_000_000
ROUNDS = 5


@pytest.fixture
def deployment(vault: VaultServer, vault_path: str) -> Iterator[Deployment]:
    """A server of its own and keys."""
    mount, _, path = vault_path.partition("/")
    provider = VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount=mount, path=path)
    with EmbeddedPostgres(settings=SETTINGS) as server, made(server.url(), provider) as deployed:
        tables.create(deployed)
        yield deployed


def rotated(deployment: Deployment, shape: Shape) -> dict[str, Any]:
    """Rotate with one worker and with two, in turns, beside the ceiling, and return the figures."""
    rounds = Rounds(deployment, shape, rows=ROWS, workers=(1, 2), others=(), rounds=ROUNDS)
    rounds.run(lambda _: None)
    return figures(rounds)


@pytest.mark.parametrize("shape", [TWO, PATIENTS], ids=["two columns", "five columns"])
def test_rotation_over_its_ceiling(deployment: Deployment, benchmark: BenchmarkFixture, shape: Shape) -> None:
    """No bloat; the share of the ceiling, the scaling and the WAL are in the figures."""
    found = rotated(deployment, shape)
    if shape is TWO:
        others = PrimaryKeyBatches(deployment, rows=ROWS)
        others.create()
        wal = measured(deployment, others).wal_bytes_per_row
        found["wal_over_primary_key_batches"] = round(found["wal_bytes_per_row"] / wal, 2)
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[no-untyped-call]  # untyped there; the figures are above
    assert found["hot_ratio"] >= 0.95
    assert max(found["table_growth"], found["index_growth"]) <= 1.03


@pytest.mark.long
def test_the_rate_does_not_depend_on_the_number_of_rows(deployment: Deployment, benchmark: BenchmarkFixture) -> None:
    """Of two million rows it is within a tenth of that of two hundred thousand."""
    found = growth.measure(deployment, [ROWS, MANY_ROWS], lambda _: None)
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[no-untyped-call]  # as above
    assert found["lowest_over_highest"] >= 0.9
