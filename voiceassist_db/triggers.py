"""An UPDATE that compares what is stored with what was to be stored: a trigger can change a row on its way, or skip it.

A trigger that runs before the row can store NULL over an encrypted value, keep the old row, or skip the row. The server reports none of
it. Owns that statement and its errors. The statement costs a join, so its callers use it only where a table has such a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    TextClause,
    and_,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.types import UserDefinedType

from voiceassist_db.errors import PrimaryKeyChangedError, TriggerError
from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import EncryptedTable
from voiceassist_db.prepared import Prepared

CHANGES_UPDATES: Final = (
    "NOT t.tgisinternal AND t.tgenabled OPERATOR(pg_catalog.<>) 'D' "
    "AND (t.tgtype OPERATOR(pg_catalog.&) 19::pg_catalog.int2) OPERATOR(pg_catalog.=) 19"
)
"""The condition that a row ``t`` of ``pg_trigger`` can change rows of an UPDATE. Bits of ``pg_trigger.h``: 1 for each row, 2 before
it, 16 at UPDATE."""

CHANGES_INSERTS: Final = CHANGES_UPDATES.replace("19", "7")
"""The same of an INSERT: 4 at INSERT."""

FAMILY: Final = """
    RECURSIVE family(relid) AS (
        SELECT CAST(CAST(:table AS pg_catalog.regclass) AS pg_catalog.oid)
        UNION
        SELECT h.inhrelid FROM pg_catalog.pg_inherits h JOIN family f ON h.inhparent OPERATOR(pg_catalog.=) f.relid)
"""
"""A table, its partitions, and its children by ``INHERITS``: a statement on the table writes their rows too, by their triggers."""


def _named(condition: str) -> TextClause:
    return text(
        f"""
        WITH {FAMILY}
        SELECT DISTINCT CAST(t.tgname AS pg_catalog.text) AS name
        FROM pg_catalog.pg_trigger t JOIN family f ON f.relid OPERATOR(pg_catalog.=) t.tgrelid
        WHERE {condition}
        ORDER BY 1
        """  # noqa: S608  # of constants
    )


_AROUND_UPDATES: Final = (
    "NOT t.tgisinternal AND t.tgenabled OPERATOR(pg_catalog.<>) 'D' "
    "AND (t.tgtype OPERATOR(pg_catalog.&) 16::pg_catalog.int2) OPERATOR(pg_catalog.=) 16"
)
_OF_UPDATES: Final = _named(CHANGES_UPDATES)
_AFTER_UPDATES: Final = _named(_AROUND_UPDATES)
_OF_INSERTS: Final = _named(CHANGES_INSERTS)

ADVICE: Final = (
    "Nothing of this statement was kept. Change the trigger so that it leaves encrypted columns, their indexes, key_version and the primary "
    "key alone, or drop it."
)


def update_triggers(connection: Connection, table: EncryptedTable) -> list[str]:
    """Return the names of the triggers that can change a row of a table, its partitions or children, before an UPDATE stores it.

    Whoever has updated the table in the same transaction has a lock under which no other transaction can add one.
    """
    given = {"table": regclass(connection, table.table)}
    return list(execute(connection, _OF_UPDATES, given, table=table.name).scalars())


class _TID(UserDefinedType[str]):
    """A row's place, ``(page, number)``."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TID"


