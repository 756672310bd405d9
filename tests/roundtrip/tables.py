"""Tables of every key type and key shape, each with a field of every kind, and the rows that are put into them.

The declarations are those of ``tests/declarations``; the keys are those of ``keys``.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import Engine

from tests.declarations.strategies import Declaration, Field, Plain
from tests.roundtrip.keys import KEY_BYTES, handed_over, keys
from tests.roundtrip.oracle import BOUND, DIRECT, Column, Secret, named, plaintext, row_id
from tests.roundtrip.searched import searched
from tests.roundtrip.values import NOTHING, Sample, by_chance, specials
from voiceassist_db import PatientRepository, Repository
from voiceassist_db.models import Kind, table_of

KINDS: Final = tuple(each.value for each in Kind)
SEARCHED: Final = ("exact", "mrn", "name", "ssn")
FIELDS: Final = {f"as_{kind}": Field(kind=Kind(kind)) for kind in KINDS} | {
    f"by_{normaliser}": Field(kind=Kind.TEXT, normaliser=normaliser, is_unique=normaliser == "mrn")
    for normaliser in SEARCHED
}
"""The fields of every table: one of each kind, and one of each normaliser."""
PATIENT_FIELDS: Final = {
    **{name: Field(kind=Kind.TEXT, normaliser=name, is_unique=name == "mrn") for name in ("ssn", "mrn", "name")},
    "date_of_birth": Field(kind=Kind.DATE),
    "address": Field(kind=Kind.JSON),
}


@dataclass(frozen=True)
class Shape:
    """How the rows of a table are named.

    Attributes:
        name: The table's name.
        key: The columns of the primary key, and their types.
        lookup: The type of a plain column by which rows are named; None for the primary key.
    """

    name: str
    key: dict[str, str]
    lookup: str | None = None

    @property
    def most_bytes(self) -> int:
        """How long a part of its key or its lookup value may be."""
        return KEY_BYTES // (len(self.key) + (self.lookup is not None))


SHAPES: Final = (
    Shape("by_uuid", {"id": "uuid"}),
    Shape("by_text", {"code": "text"}),
    Shape("by_date", {"day": "date"}),
    Shape("by_three", {"place": "varchar", "day": "date", "number": "bigint"}),
    Shape("by_integer", {"number": "integer"}),
    Shape("by_bigint", {"number": "bigint"}),
    Shape("by_collated", {"code": "collated"}),
    Shape("by_varchar", {"code": "varchar"}),
    Shape("by_two", {"owner": "uuid", "code": "text"}),
    Shape(
        'By every "type" %s',
        {"a": "uuid", "b": "integer", "c": "bigint", "d": "text", "e": "collated", "f": "varchar", "g": "date"},
    ),
    Shape("lookup_text", {"id": "uuid"}, "text"),
    Shape("lookup_varchar", {"id": "bigint"}, "varchar"),
    Shape("lookup_integer", {"day": "date"}, "integer"),
    Shape("lookup_bytes", {"place": "text"}, "bytes"),
)


@dataclass
class Row:
    """A row as it must be.

    Attributes:
        key: Its primary key.
        code: Its lookup value, if the table has such a column.
        cells: A sample of each field.
        without_token: The searchable fields that have no token yet.
        by: The operation that wrote each field.
    """

    key: tuple[Any, ...]
    code: Any
    cells: dict[str, Sample]
    without_token: set[str] = field(default_factory=set)
    by: dict[str, str] = field(default_factory=dict)

    def told(self, name: str) -> str:
        """Return what a message says of one of its values."""
        return f"{self.cells[name].group}, row {self.key!r}, written by {self.by[name]}"


@dataclass
class Held:
    """A table, and the rows that it must hold.

    Attributes:
        shape: How its rows are named.
        rows: Its repository.
        fields: Its encrypted fields.
        keys: New primary keys.
        codes: New values of the lookup column; None where there is none.
        chance: What decides, by the seed.
        code: The lookup column's name.
        held: Its rows by lookup key.
    """

    shape: Shape
    rows: type[Repository[Any]]
    fields: dict[str, Field]
    keys: Iterator[tuple[Any, ...]]
    codes: Iterator[Any]
    chance: random.Random
    code: str = "code"
    held: dict[Any, Row] = field(default_factory=dict)

    @classmethod
    def declare(cls, shape: Shape, chance: random.Random) -> Held:
        """Declare the table of a shape."""
        plain = {} if shape.lookup is None else {"code": Plain(type_=shape.lookup, is_lookup=True)}
        declaration = Declaration(schema=None, table=shape.name, key=shape.key, fields=FIELDS, plain=plain)
        new = keys(tuple(shape.key.values()), shape.most_bytes, chance)
        codes: Iterator[Any] = itertools.repeat(None)
        if shape.lookup is not None:
            codes = (code for (code,) in keys((shape.lookup,), shape.most_bytes, chance))
        return cls(shape, declaration.declare(), FIELDS, new, codes, chance)

    @classmethod
    def of_patients(cls, chance: random.Random) -> Held:
        """Return the product's own table of patients."""
        shape = Shape("patient_data", {"id": "uuid"}, "text")
        codes = (f"{chance.choice(('PT-', 'pt ', 'Zoë', '病人', '%s:/'))}{number}" for number in itertools.count())
        return cls(
            shape,
            PatientRepository,
            PATIENT_FIELDS,
            keys(("uuid",), shape.most_bytes, chance),
            codes,
            chance,
            "patient_id",
        )

    def create(self, engine: Engine) -> None:
        """Create it."""
        table_of(self.rows.model).create(engine)

    def new(self, cells: dict[str, Sample]) -> Row:
        """Return a row of a new key."""
        return Row(next(self.keys), next(self.codes), cells)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The encrypted columns by field, as the documentation says that they are called and bound."""
        table = "".join(each if each.isalnum() or each == "_" else f"-{ord(each):02x}" for each in self.shape.name)
        return {
            name: Column(
                f"{name}_encrypted", each.kind.value, f"{table}.{name}", f"{name}_index" if each.normaliser else None
            )
            for name, each in self.fields.items()
        }

    def subsets(self) -> list[tuple[str, ...]]:
        """Return fields that are read or changed together: each alone, all, and every second one."""
        return [*((name,) for name in self.fields), tuple(self.fields), tuple(self.fields)[::2]]

    def lookup_key(self, row: Row) -> Any:
        """Return what a row is named by."""
        named = self.arguments(row)
        return named[0] if len(named) == 1 else named

    def arguments(self, row: Row) -> tuple[Any, ...]:
        """Return the same as arguments."""
        return (row.code,) if self.shape.lookup is not None else row.key

    def given(self, row: Row) -> tuple[Any, ...]:
        """Return the same as a library may hand it over."""
        return tuple(handed_over(part, self.chance) for part in self.arguments(row))

    def row_of(self, record: Any) -> Row:
        """Return the row that has the lookup key of a record."""
        names = list(self.shape.key) if self.shape.lookup is None else [self.code]
        named = tuple(getattr(record, name) for name in names)
        return self.held[named[0] if len(named) == 1 else named]

    def record(self, row: Row, **instead: Any) -> Any:
        """Return a row as a record, with other values for some fields."""
        values = dict(zip(self.shape.key, row.key, strict=True))
        if self.shape.lookup is not None:
            values[self.code] = row.code
        values = {name: handed_over(part, self.chance) for name, part in values.items()}
        return self.rows.record(**values | {name: each.given for name, each in row.cells.items()} | instead)

    def plaintext(self, row: Row, name: str, *, is_bound: bool) -> str | bytes | None:
        """Return the plaintext that must be stored for a field of a row."""
        column, value = self.columns[name], row.cells[name].value
        if value is None:
            return None
        text, before = plaintext(column.kind, value), f"{column.context}:{row_id(row.key)}:" if is_bound else ""
        return before.encode() + text if isinstance(text, bytes) else before + text


class Pool:
    """The samples of each field: special ones, each operation a share of them in turn, or any.

    Args:
        chance: What decides.
        stride: How many turns an operation takes to have all special values; with 1 it has them for every table.
    """

    def __init__(self, chance: random.Random, stride: int) -> None:
        self._chance = chance
        self._stride = stride
        self._specials = {kind: specials(kind) for kind in KINDS}
        self._most = max(map(len, self._specials.values()))
        self._turns: Counter[str] = Counter()
        self._number = 0

    def turn(self, operation: str) -> range:
        """Return the positions of the special values that an operation has next."""
        self._turns[operation] += 1
        return range(self._turns[operation] % self._stride, self._most, self._stride)

    def cells(self, fields: dict[str, Field], position: int | None = None) -> dict[str, Sample]:
        """Return the samples of a row: the special ones of a position, or any."""
        self._number += 1
        cells: dict[str, Sample] = {}
        for name, each in fields.items():
            special = self._specials[each.kind.value]
            if each.normaliser is not None:
                cells[name] = NOTHING if self._number % 17 == 16 else self._searched(each)
            elif position is not None:
                cells[name] = special[position % len(special)]
            else:
                cells[name] = by_chance(each.kind.value, self._chance)
        return cells

    def _searched(self, each: Field) -> Sample:
        normaliser = each.normaliser or ""
        # Some SSNs and names are of two rows.
        return searched(
            normaliser, self._number - (self._number % 2 if normaliser in {"ssn", "name"} else 0), self._chance
        )


def insert(
    connection: psycopg.Connection[Any],
    held: Held,
    rows: Sequence[Row],
    secret: Secret,
    version: int,
    options: Callable[[], str],
    *,
    is_bound: bool,
) -> None:
    """Insert rows by SQL of our own: under scheme ``direct`` as the guide does, without tokens; or bound, with tokens."""
    plain = [*held.shape.key, *([held.code] if held.shape.lookup else [])]
    indexed = {name: each for name, each in held.columns.items() if each.index and is_bound}
    names = [
        *plain,
        *(each.index or "" for each in indexed.values()),
        *(each.name for each in held.columns.values()),
        "key_version",
    ]
    places: list[sql.Composable] = [sql.SQL("%s")] * (len(plain) + len(indexed))
    places += [
        sql.SQL("pgcrypto.{}(%s, %s, %s)").format(
            sql.Identifier("pgp_sym_encrypt_bytea" if each.kind == "bytes" else "pgp_sym_encrypt")
        )
        for each in held.columns.values()
    ]
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}, %s)").format(
        named(held.shape.name), sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join(places)
    )
    parameters = []
    for row in rows:
        forms = {name: row.cells[name].form for name in indexed}
        values = [*row.key, *([row.code] if held.shape.lookup else [])]
        values += [None if form is None else secret.token(indexed[name].context, form) for name, form in forms.items()]
        for name, column in held.columns.items():
            password = secret.password(version, BOUND if is_bound else DIRECT, column.context)
            values += [held.plaintext(row, name, is_bound=is_bound), password, options()]
        parameters.append([*values, version])
    with connection.cursor() as cursor:
        cursor.executemany(statement, parameters)
