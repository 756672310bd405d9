"""Many rows at once: bulk insert, page reads, import of a CSV file, verification."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from uuid import UUID

import psycopg

from benchmarking import calls
from benchmarking.deployment import Deployment
from benchmarking.peers.peer import PAGE_ROWS, Store, as_text, patients
from benchmarking.single_rows import NEW, STORED
from benchmarking.stores import FIELDS, STATEMENTS, OurStore, driver_of, exposed, keyring_of, truncate
from benchmarking.timing import Spread, interleaved, ratio_of
from voiceassist_db import Database, Patient
from voiceassist_db.importing import import_patients
from voiceassist_db.repositories.freshness import CURRENT, written_with
from voiceassist_db.verification import verify

MOST_LIBRARY_ROUNDS: Final = 3
STEPS: Final = 4


def measure(
    deployment: Deployment, stores: Sequence[Store], *, rows: int, rounds: int, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything in bulk; the patients are gone afterwards.

    Args:
        deployment: The database.
        stores: As ``single_rows.filled`` gives them.
        rows: Patients of a bulk insert, an import and a verification.
        rounds: How often each is measured.
        on_step: Called ahead of each of :data:`STEPS` with what comes next.
    """
    few = min(rounds, MOST_LIBRARY_ROUNDS)
    on_step("bulk: pages of 1,000")
    pages = calls.measure(stores, lambda store, _: store.page(), lambda _: [None], rounds=rounds, library_rounds=few)
    on_step(f"bulk: adding {NEW} patients by everyone")
    new = patients(STORED + NEW)[STORED:]
    adds = calls.measure(
        stores, lambda store, many: store.add_many(many), lambda _: [new], rounds=min(rounds, MOST_LIBRARY_ROUNDS)
    )
    on_step(f"bulk: adding, and importing, {rows:,} patients")
    added = written(deployment, rows=rows, rounds=rounds)
    on_step(f"bulk: verifying {rows:,} patients")
    return {
        "page": calls.compared(pages, partial(_rate, PAGE_ROWS)),
        "add_few": calls.compared(adds, partial(_rate, NEW)),
        **added,
        "verify": verified(deployment, rows=rows, rounds=rounds),
    }


def _rate(rows: int, each: calls.Calls) -> dict[str, Any]:
    return {"rows_per_second": Spread.of(rows / seconds for seconds in each.sums()).rounded(0).median}


@contextmanager
def writers(database: Database, many: Sequence[Patient]) -> Iterator[dict[str, Callable[[], None]]]:
    """Give ``add_many``, the server's own INSERT of the same values, and an import, each of these patients and with its commit."""
    keyring = keyring_of(database)
    keys = exposed(keyring) | written_with(keyring, CURRENT)
    insert = insert_from_stage()
    ours = OurStore(database)
    raw = driver_of(ours.session)
    stage(raw, [ours.tx.patients._rows.new(each, keyring) for each in many])
    file = as_csv(many)

    def add_many() -> None:
        ours.add_many(many)
        raw.commit()

    def on_the_server() -> None:
        assert raw.execute(insert, keys).rowcount == len(many)
        raw.commit()

    def imported() -> None:
        assert import_patients(database, io.BytesIO(file)).imported == len(many)

    yield {"add_many": add_many, "server": on_the_server, "import": imported}
    ours.close()


def written(deployment: Deployment, *, rows: int, rounds: int) -> dict[str, Any]:
    """Measure ``add_many`` over the server's own INSERT of the same values, and an import over ``add_many``."""
    with writers(deployment.database, patients(rows)) as ways:
        seconds = interleaved(ways, rounds=rounds, before=partial(truncate, deployment.database))
    add = ratio_of(seconds["server"], seconds["add_many"]).rounded(3)
    whole = ratio_of(seconds["add_many"], seconds["import"]).rounded(3)
    rates = {name: Spread.of(rows / each for each in taken).rounded(0).median for name, taken in seconds.items()}
    return {
        "rows": rows,
        "add_many": {
            "rows_per_second": rates["add_many"],
            "server_rows_per_second": rates["server"],
            "ratio": add.median,
            "ratio_range": add.reach,
        },
        "import": {
            "rows_per_second": rates["import"],
            "over_add_many": whole.median,
            "over_add_many_range": whole.reach,
        },
    }


def verified(deployment: Deployment, *, rows: int, rounds: int) -> dict[str, Any]:
    """Measure the verification of patients over the server's decryption of the same values, and remove the patients."""
    database = deployment.database
    truncate(database)
    with database.transaction() as tx:
        tx.patients.add_many(patients(rows))
    deployment.settle("patient_data")
    keyring = keyring_of(database)
    keys = [keyring.column_key(keyring.current, each.context).expose().decode() for each in FIELDS]
    opened = ", ".join(f"count(pgcrypto.pgp_sym_decrypt({each.column}, %s))" for each in FIELDS)

    def whole() -> None:
        reports = verify(database.engine, database.keys)
        assert sum(each.rows for each in reports) == rows
        assert not any(each.failed for each in reports)

    def on_the_server() -> None:
        deployment.raw.execute(f"SELECT {opened} FROM patient_data", keys)

    seconds = interleaved({"verify": whole, "server": on_the_server}, rounds=rounds)
    truncate(database)
    ratio = ratio_of(seconds["server"], seconds["verify"]).rounded(3)
    return {
        "rows_per_second": Spread.of(rows / each for each in seconds["verify"]).rounded(0).median,
        "ratio": ratio.median,
        "ratio_range": ratio.reach,
    }


def stage(raw: psycopg.Connection[Any], encoded: list[dict[str, Any]]) -> None:
    """Put the values where the server can insert them from without a client."""
    types = {UUID: "uuid", bytes: "bytea"}
    columns = {name: types.get(type(value), "text") for name, value in encoded[0].items()}
    raw.execute(f"CREATE TEMPORARY TABLE stage ({', '.join(f'{name} {type_}' for name, type_ in columns.items())})")
    with raw.cursor().copy(f"COPY stage ({', '.join(columns)}) FROM STDIN") as copy:
        for row in encoded:
            copy.write_row([row[name] for name in columns])
    raw.commit()


def insert_from_stage() -> str:
    """Return the INSERT of ``add_many`` with the staged values instead of arrays."""
    sql = STATEMENTS.insert_many().sql
    values, _, arrays = sql.partition("FROM (SELECT")
    return f"{values} FROM stage WHERE {arrays.partition('WHERE')[2]}"


def as_csv(many: Sequence[Patient]) -> bytes:
    """Return patients as a file to import."""
    file = io.StringIO()
    rows = [as_text(each) for each in many]
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()