class GuardedUpdate(Prepared):
    """An UPDATE that fails where a trigger stores something else.

    It makes the values of the rows that it locks first, stores them, and compares. So it sees every change of an encrypted column, of
    an index, of the version and of the primary key.

    Args:
        table: The table.
        changes: New values of its columns.
        conditions: Which rows.
        skip_locked: Leave rows that other transactions have locked, instead of waiting for them.
    """

    def __init__(
        self,
        table: EncryptedTable,
        changes: Mapping[str, ColumnElement[Any]],
        *conditions: ColumnElement[bool],
        skip_locked: bool = False,
    ) -> None:
        self._of = table
        self._guarded = _guarded(table)
        place = literal_column("ctid", _TID())
        meant = (changes.get(each.name, each).label(f"meant_{at}") for at, each in enumerate(self._guarded))
        held = (
            select(place.label("place"), *meant)
            .where(*conditions)
            .with_for_update(key_share=True, skip_locked=skip_locked, of=table.table)
            .cte(table.beside("held"))
        )
        new = {each.name: held.c[f"meant_{at}"] for at, each in enumerate(self._guarded) if each.name in changes}
        differs = (
            _is_same(each, held.c[f"meant_{at}"]).is_not(true()).label(f"differs_{at}")
            for at, each in enumerate(self._guarded)
        )
        stored = (
            update(table.table)
            .values({**changes, **new})
            # By key, and by place, so that the server looks at these places only. Rows of two partitions can have the same place.
            .where(place == func.any(func.array(select(held.c.place).scalar_subquery())))
            .where(*(each == held.c[f"meant_{at}"] for at, each in enumerate(table.key)))
            .returning(*differs)
            .cte(table.beside("stored"))
        )
        counts = (func.count().filter(stored.c[f"differs_{at}"]) for at in range(len(self._guarded)))
        rows = select(func.count()).select_from(held).scalar_subquery()
        super().__init__(select(rows, func.count(), *counts).select_from(stored), table=table.name)

    def write(self, connection: Connection, parameters: dict[str, Any], *, is_locked: bool = False) -> int:
        """Execute it and return how many rows it wrote.

        Args:
            connection: A connection that may receive keys.
            parameters: Its parameters, which may be secret.
            is_locked: Whether this transaction has locked the rows before, so that only a trigger can keep one from being written.

        Raises:
            PrimaryKeyChangedError: A trigger stored another primary key. The caller must roll back.
            TriggerError: A trigger stored something else, or skipped a row. The caller must roll back.
        """
        held, written, *differing = self.rows(connection, parameters)[0]
        changed = [each for each, count in zip(self._guarded, differing, strict=True) if count]
        if changed:
            raise self._changed(connection, changed)
        if is_locked and written < held:
            raise TriggerError(
                f"{self._names(connection)} of {self._of.name} skips rows, so that they cannot be changed: it returns NULL. {ADVICE}",
                table=self._of.name,
            )
        count: int = written
        return count

    def _changed(self, connection: Connection, changed: list[Column[Any]]) -> TriggerError:
        if any(each.primary_key for each in changed):
            return key_changed(self._of)
        fields = {each.column: name for name, each in self._of.fields.items()}
        of_fields = [fields[each.name] for each in changed if each.name in fields]
        return TriggerError(
            f"{self._names(connection)} of {self._of.name} stores something else, or NULL, in {', '.join(each.name for each in changed)} "
            f"while rows are changed: the encrypted values would be lost. {ADVICE}",
            table=self._of.name,
            field=of_fields[0] if len(of_fields) == 1 else None,
        )

    def _names(self, connection: Connection) -> str:
        return _trigger_of(update_triggers(connection, self._of))


def _trigger_of(names: list[str]) -> str:
    return f"the trigger {names[0]}" if len(names) == 1 else f"one of the triggers {', '.join(names)}"


def changed_again(connection: Connection, table: EncryptedTable) -> TriggerError:
    """Return the error of a trigger that takes values from rows, or rows away, by a statement of its own."""
    given = {"table": regclass(connection, table.table)}
    names = list(execute(connection, _AFTER_UPDATES, given, table=table.name).scalars())
    return TriggerError(
        f"{_trigger_of(names)} of {table.name} stores something else, or NULL, by a statement of its own once rows are changed: encrypted values "
        f"would be lost. {ADVICE}",
        table=table.name,
    )


def rows_skipped(connection: Connection, table: EncryptedTable) -> TriggerError:
    """Return the error of an INSERT that the server did not carry out for each row: a trigger or a rule kept some out."""
    given = {"table": regclass(connection, table.table)}
    names = list(execute(connection, _OF_INSERTS, given, table=table.name).scalars())
    who = _trigger_of(names) if names else "a rule"
    return TriggerError(
        f"{who} of {table.name} skips rows, so that they are not added. Nothing of this statement was kept. Change it so that it "
        "lets each row pass, or drop it.",
        table=table.name,
    )


def key_changed(table: EncryptedTable) -> PrimaryKeyChangedError:
    """Return the error of a trigger that stores another primary key."""
    return PrimaryKeyChangedError(
        f"a trigger of {table.name} changes the primary key of a row while it is written, and its values are bound to the key "
        "that the application gave: nothing was written. Let the trigger leave the key alone, or drop it.",
        table=table.name,
    )


def _guarded(table: EncryptedTable) -> list[Column[Any]]:
    return [*table.key, table.version, *(table.table.c[name] for name in table.covered)]


def _is_same(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[bool]:
    # By an operator that can be named with its schema.
    return or_(one == other, and_(one.is_(None), other.is_(None)))
