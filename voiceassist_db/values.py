"""Values of Python's own types, out of the subclasses that libraries hand over.

Owns the rule: a value is stored as the data that its own type holds, or it is refused. How a subclass prints, formats or encodes itself
decides nothing. A subclass that does not compare equal to that data holds more, as ``pandas.Timestamp`` holds nanoseconds: it is refused.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeVar
from uuid import UUID

T = TypeVar("T")

# Methods of the types themselves: freezegun puts classes of its own in the place of the types.
_date_of: Final = dt.date.fromordinal
_ordinal: Final = dt.date.toordinal
_datetime_of: Final = dt.datetime.fromisoformat
_datetime_text: Final = dt.datetime.isoformat
_time_of: Final = dt.time.fromisoformat
_time_text: Final = dt.time.isoformat


class RefusedValueError(ValueError):
    """A refusal in our own words, which hold no value."""


def text(value: Any) -> str:
    """Return the characters of a ``str`` or of an instance of a subclass."""
    if not isinstance(value, str):
        raise RefusedValueError("must be a str")
    return _same(str.__str__(value), value)


def data(value: Any) -> bytes:
    """Return the bytes of a ``bytes``, ``bytearray`` or ``memoryview``, whose elements must be bytes."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise RefusedValueError("must be bytes")
    return _same(memoryview(value).tobytes(), value)


def boolean(value: Any) -> bool:
    """Return a ``bool``. ``1`` is none, and neither is ``numpy.True_``."""
    if not isinstance(value, bool):
        raise RefusedValueError("must be a bool")
    return value


def integer(value: Any) -> int:
    """Return an ``int``. ``True`` is none, and neither is a ``numpy.int64``, which is no subclass."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedValueError("must be an int")
    return _same(int.__int__(value), value)


def floating(value: Any) -> float:
    """Return a ``float``, or an ``int`` as one that is equal."""
    if not isinstance(value, float):
        try:
            return _same(float(whole := integer(value)), whole)
        except OverflowError:
            raise RefusedValueError("is out of range") from None
    number = float.__float__(value)
    return _same(number, value) if number == number else number  # noqa: PLR0124  # NaN equals nothing


def decimal(value: Any) -> Decimal:
    """Return a finite ``Decimal``, with all of its digits and its exponent."""
    if not isinstance(value, Decimal) or not Decimal.is_finite(value):
        raise RefusedValueError("must be a finite decimal.Decimal")
    return _same(Decimal(value), value)


def date(value: Any) -> dt.date:
    """Return a ``date``. A ``datetime`` is none."""
    if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
        raise RefusedValueError("must be a datetime.date")
    return _same(_date_of(_ordinal(value)), value)


def datetime(value: Any) -> dt.datetime:
    """Return a ``datetime`` with the same offset from UTC, or without one where the value has none."""
    if not isinstance(value, dt.datetime):
        raise RefusedValueError("must be a datetime.datetime")
    return _same(_datetime_of(_datetime_text(value)), value)


def time(value: Any) -> dt.time:
    """Return a ``time``."""
    if not isinstance(value, dt.time):
        raise RefusedValueError("must be a datetime.time")
    return _same(_time_of(_time_text(value)), value)


def timedelta(value: Any) -> dt.timedelta:
    """Return a ``timedelta``."""
    if not isinstance(value, dt.timedelta):
        raise RefusedValueError("must be a datetime.timedelta")
    return _same(_ZERO.__add__(value), value)


def uuid(value: Any) -> UUID:
    """Return a ``UUID``."""
    if type(value) is UUID:
        return value
    if not isinstance(value, UUID):
        raise RefusedValueError(f"must be of type UUID, not {type(value).__name__}")
    return _same(UUID(int=value.int), value)


_ZERO: Final = dt.timedelta()


def _same(plain: T, value: Any) -> T:
    """Return the plain value, if the value that it was made of says that it is the same."""
    if type(plain) is type(value):
        return plain
    try:
        is_same = bool(plain == value) and not (isinstance(value, Enum) and plain != value.value)
    except (ValueError, TypeError, ArithmeticError):
        is_same = False
    if not is_same:
        raise RefusedValueError(
            f"is a {type(value).__name__}, which holds something else than a {type(plain).__name__}"
        )
    return plain
