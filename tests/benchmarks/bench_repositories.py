"""What a repository costs over psycopg executing the same SQL, as ratios measured side by side in one run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarking import bulk
from benchmarking.peers.peer import patients
from benchmarking.stores import OurStore, RawStore, truncate
from benchmarking.timing import ratio
from voiceassist_db import Database, Patient

PATIENTS = patients(500)
Stores = tuple[OurStore, RawStore]


@pytest.fixture
def stores(filled: Database) -> Iterator[Stores]:
    """Our repository and psycopg, in one transaction of a filled database."""
    ours = OurStore(filled)
    raw = RawStore(filled, ours, PATIENTS)
    raw.begin()
    yield ours, raw
    ours.close()


def each_of(chosen: Sequence[Patient], call: Callable[[Patient], None]) -> None:
    """Call a store for each of some patients."""
    for each in chosen:
        call(each)


@pytest.mark.parametrize("operation", ["get", "update"])
def test_single_rows(stores: Stores, benchmark: BenchmarkFixture, operation: str) -> None:
    """`get`, and an update of two fields, one of which is searched by, cost at most 1.2 times psycopg with the same SQL and parameters."""
    ours, raw = (getattr(store, operation) for store in stores)
    over = ratio(partial(each_of, PATIENTS, ours), partial(each_of, PATIENTS, raw))
    benchmark.extra_info.update(over.described())
    cycle = itertools.cycle(PATIENTS)
    benchmark(lambda: ours(next(cycle)))
    assert over.median <= 1.2


def test_page_of_1000(stores: Stores, benchmark: BenchmarkFixture) -> None:
    """A page of 1,000 costs at most 1.3 times psycopg with the same SQL and parameters."""
    ours, raw = stores
    assert (ours.page(), raw.page()) == (1000, 1000)
    over = ratio(ours.page, raw.page)
    benchmark.extra_info.update(over.described())
    benchmark(ours.page)
    assert over.median <= 1.3


def test_bulk_add_of_10000(database: Database, benchmark: BenchmarkFixture) -> None:
    """Adding 10,000 patients reaches 0.85 of the speed of one INSERT … SELECT of the same values on the server."""
    rows = patients(10_000)
    with bulk.writers(database, rows) as ways:
        over = ratio(ways["add_many"], ways["server"], rounds=21, before=lambda: truncate(database))
        benchmark.extra_info.update(over.described())
        benchmark.pedantic(ways["add_many"], setup=lambda: truncate(database), rounds=3)  # type: ignore[no-untyped-call]  # as above
    assert 1 / over.median >= 0.85


def test_import_of_10000(database: Database, benchmark: BenchmarkFixture) -> None:
    """An import of 10,000 patients from a CSV file reaches 0.7 of the speed of adding them."""
    with bulk.writers(database, patients(10_000)) as ways:
        over = ratio(ways["import"], ways["add_many"], rounds=21, before=lambda: truncate(database))
        benchmark.extra_info.update(over.described())
        benchmark.pedantic(ways["import"], setup=lambda: truncate(database), rounds=3)  # type: ignore[no-untyped-call]  # as above
    assert 1 / over.median >= 0.7
