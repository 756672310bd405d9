"""Columns of floating-point numbers and of arrays of them, read in a form that no setting of the session changes.

PostgreSQL writes such numbers with as many digits as ``extra_float_digits`` says, and so loses some where it is below 1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from psycopg import adapters
from psycopg.adapt import Transformer
from psycopg.pq import Format
from sqlalchemy import ARRAY, REAL, ColumnElement, Float, Integer, case, cast, func, literal_column
from sqlalchemy.engine import Dialect
from sqlalchemy.types import UserDefinedType

_FLOAT8: Final = adapters.types["float8"].oid
_FLOAT4: Final = adapters.types["float4"].oid
_FLOAT8_ARRAY: Final = adapters.types["float8"].array_oid
_REAL_BYTES: Final = 4
_REAL_DIGITS: Final = 9
"""Decimal digits that tell any two values of ``real`` apart."""


def exact(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the expression by which a plain column is read: of a float its bytes, of any other the column itself."""
    if isinstance(column.type, ARRAY) and isinstance(column.type.item_type, Float):
        return func.pg_catalog.array_send(column, type_=_SentArray(column.type)).label(column.key)
    if not isinstance(column.type, Float):
        return column
    sent = _Sent(column.type)
    # The size tells the type that the column has in the database, which may not be the model's.
    is_real = func.pg_catalog.pg_column_size(column, type_=Integer) == literal_column(str(_REAL_BYTES), Integer)
    real = func.pg_catalog.float4send(cast(column, REAL), type_=sent)
    return case((is_real, real), else_=func.pg_catalog.float8send(column, type_=sent)).label(column.key)


class _Sent(UserDefinedType[float]):
    """SQL ``bytea`` to the server; to Python what a float column gives."""

    cache_ok = False  # these statements are compiled once, elsewhere

    def __init__(self, column_type: Float[Any]) -> None:
        self.column_type = column_type  # SQLAlchemy copies a type by the names of its arguments

    def get_col_spec(self, **_: Any) -> str:
        return "BYTEA"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[bytes | None], Any]:
        convert = self.column_type.dialect_impl(dialect).result_processor(dialect, _FLOAT8)
        return _received if convert is None else lambda sent: convert(_received(sent))


class _SentArray(UserDefinedType[Any]):
    """The same for arrays, in the form of ``array_send``: dimensions, flags, type of the elements, bounds, elements."""

    cache_ok = False

    def __init__(self, column_type: ARRAY[Any]) -> None:
        self.column_type = column_type

    def get_col_spec(self, **_: Any) -> str:
        return "BYTEA"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[bytes | None], Any]:
        convert = self.column_type.dialect_impl(dialect).result_processor(dialect, _FLOAT8_ARRAY)

        def received(sent: bytes | None) -> Any:
            if sent is None:
                return None
            numbers = Transformer().get_loader(_FLOAT8_ARRAY, Format.BINARY).load(sent)
            if struct.unpack_from(">I", sent, _TYPE_AT)[0] == _FLOAT4:
                numbers = _shortest_of(numbers)
            return numbers if convert is None else convert(numbers)

        return received


_TYPE_AT: Final = 8


def _shortest_of(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_shortest_of(each) for each in numbers]
    return None if numbers is None else shortest(numbers)


def _received(sent: bytes | None) -> float | None:
    if sent is None:
        return None
    if len(sent) == _REAL_BYTES:
        return shortest(struct.unpack(">f", sent)[0])
    number: float = struct.unpack(">d", sent)[0]
    return number


def single(number: float) -> float:
    """Return the value of ``real`` that is nearest to a number.

    Raises:
        OverflowError: It is out of range.
    """
    return float(struct.unpack("f", struct.pack("f", number))[0])


def shortest(real: float) -> float:
    """Return a value of ``real`` as the server writes it: with the fewest digits that tell it apart."""
    if real != real:  # noqa: PLR0124  # NaN
        return real
    written = (float(f"{real:.{digits}g}") for digits in range(1, _REAL_DIGITS + 1))
    return next(each for each in written if single(each) == real)
