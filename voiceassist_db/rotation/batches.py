"""Re-encrypts the rows of one table in batches along its primary key; plaintext never leaves the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Integer, bindparam, select, tuple_, update

from voiceassist_db.execution import Prepared, see_all_rows
from voiceassist_db.keyring import Keyring
from voiceassist_db.models import EncryptedTable
from voiceassist_db.pgcrypto.expressions import column_key, parameters, reencrypt

BATCH_ROWS: Final = 1000


def rotate_table(connection: Connection, keyring: Keyring, table: EncryptedTable) -> Iterator[int]:
    """Bring a table's rows from the previous key to the current one; each batch is a transaction of its own.

    Args:
        connection: A connection that may receive keys, outside a transaction.
        keyring: The current key and the previous one.
        table: The table.

    Yields:
        Rows re-encrypted by each batch.
    """
    assert keyring.previous is not None  # the run has seen to it
    first, later, batch = _bounds(table, after=False), _bounds(table, after=True), _batch(table, keyring)
    keys = parameters(keyring, table, tuple(table.fields.values()))
    after: tuple[Any, ...] | None = None
    while True:
        bound = {f"after_{position}": value for position, value in enumerate(after or ())}
        see_all_rows(connection)
        page = (later if after is not None else first).rows(connection, bound | {"limit": BATCH_ROWS})
        if not page:
            connection.rollback()
            return
        after = page[-1]
        low = {f"low_{position}": value for position, value in enumerate(page[0])}
        high = {f"high_{position}": value for position, value in enumerate(after)}
        rows = batch.count(connection, keys | low | high)
        connection.commit()
        yield rows


def _key(table: EncryptedTable, prefix: str) -> Any:
    return tuple_(*(bindparam(f"{prefix}_{position}", type_=each.type) for position, each in enumerate(table.key)))


def _bounds(table: EncryptedTable, *, after: bool) -> Prepared:
    statement = select(*table.key).order_by(*table.key).limit(bindparam("limit"))
    if after:
        statement = statement.where(tuple_(*table.key) > _key(table, "after"))
    return Prepared(statement, table=table.name)


def _batch(table: EncryptedTable, keyring: Keyring) -> Prepared:
    assert keyring.previous is not None
    changes: dict[str, Any] = {table.version.name: bindparam("version_current", type_=Integer)}
    for field in table.fields.values():
        changes[field.column] = reencrypt(
            table,
            field,
            column_key(table, field, "previous"),
            keyring.previous.scheme,
            column_key(table, field, "current"),
        )
    key = tuple_(*table.key)
    statement = (
        update(table.table)
        .values(changes)
        .where(key >= _key(table, "low"), key <= _key(table, "high"))
        # Repeated here, though the range was just read: a row that a writer has moved on since is not ours to touch.
        .where(table.version == bindparam("version_previous", type_=Integer))
    )
    return Prepared(statement, table=table.name)
