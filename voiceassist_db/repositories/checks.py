"""The checks of unencrypted columns: each gives back a value as the server will give it back, or refuses it in words that do not hold it.

Owns what a check does beside its type's rule (``rules``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column

from voiceassist_db.repositories.rules import ordinary_length, rule_of
from voiceassist_db.values import MAX_ROW_BYTES, RefusedValueError, require_size

Check = Callable[[Any], Any]


def checker(column: Column[Any], *, names_row: bool = False, most: int = MAX_ROW_BYTES) -> Check:
    """Return a function that gives back a value of a column as a plain type, or refuses it.

    Values are bound to the primary key: one that is written as the client spells it, and not as the server does, would never open again.

    Args:
        column: The column.
        names_row: Whether rows are named by it, so that None is refused.
        most: How many bytes text and binary data may have.

    The function raises ValueError; the message names the column and does not hold the value.
    """
    name, rule, kind, length = (
        column.name,
        rule_of(column.type),
        type(column.type).__name__,
        min(ordinary_length(column.type), most),
    )

    def check(value: Any) -> Any:
        if type(value) is str and len(value) <= length and value.isascii() and "\x00" not in value:
            return value
        if value is None and not names_row:
            return None
        try:
            plain = rule(value)
            if isinstance(plain, str | bytes):
                require_size(plain, most)
        except RefusedValueError as error:
            problem = error.args[0]
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            problem = f"is not a valid value of type {kind}"  # what another's error says may quote the value
        else:
            return plain
        raise ValueError(f"{name} {problem}")

    return check


def form_checker(name: str, check: Check, form: Check) -> Check:
    """Return a function that gives back a new value of a column, if it passes the column's check and has its form."""

    def checked(value: Any) -> Any:
        value = check(value)
        try:
            return form(value)
        except ValueError as error:
            problem = error.args[0]
        raise ValueError(f"{name} {problem}")

    return checked
