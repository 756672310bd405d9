"""Whether the model, the record and the lookup columns of a repository fit together; asked once, when its class is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Column, Table, UniqueConstraint

from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.requirements import DATES, needs_value, require_lookup, require_writable
from voiceassist_db.repositories.records import Record


def plain_columns(table: EncryptedTable, record: type[Record]) -> list[Column[Any]]:
    """Return the unencrypted columns that a record has, without the primary key.

    Raises:
        TypeError: The class was not made by ``@record``, or its fields are not those of the table.
        ValueError: The server would write a column in place of the record.
    """
    if record.__repr__ is not Record.__repr__:
        raise TypeError(f"{record.__name__} must be made by @record, whose repr shows no value")
    own = {*table.covered, table.version.name}
    own |= {each.name for each in table.key}
    plain = [each for each in table.table.c if each.name not in own]
    known = {each.name for each in dataclasses.fields(record)}  # type: ignore[arg-type]  # made by @record
    expected = {*table.fields, *(each.name for each in (*table.key, *plain))}
    optional = {each.name for each in plain if each.nullable or each.server_default is not None}
    lacking = set() if table.is_in_place else expected - optional - known
    if odd := (known - expected) | lacking:
        raise TypeError(
            f"{record.__name__} and the table {table.name} do not have the same fields: {', '.join(sorted(odd))}"
        )
    kept = [each for each in plain if each.name in known]
    require_writable(table, kept)
    if lost := {*table.fields, *(each.name for each in kept)} & _without_value(record):
        raise TypeError(
            f"{record.__name__}.{min(lost)} has init=False and no default, so that a new record has no value of it: only the primary key, "
            "created_at and updated_at are made by the server"
        )
    return kept


def _without_value(record: type[Record]) -> set[str]:
    """Return the fields that a new record lacks, but for the dates, which the server writes."""
    nothing = dataclasses.MISSING
    return {
        each.name
        for each in dataclasses.fields(record)  # type: ignore[arg-type]  # made by @record
        if not each.init and each.default is nothing and each.default_factory is nothing and each.name not in DATES
    }


def left_out(table: EncryptedTable, record: type[Record]) -> list[str]:
    """Return the columns that a new row needs and a record lacks, so that only the application's own model can insert rows."""
    known = {each.name for each in dataclasses.fields(record)} - set(DATES)  # type: ignore[arg-type]  # made by @record
    written = {*known, *(each.column for each in table.fields.values()), table.version.name}
    return [each.name for each in table.table.c if each.name not in written and needs_value(each)]


def lookup_columns(table: EncryptedTable, names: Iterable[str]) -> list[Column[Any]]:
    """Return the columns by which application code names one row.

    Raises:
        TypeError: Several rows may have the same values in them.
        ValueError: SQL and Python do not agree on which of their values are equal.
    """
    columns = [table.table.c[name] for name in names]
    if not _is_unique(table.table, columns):
        listed = ", ".join(each.name for each in columns)
        raise TypeError(
            f"lookup: several rows of {table.name} may have the same {listed}, which therefore names none of them: add a unique "
            "constraint, or choose other columns"
        )
    require_lookup(table, names)
    return columns


def _is_unique(table: Table, columns: Iterable[Column[Any]]) -> bool:
    constraints = (each.columns for each in table.constraints if isinstance(each, UniqueConstraint))
    indexes = (
        each.columns
        for each in table.indexes
        if each.unique
        and not each.dialect_options["postgresql"]["where"]
        and len(each.columns) == len(each.expressions)
    )
    return any(set(each) <= set(columns) for each in (table.primary_key.columns, *constraints, *indexes))
