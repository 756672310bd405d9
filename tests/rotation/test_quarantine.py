"""Rows that cannot be read: exactly those are put down, with no value, and left as they are; all others are done."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from itertools import cycle
from random import Random
from statistics import mean
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from tests.cli.conftest import ROTATE
from tests.rotation.patients import FIELDS, fill
from voiceassist_db import Database
from voiceassist_db.cli.rotating import exit_code
from voiceassist_db.errors import BindingError, DecryptionError
from voiceassist_db.pgcrypto.expressions import OPTIONS
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, RotationReport, retire, rotate, rotate_index_key
from voiceassist_db.rotation.batches import reason_of
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

QUARANTINED: Final = 4
"""The command's exit code where all is done but for rows that could not be read."""

WAYS: Final = [
    # The CHECK holds bytes 0 to 5 and byte 14; what may change are the salt, 6 to 13, and what follows the packet's tag.
    *(f"set_byte(c, {at}, get_byte(c, {at}) # {bit})" for at, bit in [(6, 1), (10, 2), (13, 128), (16, 2)]),
    *(f"set_byte(c, {at}, get_byte(c, {at}) # {bit})" for at, bit in [(17, 1), (18, 64), (33, 4), (35, 8), (40, 255)]),
    *(f"set_byte(c, size - {back}, get_byte(c, size - {back}) # 1)" for back in (1, 20, 21, 22, 23)),
    *(f"substring(c FOR {length})" for length in ("15", "16", "17", "40", "size / 2", "size - 1", "size - 22")),
    "set_byte(c, 15, get_byte(c, 15) - 1)",  # the packet's length; pgcrypto reads one that is too long as if it were right
    "c || c",
    "pgcrypto.pgp_sym_encrypt('patient_data.' || field || '\\:' || id || '\\:1', 'another key', options)",
    "pgcrypto.pgp_sym_encrypt('', 'another key', options)",
]
"""Ways to spoil a ciphertext ``c`` of ``size`` bytes so that the column still takes it."""


def spoil(connection: Connection, ids: Sequence[UUID], fields: Sequence[str]) -> dict[UUID, bytes]:
    """Spoil one column of each row, in all ways in turn; return what it held."""
    before = {}
    for number, (id_, way) in enumerate(zip(ids, cycle(WAYS), strict=False)):
        column = column_of(number, fields)
        update = f"""
            UPDATE patient_data SET {column} = {way} FROM (
                SELECT {column} AS c, octet_length({column}) AS size, CAST(:options AS text) AS options,
                       CAST(:field AS text) AS field FROM patient_data WHERE id = :id
            ) given WHERE id = :id RETURNING c
        """
        values = {"id": id_, "options": OPTIONS, "field": column.removesuffix("_encrypted")}
        before[id_] = bytes(connection.execute(text(update), values).scalar_one())
    return before


def column_of(number: int, fields: Sequence[str]) -> str:
    """Return the column that is spoilt in the row that is spoilt as the number-th."""
    return f"{fields[number % len(fields)]}_encrypted"


def repair(connection: Connection, before: dict[UUID, bytes], fields: Sequence[str]) -> None:
    """Put back what spoilt columns held."""
    for number, (id_, value) in enumerate(before.items()):
        mend = text(f"UPDATE patient_data SET {column_of(number, fields)} = :value WHERE id = :id")
        connection.execute(mend, {"value": value, "id": id_})


def stored(connection: Connection, ids: Sequence[UUID]) -> list[Any]:
    """Return rows as they are, byte for byte, each with the transaction that wrote it."""
    select = text("SELECT id, xmin::text, patient_data::text FROM patient_data WHERE id = ANY (:ids) ORDER BY id")
    return list(connection.execute(select, {"ids": ids}).all())


def victims(rows: int, count: int) -> list[UUID]:
    """Choose rows: the first, the last, some that are neighbours, and others anywhere."""
    chosen = {1, 2, 3, rows} | set(Random(rows).sample(range(4, rows), count - 4))  # noqa: S311  # to be repeated, not to be secret
    return [UUID(int=number) for number in sorted(chosen)]


def recorded(connection: Connection) -> dict[str, str]:
    """Return the rows that are put down, and how each failed; proves that nothing else is said of them."""
    failures = connection.execute(text("SELECT * FROM key_rotation_failures")).all()
    assert {each.table_name for each in failures} <= {"patient_data"}
    assert not failures or set(failures[0]._mapping) == {"rotation", "table_name", "row_id", "sqlstate", "recorded_at"}
    return {each.row_id: each.sqlstate for each in failures}


