"""One rotation from its beginning, or from where the last run was interrupted, to its end.

Owns the order of steps: new key into the key store, then into the registry, then the rows, then a look whether any is left,
then verification. Each step finds out by itself whether it has been done, so a run that died anywhere is simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from sqlalchemy import Connection, Engine, func, insert, select, update
from uuid_utils.compat import uuid7

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import RotationError
from voiceassist_db.execution import execute, see_all_rows, translated
from voiceassist_db.keyring import KeyringSource, assemble, register, registered_keys
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.models import EncryptedTable, KeyRotationRow, table_of
from voiceassist_db.rotation.batches import rotate_table
from voiceassist_db.rotation.report import RotationReport
from voiceassist_db.verification import verify

_RUNS = table_of(KeyRotationRow)


def rotate(
    engine: Engine, keys: KeyringSource, *, on_progress: Callable[[int, int | None], None] | None = None
) -> RotationReport:
    """Rotate the encryption key, or finish the rotation that is unfinished. Readers and writers go on meanwhile.

    Args:
        engine: An engine whose connections may receive keys.
        keys: The keys; their provider is written to.
        on_progress: Called with rows re-encrypted, and how many there are.

    Raises:
        RotationError: The rotation before the last is not retired, so that a third key would be needed at once.
    """
    with translated(), engine.connect() as connection:
        tables = encrypted_tables(connection)
        stored = _begin(connection, keys, tables)
        old, new = stored.previous_version, stored.version
        assert old is not None  # _begin returns keys with a previous version
        run = _open_run(connection, old, new)
        started = time.perf_counter()
        rows = _rotate_rows(connection, stored, tables, on_progress)
        seconds = time.perf_counter() - started
        remaining = _remaining(connection, tables, new)
    keys.forget()
    verified = remaining == 0 and not any(report.failed for report in verify(engine, keys))
    with translated(), engine.connect() as connection:
        _close_run(connection, run, rows, finished=verified)
    return RotationReport(old, new, rows, seconds, remaining, verified)


def _begin(connection: Connection, keys: KeyringSource, tables: list[EncryptedTable]) -> KeySet:
    """Return the two keys to rotate between: those of an unfinished rotation, or the current one and a new one."""
    stored = keys.provider.fetch()
    assemble(connection, stored)
    known = registered_keys(connection)
    unfinished = (
        stored.version not in known
        or _unfinished_run(connection, stored.version) is not None
        or _remaining(connection, tables, stored.version) > 0
    )
    if not (unfinished and stored.previous_version is not None):
        if stored.previous_version is not None:
            raise RotationError(
                f"key version {stored.previous_version} is still in the key store since the rotation to "
                f"{stored.version}, which is complete. At most two versions are live, so that it must be retired first; this "
                "version of voiceassist-db cannot do that yet."
            )
        new = replace(
            stored,
            version=stored.version + 1,
            key=Key.generate(),
            previous_version=stored.version,
            previous_key=stored.key,
        )
        # The store first: a key that rows are under must never exist in this process alone.
        keys.provider.replace(stored, new)
        stored = keys.provider.fetch()
        if stored.versions() != new.versions():
            raise RotationError("the key store did not return the key that was just written to it: nothing was rotated")
    register(connection, stored)
    connection.commit()
    return stored


def _rotate_rows(
    connection: Connection,
    stored: KeySet,
    tables: list[EncryptedTable],
    on_progress: Callable[[int, int | None], None] | None,
) -> int:
    keyring = assemble(connection, stored)
    total = _remaining(connection, tables, stored.version)
    connection.rollback()
    rows = 0
    for table in tables:
        for batch in rotate_table(connection, keyring, table):
            rows += batch
            if on_progress:
                on_progress(rows, max(total, rows))
    return rows


def _remaining(connection: Connection, tables: list[EncryptedTable], version: int) -> int:
    see_all_rows(connection)
    remaining = 0
    for table in tables:
        count = select(func.count()).select_from(table.table).where(table.version != version)
        remaining += execute(connection, count, table=table.name).scalar_one()
    return remaining


def _open_run(connection: Connection, old: int, new: int) -> UUID:
    run = _unfinished_run(connection, new)
    if run is None:
        run = uuid7()
        values = {"id": run, "from_version": old, "to_version": new, "state": "running"}
        execute(connection, insert(_RUNS).values(values), table=_RUNS.name)
    connection.commit()
    return run


def _unfinished_run(connection: Connection, new: int) -> UUID | None:
    unfinished = select(_RUNS.c.id).where(_RUNS.c.to_version == new, _RUNS.c.state != "finished")
    run: UUID | None = execute(connection, unfinished, table=_RUNS.name).scalar()
    return run


def _close_run(connection: Connection, run: UUID, rows: int, *, finished: bool) -> None:
    values = {
        "state": "finished" if finished else "interrupted",
        "finished_at": func.now() if finished else None,
        "heartbeat_at": func.now(),
        "rows": _RUNS.c.rows + rows,
    }
    execute(connection, update(_RUNS).where(_RUNS.c.id == run).values(values), table=_RUNS.name)
    connection.commit()
