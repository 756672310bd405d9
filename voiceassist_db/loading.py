"""Values that the server can hold and Python cannot: where they are in a result, once the driver has failed to load it.

Owns the second look at a result that has arrived, which costs no further statement. Such values are ``infinity``, dates before the
year 1 or after 9999, and numbers or JSON of more digits or depth than Python reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from decimal import DecimalException
from types import TracebackType
from typing import Any, Final

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Transformer
from psycopg.pq import Escaping, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.types import array, datetime

from voiceassist_db.errors import ValueFormatError
from voiceassist_db.models.row_id import row_id

FAILURES: Final = (psycopg.DataError, ValueError, ArithmeticError, DecimalException, RecursionError)
"""What the driver's loaders raise."""

_WITH_ROWS: Final = {ExecStatus.TUPLES_OK, ExecStatus.TUPLES_CHUNK, ExecStatus.SINGLE_TUPLE}


class Unloadable:
    """A value that Python cannot hold, as the server wrote it. It may be a patient's, so it does not show itself.

    Args:
        text: The value as text, in the form that the server would read again.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "Unloadable(•••)"


class IntervalLoader(datetime.IntervalLoader):
    """Refuses an interval that psycopg's compiled loader takes for another: an infinite one for none, and of many years for fewer."""

    def load(self, data: Buffer) -> timedelta:
        """Return the interval.

        Raises:
            psycopg.DataError: Python cannot hold it.
        """
        if b"infinity" in bytes(data):
            raise psycopg.DataError("an infinite interval")
        return super().load(data)


class BytesArrayLoader(array.ArrayLoader):
    """Reads arrays of bytes under every ``bytea_output``. Under ``escape``, psycopg's compiled loader reads on behind an element."""

    base_oid = psycopg.adapters.types["text"].oid

    def load(self, data: Buffer) -> list[Any]:
        """Return the array, of any number of dimensions."""
        return [_as_bytes(each) for each in super().load(data)]


def _as_bytes(element: Any) -> Any:
    if element is None:
        return None
    if isinstance(element, list):
        return [_as_bytes(each) for each in element]
    # Under "escape" a backslash is written twice, so nothing else begins like this.
    is_hex = element.startswith("\\x")
    return bytes.fromhex(element[2:]) if is_hex else bytes(Escaping().unescape_bytea(element.encode()))


def result_of(cursor: Any, error: BaseException) -> PGresult | None:
    """Return the result that the driver failed to load; None where there is none, so that the error is another one's.

    Args:
        cursor: The driver's cursor, or SQLAlchemy's around it.
        error: What was raised.
    """
    driver = getattr(cursor, "_cursor", cursor)  # SQLAlchemy's for asyncio has the driver's inside
    if getattr(error, "sqlstate", None) is not None or not isinstance(driver, psycopg.Cursor | psycopg.AsyncCursor):
        return None
    result = _streamed(error.__traceback__) or driver.pgresult
    return result if result is not None and result.status in _WITH_ROWS else None


def _streamed(traceback: TracebackType | None) -> PGresult | None:
    """Return the rows at which ``Cursor.stream`` failed.

    It has discarded them by then, but for its own frame. Were that changed, the error would not name the row.
    """
    while traceback is not None:
        if traceback.tb_frame.f_code is psycopg.Cursor.stream.__code__:
            result: PGresult | None = traceback.tb_frame.f_locals.get("res")
            return result
        traceback = traceback.tb_next
    return None


def loaded(cursor: Any, result: PGresult) -> Iterator[tuple[Any, ...]]:
    """Yield a result's rows, with an :class:`Unloadable` for each value that Python cannot hold."""
    transformer = Transformer(getattr(cursor, "_cursor", cursor))
    columns = range(result.nfields)
    loaders = [transformer.get_loader(result.ftype(each), Format(result.fformat(each))) for each in columns]
    for row in range(result.ntuples):
        yield tuple(_load(loaders[each], result.get_value(row, each)) for each in columns)


def _load(loader: Any, data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return loader.load(data)
    except FAILURES:
        return Unloadable(bytes(data).decode(errors="replace"))


def unloadable(
    rows: Iterator[tuple[Any, ...]], names: Sequence[str], key: Sequence[int], table: str
) -> ValueFormatError | None:
    """Return the error of the first value that Python cannot hold; None where there is none.

    Args:
        rows: Rows as :func:`loaded` yields them.
        names: The names of their columns.
        key: Where the columns of the primary key are among them; empty where they are not.
        table: The table's name.
    """
    for row in rows:
        for name, value in zip(names, row, strict=True):
            if isinstance(value, Unloadable):
                named = row_id([text_of(row[at]) for at in key]) if key else None
                return value_error(table, name, named)
    return None


def text_of(part: Any) -> Any:
    """Return a part of a primary key as it is, or as the server wrote it where Python cannot hold it."""
    return part.text if isinstance(part, Unloadable) else part


PROBLEM: Final = "holds a value that Python cannot hold, such as infinity or a date outside the years 1 to 9999"


def value_error(table: str, column: str, row: str | None) -> ValueFormatError:
    """Return the error of a value that Python cannot hold."""
    where = f" of row {row}" if row is not None else ", in a row that `voiceassist-db verify` names,"
    return ValueFormatError(
        f"{table}.{column}{where} {PROBLEM}: correct it with an UPDATE in SQL",
        table=table,
        field=column,
        row_id=row,
    )
