"""What PostgreSQL's ordinary types give back as it was given: one rule for each. Whatever they would change is refused.

A rule is a function that gives back a value as a plain type, or raises RefusedValueError. Values of other types, and of a
``TypeDecorator``, are the application's own affair, but for text that PostgreSQL cannot hold.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Time,
    Uuid,
)
from sqlalchemy.dialects.postgresql import DOMAIN, INTERVAL, JSONB, REAL
from sqlalchemy.types import TypeEngine

from voiceassist_db import values
from voiceassist_db.pgcrypto import codec
from voiceassist_db.repositories.floats import shortest, single
from voiceassist_db.values import RefusedValueError

Rule = Callable[[Any], Any]

_ORDINARY_CHARACTERS: Final = 1 << 20

_WHOLE_DIGITS: Final = 131_072
_SCALE: Final = 16_383
"""Digits of ``numeric`` before and after the decimal point (PostgreSQL's manual, Numeric Types)."""

_REAL_BITS: Final = 24
"""``FLOAT(24)``, and with fewer bits, is ``real``."""

_DECIMAL_DIGITS: Final = 10
"""Digits after the decimal point with which SQLAlchemy makes a Decimal of a float (``Float.decimal_return_scale``)."""

_EARLIEST: Final = dt.datetime(1, 1, 2, tzinfo=dt.UTC)
_LATEST: Final = dt.datetime(9999, 12, 30, tzinfo=dt.UTC)
"""Moments between these are in the years 1 to 9999 in the time zone of every session."""

_MOST_OFFSET: Final = dt.timedelta(hours=16)
"""``MAX_TZDISP_HOUR`` in PostgreSQL's ``timestamp.h`` is 15."""

_DIMENSIONS: Final = 6
"""``MAXDIM`` in PostgreSQL's ``c.h`` and ``array.h``."""


def rule_of(type_: TypeEngine[Any]) -> Rule:
    """Return the rule of a column's type. None is no value to it."""
    if isinstance(type_, DOMAIN):
        return rule_of(type_.data_type)
    make = next((make for kind, make in _RULES if isinstance(type_, kind)), None)
    return make(type_) if make else _as_given


def ordinary_length(type_: TypeEngine[Any]) -> int:
    """Return up to which length ASCII text without NUL is sure to pass the rule of a type; -1 where none is."""
    if not isinstance(type_, String) or isinstance(type_, Enum | CHAR):
        return -1
    return type_.length or _ORDINARY_CHARACTERS


def is_unlimited(column: Column[Any]) -> bool:
    """Say whether a column's values may be of any length."""
    type_ = column.type
    return isinstance(type_, LargeBinary | JSON | ARRAY) or (isinstance(type_, String) and type_.length is None)


# --- text ------------------------------------------------------------------------------------------------------------


def _sound(value: Any) -> str:
    text = values.text(value)
    if "\x00" in text or not values.is_unicode(text):
        raise RefusedValueError("holds a NUL character or a lone surrogate, which PostgreSQL's text cannot hold")
    return text


def _as_given(value: Any) -> Any:
    return _sound(value) if isinstance(value, str) else value


def _text(type_: String) -> Rule:
    is_padded = isinstance(type_, CHAR)
    limit = 1 if is_padded and type_.length is None else type_.length

    def check(value: Any) -> str:
        text = _sound(value)
        # PostgreSQL cuts blanks at the end of a longer text, and pads a shorter one of char(n).
        if limit is not None and (len(text) > limit or (is_padded and len(text) < limit)):
            how_many = "exactly" if is_padded else "at most"
            raise RefusedValueError(f"must have {how_many} {limit} characters, not {len(text)}")
        return text

    return check


def _enum(type_: Enum) -> Rule:
    members, names = type_.enum_class, frozenset(type_.enums)

    def check(value: Any) -> Any:
        if members is not None and not isinstance(value, members):
            raise RefusedValueError(f"must be a member of {members.__name__}")
        if members is None and (value := values.text(value)) not in names:
            raise RefusedValueError("must be one of the values of its enumeration")
        return value

    return check


def _uuid(type_: Uuid[Any]) -> Rule:
    def check(value: Any) -> str:
        text = values.text(value)
        if str(UUID(text)) != text:
            raise RefusedValueError("must be a UUID in lower case with hyphens, as PostgreSQL writes it")
        return text

    return values.uuid if type_.as_uuid else check


# --- numbers ---------------------------------------------------------------------------------------------------------


def _integer(type_: Integer) -> Rule:
    bits = 16 if isinstance(type_, SmallInteger) else 64 if isinstance(type_, BigInteger) else 32
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1

    def check(value: Any) -> int:
        number = values.integer(value)
        if not least <= number <= most:
            raise RefusedValueError(f"must be from {least} to {most}")
        return number

    return check


def is_real(type_: TypeEngine[Any]) -> bool:
    """Say whether a column is declared as PostgreSQL's ``real``, under whichever name."""
    return isinstance(type_, REAL) or (isinstance(type_, Float) and 0 < (type_.precision or 0) <= _REAL_BITS)


def _float(type_: Float[Any]) -> Rule:
    is_single = is_real(type_)

    def check(value: Any) -> float:
        number = values.floating(value)
        if is_single and not _is_real(number):
            raise RefusedValueError("has more digits than type real keeps")
        return number

    digits = _DECIMAL_DIGITS if type_.decimal_return_scale is None else type_.decimal_return_scale

    def check_decimal(value: Any) -> Decimal:
        given = values.decimal(value)
        if Decimal(f"{check(float(given)):.{digits}f}") != given:
            raise RefusedValueError(
                f"has more digits than a float keeps, or more than {digits} after its decimal point"
            )
        return given

    return check_decimal if type_.asdecimal else check


def _is_real(number: float) -> bool:
    """Say whether ``real`` gives a number back."""
    if number != number:  # noqa: PLR0124  # NaN
        return True
    try:
        return shortest(single(number)) == number
    except OverflowError:
        return False


def _numeric(type_: Numeric[Any]) -> Rule:
    scale = None if type_.precision is None else type_.scale or 0
    whole = _WHOLE_DIGITS if type_.precision is None else type_.precision - (type_.scale or 0)

    def check(value: Any) -> Any:
        if type_.asdecimal:
            given = values.decimal(value) if isinstance(value, Decimal) else Decimal(values.integer(value))
            _require_digits(given, whole, scale)
            return given
        given = values.decimal(Decimal(repr(values.floating(value))))
        _require_digits(given, whole, scale)
        return given  # not as a float, of which PostgreSQL takes 15 digits into a numeric

    return check


def _require_digits(number: Decimal, whole: int, scale: int | None) -> None:
    """Refuse a number with more digits before or after the decimal point than a column keeps; zeros at its end are none."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # of a finite number
    is_zero = not any(digits)
    if (number.adjusted() >= whole and not is_zero) or exponent >= _WHOLE_DIGITS:
        raise RefusedValueError(f"must have at most {whole} digits before the decimal point")
    if -exponent > _SCALE or (scale is not None and -exponent > scale and any(digits[exponent + scale :])):
        raise RefusedValueError(
            f"must have at most {_SCALE if scale is None else scale} digits after the decimal point"
        )


# --- dates and times -------------------------------------------------------------------------------------------------


def _datetime(type_: DateTime) -> Rule:
    has_zone = type_.timezone

    def check(value: Any) -> dt.datetime:
        moment = values.datetime(value)
        if (moment.tzinfo is not None) is not has_zone:  # the server would add, or take away, the session's own
            raise RefusedValueError(f"must be a datetime {'with' if has_zone else 'without'} a time zone")
        if has_zone and not _EARLIEST <= moment <= _LATEST:
            raise RefusedValueError("is outside the years 1 to 9999 in some time zone")
        _require_microseconds(moment.microsecond, type_)
        # The server takes no offset of 16 hours or more, and ignores its fraction of a second.
        return moment.astimezone(dt.UTC) if has_zone else moment

    return check


def _time(type_: Time) -> Rule:
    has_zone = type_.timezone

    def check(value: Any) -> dt.time:
        moment = values.time(value)
        if (moment.tzinfo is not None) is not has_zone:
            raise RefusedValueError(f"must be a time {'with' if has_zone else 'without'} an offset from UTC")
        offset = moment.utcoffset() or dt.timedelta()
        if abs(offset) >= _MOST_OFFSET or offset.microseconds:
            raise RefusedValueError("must have an offset from UTC of whole seconds, and of less than 16 hours")
        _require_microseconds(moment.microsecond, type_)
        return moment

    return check


def _interval(type_: Interval | INTERVAL) -> Rule:
    if getattr(type_, "fields", None):
        return _as_given

    def check(value: Any) -> dt.timedelta:
        span = values.timedelta(value)
        _require_microseconds(span.microseconds, type_)
        return span

    return check


def _require_microseconds(microseconds: int, type_: TypeEngine[Any]) -> None:
    """Refuse digits of a second that a column rounds away."""
    precision = getattr(type_, "precision", None)
    if precision is None:
        precision = getattr(type_, "second_precision", None)
    if precision is not None and microseconds % 10 ** (6 - precision):
        raise RefusedValueError(f"must have at most {precision} digits after its seconds")


# --- the rest --------------------------------------------------------------------------------------------------------


_JSONB_CHANGES: Final = re.compile(r'"(?:[^"\\]|\\.)*?\\u0000|"(?:[^"\\]|\\.)*"|(e\+)')
"""In JSON as Python writes it: NUL in a string, which ``jsonb`` refuses; a whole string; a float that it gives back as an integer."""


def _json(type_: JSON) -> Rule:
    is_binary = isinstance(type_, JSONB)

    def check(value: Any) -> Any:
        text = codec.json_text(value)
        if is_binary and any(found[1] or found[0][-1] != '"' for found in _JSONB_CHANGES.finditer(text)):
            raise RefusedValueError("holds a NUL character, or a float of 1e16 or more, which jsonb cannot give back")
        return value

    return check


def _array(type_: ARRAY[Any]) -> Rule:
    rule = rule_of(type_.item_type)
    kind: Any = tuple if type_.as_tuple else list  # as they come back
    most = type_.dimensions or _DIMENSIONS

    def check(value: Any) -> list[Any]:
        if not isinstance(value, kind):
            raise RefusedValueError(f"must be a {kind.__name__}")
        if _dimensions(value, kind, most) != type_.dimensions and type_.dimensions and value:
            raise RefusedValueError(f"must be a {kind.__name__} of {most} dimensions")
        return elements(value, most)

    def elements(value: Any, levels: int) -> list[Any]:
        if levels == 1:
            return [each if each is None else rule(each) for each in value]
        return [
            each if each is None else elements(each, levels - 1) if isinstance(each, kind) else rule(each)
            for each in value
        ]

    return check


def _dimensions(value: Any, kind: Any, most: int) -> int:
    """Return how many dimensions an array has. Refuse what none is: of different lengths, beside other elements, or empty.

    Args:
        value: The array.
        kind: The type of the sequences that are its levels.
        most: How many levels there can be. What is below is an element.
    """
    level, dimensions = value, 1
    while dimensions < most and any(isinstance(each, kind) for each in level):
        dimensions += 1
        lengths = {len(each) if isinstance(each, kind) else 0 for each in level}
        if len(lengths) > 1 or 0 in lengths:
            name = kind.__name__
            raise RefusedValueError(f"must have {name}s of one length, none empty, in at most {most} levels")
        level = [each for inner in level for each in inner]
    return dimensions


_RULES: Final[tuple[tuple[Any, Callable[[Any], Rule]], ...]] = (
    (Enum, _enum),
    (String, _text),
    (LargeBinary, lambda _: values.data),
    (Uuid, _uuid),
    (Boolean, lambda _: values.boolean),
    (Integer, _integer),
    (Float, _float),
    (Numeric, _numeric),
    (DateTime, _datetime),
    (Date, lambda _: values.date),
    (Time, _time),
    (Interval, _interval),
    (INTERVAL, _interval),
    (JSON, _json),
    (ARRAY, _array),
)
"""The first type that a column's is an instance of decides."""
