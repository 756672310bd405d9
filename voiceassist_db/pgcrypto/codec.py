"""Between Python values and the plaintext that pgcrypto encrypts.

Owns the plaintext's layout. Types are converted here and never by a cast in SQL, whose error would print the plaintext.

Under scheme ``bound`` the plaintext is ``context ":" row-id ":" value``, for example
``patient_data.ssn:018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f:123-45-6789``; under ``direct`` it is the value alone. The row id is
the primary key's columns as text, joined by ``/``; in text columns ``%``, ``:`` and ``/`` stand as ``%25``, ``%3A``, ``%2F``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from voiceassist_db import values
from voiceassist_db.errors import BindingError, ValueFormatError
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, Kind
from voiceassist_db.models.row_id import row_id as row_id  # noqa: PLC0414  # exported: it is a part of the layout
from voiceassist_db.values import RefusedValueError

_BOUND: Final = Scheme.BOUND
Plaintext = str | bytes
"""What pgcrypto gets: bytes for a field of kind ``bytes``, text for every other."""


def prefix(context: str, row: str) -> str:
    """Return what stands before a bound value."""
    return f"{context}:{row}:"


Encoder = Callable[[Scheme, str, Any], Plaintext | None]
Decoder = Callable[[Scheme, str, Plaintext | None], Any]


def encoder(field: EncryptedField, *, most: int = values.MAX_ROW_BYTES) -> Encoder:
    """Return a function of scheme, row id and value that gives the plaintext; None stays None.

    Args:
        field: The field, which says the value's type and context.
        most: How many bytes a value may have.

    The function raises ValueError where a value is not of the field's type, or cannot be stored; the message does not hold
    the value.
    """
    to_text, context, bytes_ = _ENCODE[field.kind], field.context, field.kind is Kind.BYTES
    few = most // 4  # characters that surely have no more bytes

    def encode(scheme: Scheme, row: str, value: Any) -> Plaintext | None:
        if value is None:
            return None
        try:
            text: Any = to_text(value)
            if len(text) > few:
                values.require_size(text, most)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # The causes of a failed conversion quote what they could not convert, so only our own words go on.
            problem = error.args[0] if type(error) is RefusedValueError else f"is not a valid {field.kind.value} value"
        else:
            if scheme is not _BOUND:
                return text  # type: ignore[no-any-return]  # the kind's encoder gives str or bytes
            return prefix(context, row).encode() + text if bytes_ else f"{context}:{row}:{text}"
        raise ValueError(f"{field.name} {problem}")

    return encode


def decoder(field: EncryptedField, *, table: str) -> Decoder:
    """Return a function of scheme, row id and decrypted plaintext that gives the value; None stays None.

    Args:
        field: The field, which says the value's type and context.
        table: The table's name, for errors.

    The function raises BindingError where the plaintext was encrypted for another row or column, and ValueFormatError where
    it is not of the field's type.
    """
    to_value, context, bytes_ = _DECODE[field.kind], field.context, field.kind is Kind.BYTES
    as_it_is = to_value in {_text, bytes}

    def decode(scheme: Scheme, row: str, plaintext: Any) -> Any:
        if plaintext is None:
            return None
        if scheme is _BOUND:
            bound: Any = prefix(context, row).encode() if bytes_ else f"{context}:{row}:"
            length = len(plaintext)
            plaintext = plaintext.removeprefix(bound)
            if len(plaintext) == length:
                raise _moved(field, row, table)
        if as_it_is:
            return plaintext
        try:
            return to_value(plaintext)
        except RecursionError:
            is_stack = not values.text_is_deeper(plaintext)
        except (ValueError, InvalidOperation):
            is_stack = False  # raised below, where the cause, which quotes the plaintext, is no longer attached
        if is_stack:
            raise RecursionError(
                f"the call stack is too deep to read {table}.{field.name}: read it from fewer calls deep"
            )
        raise ValueFormatError(
            f"{table}.{field.name} of row {row} opens, but is not of type {field.kind.value}: write the value again with update(), or "
            "leave the field out with fields=",
            table=table,
            field=field.name,
            row_id=row,
        )

    return decode


def _moved(field: EncryptedField, row: str, table: str) -> BindingError:
    return BindingError(
        f"{table}.{field.name} of row {row} was encrypted for another row or column: somebody moved it. "
        "Restore the row from a backup and find out who wrote it.",
        table=table,
        field=field.name,
        row_id=row,
    )


_DATE: Final = frozenset({date})
"""A set, because freezegun puts a class of its own in the place of the name."""
_DATETIME: Final = frozenset({datetime})

_moment: Final = datetime.fromisoformat


def _encode_text(value: Any) -> str:
    text: str = value if type(value) is str else values.text(value)
    if "\x00" in text:
        raise RefusedValueError("holds a NUL character, which PostgreSQL's text cannot hold")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedValueError("holds a lone surrogate, which is not a character") from None
    return text


def _encode_bytes(value: Any) -> bytes:
    return value if type(value) is bytes else values.data(value)


def _encode_date(value: Any) -> str:
    day: date = value if type(value) in _DATE else values.date(value)
    return day.isoformat()


def _encode_datetime(value: Any) -> str:
    moment: datetime = value if type(value) in _DATETIME else values.datetime(value)
    if moment.utcoffset() is None:
        raise RefusedValueError("must be a datetime with a time zone")
    try:
        return moment.astimezone(UTC).isoformat()
    except OverflowError:
        raise RefusedValueError("is outside the years 1 to 9999 in UTC") from None


_TOO_MANY: Final = 10**values.MAX_DIGITS


def _encode_integer(value: Any) -> str:
    number: int = value if type(value) is int else values.integer(value)
    if not -_TOO_MANY < number < _TOO_MANY:
        raise RefusedValueError(f"is not a valid integer: it has more than {values.MAX_DIGITS} digits")
    return str(number)


def _encode_decimal(value: Any) -> str:
    return str(values.decimal(value))


_quoted: Final = json.encoder.encode_basestring
_to_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _flat_json(value: dict[Any, Any]) -> str | None:
    """Return an object of texts alone as the encoder would write it, in half of its time; None of any other."""
    parts = []
    for key, each in value.items():
        if type(key) is not str or type(each) is not str:
            return None
        parts.append(f"{_quoted(key)}:{_quoted(each)}")
    return f"{{{','.join(parts)}}}"


def json_text(value: Any) -> str:
    """Return a JSON value as text that reads back equal.

    Raises:
        RefusedValueError, ValueError, TypeError, RecursionError: There is none.
    """
    if type(value) is dict and (flat := _flat_json(value)) is not None:
        return _encode_text(flat)
    try:
        text = _encode_text(_to_json(value))
        # JSON turns a key that is a number into text and a tuple into a list, and of {1: …, "1": …} it loses one.
        is_same = _decode_json(text) == value
    except RecursionError:
        raise RefusedValueError(_TOO_DEEP) from None
    if not is_same:
        raise RefusedValueError("would not read back equal: JSON has text as keys, and lists")
    if text.count("{") + text.count("[") > values.MAX_JSON_DEPTH and values.is_deeper(value):
        raise RefusedValueError(_TOO_DEEP)
    if _MANY_DIGITS.search(text):
        json.loads(text, parse_int=_require_digits)
    return text


_TOO_DEEP: Final = f"is nested in more than {values.MAX_JSON_DEPTH} levels, or the call stack is too deep to write it"
_MANY_DIGITS: Final = re.compile(rf"[0-9]{{{values.MAX_DIGITS + 1}}}")


def _require_digits(text: str) -> None:
    if len(text.lstrip("-")) > values.MAX_DIGITS:
        raise RefusedValueError(f"has an integer of more than {values.MAX_DIGITS} digits")


def _text(text: str) -> str:
    return text


_scan_json: Final = json.JSONDecoder().raw_decode


def _decode_json(text: str) -> Any:
    # What we wrote has no white space around it; looking for that costs as much as reading an address.
    try:
        value, end = _scan_json(text)
    except json.JSONDecodeError:
        end = -1
    return value if end == len(text) else json.loads(text)


def _decode_datetime(text: str) -> datetime:
    moment = _moment(text)
    if moment.utcoffset() is None:
        raise ValueError("no time zone")
    return moment


def _decode_decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError("not finite")
    return number


_ENCODE: Final[dict[Kind, Callable[[Any], Plaintext]]] = {
    Kind.TEXT: _encode_text,
    Kind.BYTES: _encode_bytes,
    Kind.DATE: _encode_date,
    Kind.DATETIME: _encode_datetime,
    Kind.INTEGER: _encode_integer,
    Kind.DECIMAL: _encode_decimal,
    Kind.JSON: json_text,
}
_DECODE: Final[dict[Kind, Callable[[Any], Any]]] = {
    Kind.TEXT: _text,
    Kind.BYTES: bytes,
    Kind.DATE: date.fromisoformat,
    Kind.DATETIME: _decode_datetime,
    Kind.INTEGER: int,
    Kind.DECIMAL: _decode_decimal,
    Kind.JSON: _decode_json,
}
