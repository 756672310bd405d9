"""Values of Python's own types, out of the subclasses that libraries hand over.

Owns the rule: a value is stored as the data that its own type holds, or it is refused. How a subclass prints, formats or encodes itself
decides nothing. A subclass that does not compare equal to that data holds more, as ``pandas.Timestamp`` holds nanoseconds: it is refused.
"""

from __future__ import annotations

import datetime as dt
import re
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
_zone_of: Final = dt.datetime.tzinfo.__get__
_fold_of: Final = dt.datetime.fold.__get__
_NAIVE_LENGTH: Final = len("2026-01-02T03:04:05.678901")
_time_of: Final = dt.time.fromisoformat
_time_text: Final = dt.time.isoformat
_zone_of_time: Final = dt.time.tzinfo.__get__
_NAIVE_TIME_LENGTH: Final = len("03:04:05.678901")


MAX_JSON_DEPTH: Final = 50
"""Levels of lists and objects in a JSON value: far below those at which Python's recursion gives up, also on a deep call stack."""

MAX_DIGITS: Final = 640
"""Digits of an integer. Python reads so many under every setting (``sys.int_info.str_digits_check_threshold``)."""

MAX_ROW_BYTES: Final = 480 << 20
"""Bytes of all values of a row, 480 MiB, shared equally by its columns without a limit of their own. PostgreSQL holds 1 GiB of text, and
writes ciphertext as text of twice its length where it is read or dumped."""


class RefusedValueError(ValueError):
    """A refusal in our own words, which hold no value."""


def is_unicode(text: str) -> bool:
    """Say whether a text has characters only, and no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """Return a ``datetime`` in the same zone, or without one where the value has no offset from UTC."""
    if not isinstance(value, dt.datetime):
        raise RefusedValueError("must be a datetime.datetime")
    # Without the offset: of one below a second Python reads no more than the zone UTC.
    naive = _datetime_of(_datetime_text(value, timespec="microseconds")[:_NAIVE_LENGTH])
    # Compared in one zone: moments of two are never equal in an hour that clocks repeat or leave out (PEP 495).
    plain = _same(naive.replace(tzinfo=_zone_of(value), fold=_fold_of(value)), value)
    return naive if plain.utcoffset() is None else plain


def time(value: Any) -> dt.time:
    """Return a ``time`` in the same zone, or without one where the value has no offset from UTC."""
    if not isinstance(value, dt.time):
        raise RefusedValueError("must be a datetime.time")
    naive = _time_of(_time_text(value, timespec="microseconds")[:_NAIVE_TIME_LENGTH])
    plain = _same(naive.replace(tzinfo=_zone_of_time(value)), value)
    return naive if plain.utcoffset() is None else plain


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


def size_of(value: str | bytes) -> int:
    """Return a value's length in bytes, of text in UTF-8."""
    return len(value) if isinstance(value, bytes) or value.isascii() else len(value.encode(errors="surrogatepass"))


def require_size(value: str | bytes, most: int) -> None:
    """Refuse a value that is longer than so many bytes."""
    if len(value) * 4 > most and size_of(value) > most:
        raise RefusedValueError(f"is longer than {most:,} bytes")


def is_deeper(value: Any, levels: int = MAX_JSON_DEPTH) -> bool:
    """Say whether lists and objects are nested in more levels; without recursion."""
    level = [value]
    for _ in range(levels + 1):
        level = [each for each in level if isinstance(each, dict | list | tuple)]
        if not level:
            return False
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = list({id(child): child for each in children for child in each}.values())
    return True


_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|[\]}]')


def text_is_deeper(text: str, levels: int = MAX_JSON_DEPTH) -> bool:
    """Say the same of JSON as text."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0][0] != '"':
            depth += 1 if found[1] else -1
        if depth > levels:
            return True
    return False