def check_quarantine(database: Database, report: RotationReport, ids: Sequence[UUID], rows: int) -> None:
    """All rows but the poisoned ones are done and verified; those are put down, and nothing else is."""
    assert (report.quarantined, report.remaining, report.verified) == (len(ids), len(ids), True)
    assert (report.done, report.done_but_quarantined, exit_code(report)) == (False, True, QUARANTINED)
    with database.engine.connect() as connection:
        assert recorded(connection) == {str(id_): "39000" for id_ in ids}
        old, new = report.from_version, report.to_version
        assert read_status(connection).tables["patient_data"] == {old: len(ids), new: rows - len(ids)}


@pytest.mark.wide
def test_exactly_the_rows_that_cannot_be_read_are_quarantined(
    database: Database, provider: VaultKeyProvider, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """However 25 of 5,000 rows were spoilt: those stay untouched, the rest is done, and once they are repaired so are they."""
    caplog.set_level(logging.DEBUG)
    rows, fields = 5000, list(FIELDS)
    ids = victims(rows, 25)
    with database.engine.begin() as connection:
        fill(connection, provider.fetch().key, rows=rows, fields=fields)
    assert rotate_index_key(database.engine, database.keys).done  # which makes the tokens that these rows lack
    with database.engine.begin() as connection:
        before = spoil(connection, ids, fields)
    with database.engine.connect() as connection:
        spoilt = stored(connection, ids)
    report = rotate(database.engine, database.keys, pace=Pace(workers=2))
    assert report.rows == rows - len(ids)
    check_quarantine(database, report, ids, rows)
    (patients,) = (each for each in verify(database.engine, database.keys) if each.table == "patient_data")
    assert sorted(each.row_id for each in patients.failures) == [str(id_) for id_ in ids]
    again = command(environment)
    assert again.returncode == QUARANTINED
    with database.engine.begin() as connection:
        assert stored(connection, ids) == spoilt
        assert set(recorded(connection)) == {str(id_) for id_ in ids}
        said = str(connection.execute(text("SELECT r::text FROM key_rotations r")).all())
        repair(connection, before, fields)
    assert command(environment).returncode == 0
    with database.engine.connect() as connection:
        assert recorded(connection) == {}
        assert read_status(connection).tables["patient_data"] == {2: rows}
    said += caplog.text + again.stdout + again.stderr
    assert "Hidden" not in said
    assert not [id_ for id_, value in before.items() if value.hex()[40:80] in said]


def command(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Rotate from the shell."""
    return subprocess.run([*ROTATE, "--json"], env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.long
def test_a_thousand_spoilt_rows_in_a_million(database: Database, provider: VaultKeyProvider) -> None:
    """Exactly they are quarantined; printed is how long that takes beside the runs before and after it without any."""
    rows, fields = 1_000_000, ["ssn", "name"]
    ids = victims(rows, 1000)
    pace = Pace(workers=2)
    with database.engine.begin() as connection:
        fill(connection, provider.fetch().key, rows=rows, fields=fields)
    clean = [rotate(database.engine, database.keys, pace=pace)]
    retire(database.engine, database.keys, grace_days=0)
    with database.engine.begin() as connection:
        before = spoil(connection, ids, fields)
    with database.engine.connect() as connection:
        spoilt = stored(connection, ids)
    report = rotate(database.engine, database.keys, pace=pace)
    check_quarantine(database, report, ids, rows)
    with database.engine.begin() as connection:
        assert stored(connection, ids) == spoilt
        repair(connection, before, fields)
    repaired = rotate(database.engine, database.keys, pace=pace)
    assert (repaired.done, repaired.rows) == (True, len(ids))
    retire(database.engine, database.keys, grace_days=0)
    clean.append(rotate(database.engine, database.keys, pace=pace))
    assert all(each.done for each in clean)
    with database.engine.connect() as connection:
        assert recorded(connection) == {}
    factor = report.seconds / mean(each.seconds for each in clean)
    print(f"clean {[round(each.seconds, 1) for each in clean]} s, spoilt {report.seconds:.1f} s: x{factor:.2f}")


def test_the_reason_names_no_sqlstate_where_there_is_none() -> None:
    """Python found that such a value is not its row's: no server refused it."""
    moved, damaged = BindingError("x", table="t"), DecryptionError("x", table="t", sqlstate="39000")
    assert reason_of(moved, "t") == "of t could not be read, and are to be repaired or restored"
    assert reason_of(damaged, "t") == "of t could not be read (SQLSTATE 39000), and are to be repaired or restored"
