"""Single rows: insert, get, find by an encrypted value, update; ours, psycopg with the same SQL, and libraries, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarking import calls
from benchmarking.deployment import Deployment
from benchmarking.peers.peer import Store, patients
from benchmarking.stores import OurStore, RawStore, truncate
from voiceassist_db import Patient

STORED: Final = 1000
NEW: Final = 500
"""Patients that are not stored, for those who write new ones."""

BLOCK: Final = 100
"""Calls of one store in each round."""

OPERATIONS: Final[dict[str, Callable[[Store, Patient], object]]] = {
    "insert": lambda store, patient: store.add(patient),
    "get": lambda store, patient: store.get(patient),
    "find": lambda store, patient: store.find(patient),
    "update": lambda store, patient: store.update(patient),
}


def filled(deployment: Deployment, libraries: Sequence[Store], on_step: Callable[[str], None]) -> list[Store]:
    """Return ours, psycopg's and the libraries' stores, each with the same patients.

    Args:
        deployment: The database; its patients are gone.
        libraries: Empty stores.
        on_step: Called ahead of each step, one for each store but psycopg's, with what comes next.
    """
    truncate(deployment.database)
    ours = OurStore(deployment.database)
    for store in (ours, *libraries):
        on_step(f"{store.name}: making patients")
        store.begin()
        store.add_many(patients(STORED))
        store.commit()
    deployment.raw.execute("VACUUM ANALYZE")
    return [ours, RawStore(deployment.database, ours, patients(STORED + NEW)), *libraries]


def measure(stores: Sequence[Store], *, rounds: int, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Measure every operation.

    Args:
        stores: As :func:`filled` gives them.
        rounds: Blocks of each store and operation.
        on_step: Called ahead of each of the :data:`OPERATIONS` with what comes next.
    """
    every = patients(STORED + BLOCK)
    results = {}
    for name, call in OPERATIONS.items():
        on_step(f"single rows: {name}")
        offered = [each for each in stores if name != "find" or each.can_find]

        def block(round_: int, name: str = name) -> Sequence[Patient]:
            first = STORED if name == "insert" else round_ * BLOCK % STORED
            return every[first : first + BLOCK]

        measured = calls.measure(offered, call, block, rounds=rounds)
        result = results[name] = calls.compared(measured, calls.Calls.percentiles)
        result["others"] += [{"name": each.name, "failure": "not offered"} for each in stores if each not in offered]
    return results
