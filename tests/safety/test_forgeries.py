"""Whatever somebody who owns the table does to a stored ciphertext: an error, or the value as it was; never another value.

The long form, 160,000 forgeries, by ``pytest --long tests/safety/test_forgeries.py``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import URL

from tests.conftest import plain
from voiceassist_db import Database, Patient
from voiceassist_db.errors import BindingError, DecryptionError, ValueFormatError

PATIENTS = 50
FIELDS = ("ssn", "mrn", "name", "address")

HEADER_BYTES = 14
"""Our packet of the key: tag, length and 12 bytes. After it come the data packet's tag, its length, its version byte."""

Pool = list[bytes]
Forgery = Callable[[random.Random, bytes, Pool], bytes]


def flip(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """One bit, anywhere."""
    at = dice.randrange(len(value) * 8)
    return value[: at // 8] + bytes([value[at // 8] ^ 1 << at % 8]) + value[at // 8 + 1 :]


def flip_some(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Some bits, up to 16."""
    for _ in range(dice.randint(2, 16)):
        value = flip(dice, value, pool)
    return value


def truncate(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Cut off the end, from one byte to all but one."""
    return value[: dice.randrange(1, len(value))]


def extend(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Add bytes, or a second message."""
    return value + dice.choice([dice.randbytes(dice.randint(1, 40)), value, dice.choice(pool)])


def strip_integrity(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Make the packet one without integrity check: its tag, its length, its version gone; now and then flip a bit as well."""
    length = value[HEADER_BYTES + 1]
    assert value[HEADER_BYTES] == 0xD2
    assert length < 192  # of one byte, as for all values here
    body = value[HEADER_BYTES + 3 :]
    body = body[: len(body) - dice.choice([0, 0, 22, 20])]
    if dice.random() < 0.5:
        body = flip(dice, body, pool)
    return value[:HEADER_BYTES] + bytes([0xC9, len(body)]) + body


def change_header(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Another cipher, key derivation or salt."""
    at = dice.randrange(HEADER_BYTES + 3)
    return value[:at] + dice.randbytes(1) + value[at + 1 :]


def swap(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """Another row's value, of the same column."""
    return dice.choice(pool)


def splice(dice: random.Random, value: bytes, pool: Pool) -> bytes:
    """The beginning of one message and the end of another."""
    other = dice.choice(pool)
    at = dice.randrange(1, min(len(value), len(other)))
    return value[:at] + other[at:]


FORGERIES: tuple[tuple[Forgery, int], ...] = (
    (flip, 8), (flip_some, 2), (truncate, 2), (extend, 1), (strip_integrity, 3), (change_header, 2), (swap, 1), (splice, 1),
)  # fmt: skip


@pytest.mark.parametrize(
    "forgeries", [400, pytest.param(4_000, marks=pytest.mark.wide), pytest.param(160_000, marks=pytest.mark.long)]
)
def test_no_forgery_becomes_another_value(database: Database, database_url: URL, forgeries: int) -> None:
    """The table's own checks are taken away first, for who owns the table can do so."""
    seed = int(os.environ.get("VOICEASSIST_DB_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"VOICEASSIST_DB_TEST_SEED={seed}")
    dice = random.Random(seed)  # noqa: S311  # of tests
    patients = {
        f"PT-{n:03d}": Patient(
            patient_id=f"PT-{n:03d}",
            ssn=f"9{n:08d}",
            mrn=f"MRN-{n}",
            name=f"Zoe {n}",
            address={"city": f"Espanola {n}"},
        )
        for n in range(PATIENTS)
    }
    with database.transaction() as tx:
        tx.patients.add_many(patients.values())
    outcomes: Counter[str] = Counter()
    with psycopg.connect(plain(database_url), autocommit=True) as owner:
        for (name,) in owner.execute(
            "SELECT conname FROM pg_constraint WHERE conname LIKE 'patient\\_data\\_%\\_format'"
        ).fetchall():
            owner.execute(f"ALTER TABLE patient_data DROP CONSTRAINT {name}")
        stored: dict[str, dict[str, bytes]] = {
            field: dict(owner.execute(f"SELECT patient_id, {field}_encrypted FROM patient_data").fetchall())
            for field in FIELDS
        }
        for done in range(0, forgeries, PATIENTS):
            field = FIELDS[done // PATIENTS % len(FIELDS)]
            pool = list(stored[field].values())
            kinds = dice.choices([each for each, _ in FORGERIES], [weight for _, weight in FORGERIES], k=PATIENTS)
            forged = {
                row: kind(dice, value, [other for other in pool if other != value])
                for (row, value), kind in zip(stored[field].items(), kinds, strict=True)
            }
            put(owner, field, forged)
            for (row, value), kind in zip(forged.items(), kinds, strict=True):
                expected = getattr(patients[row], field)
                try:
                    with database.transaction() as tx:
                        read = getattr(tx.patients.get(row, fields=[field]), field)
                except (DecryptionError, BindingError, ValueFormatError) as error:
                    outcomes[f"{kind.__name__}: {type(error).__name__}"] += 1
                else:
                    assert read == expected, f"{kind.__name__} of {field} of {row} was read as another value"
                    outcomes[
                        f"{kind.__name__}: {'unchanged' if value == stored[field][row] else 'the same value'}"
                    ] += 1
            put(owner, field, stored[field])
    print(outcomes)
    assert outcomes.total() == forgeries
    assert {each.__name__ for each, _ in FORGERIES} == {outcome.partition(":")[0] for outcome in outcomes}
    assert not [outcome for outcome in outcomes if outcome.startswith("swap:") and outcome != "swap: BindingError"]


def put(owner: psycopg.Connection[tuple[object, ...]], field: str, values: dict[str, bytes]) -> None:
    """Write ciphertexts into the rows."""
    owner.execute(
        f"UPDATE patient_data SET {field}_encrypted = given.value FROM unnest(%s::text[], %s::bytea[]) AS given (row, value) "
        "WHERE patient_id = given.row",
        [list(values), list(values.values())],
    )
