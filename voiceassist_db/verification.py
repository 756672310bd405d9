"""Whether every encrypted value of a database can be trusted: it opens, belongs to its row, and has the right format.

Owns the walk over all encrypted tables, in short read-only transactions of one page each. Changes nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    String,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.types import NullType

from voiceassist_db import normalisers
from voiceassist_db.catalogue import tables_and_copies
from voiceassist_db.errors import DecryptionError
from voiceassist_db.examination import UNCHECKED, Examination
from voiceassist_db.execution import execute, regclass, see_all_rows, translated
from voiceassist_db.keyring import KeyringSource, RegisteredKey, registered_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.loading import PROBLEM, Unloadable, text_of
from voiceassist_db.models import EncryptedField, EncryptedTable, KeyRotationRow, packets, table_of
from voiceassist_db.models.declaration import bound_format
from voiceassist_db.moments import Moment
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import array_parameter, dumper, element_type
from voiceassist_db.pgcrypto.expressions import decrypt_stored, parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.tracebacks import forgetful

PAGE_ROWS: Final = 1000
PAGE_BYTES: Final = 8 << 20
"""Ciphertext that is decrypted at once, 8 MiB: a page of long notes is read in parts."""

_NOT_TEXT: Final = "22021"
"""PostgreSQL's code for bytes that are not text in the database's encoding."""

_RUNS: Final = table_of(KeyRotationRow)
_ALWAYS_LOADED: Final = (Boolean, Float, Integer, LargeBinary, String, Uuid)
WALKS: Final = 2
"""Walks over a table before rows that were not met are a failure: a row of a transaction that was open may come late to the first."""

MISSED: Final = (
    "{missed:,} rows were not met in the order of the primary key: an index is damaged, or the server's collation has changed. "
    "REINDEX the table, and verify again"
)
KEPT_FAILURES: Final = 1000
"""How many failures of a table are kept with their row; all are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One value that cannot be trusted; never what it holds.

    Attributes:
        row_id: The row's primary key as text; empty where the table as a whole is meant.
        field: The name of the field, or of the plain column; None where the whole row could not be read.
        problem: What is wrong with it.
    """

    row_id: str
    field: str | None
    problem: str


@dataclass(slots=True)
class TableReport:
    """What was found in one table.

    Attributes:
        table: Its name.
        rows: Rows read.
        values: Encrypted values read, NULLs not counted.
        unindexed: Values without a blind index, in a database that has adopted values without any: no search finds them. Where every
            value was written by this package, one without its blind index is a failure.
        failed: Failures counted.
        failures: The first of them.
    """

    table: str
    rows: int = 0
    values: int = 0
    unindexed: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    def fail(self, row_id: str, name: str | None, problem: str) -> None:
        """Count a failure, and keep it unless there are too many."""
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(Failure(row_id, name, problem))

    def add(self, part: TableReport) -> None:
        """Count what was found in a part of the table."""
        self.rows += part.rows
        self.values += part.values
        self.unindexed += part.unindexed
        self.failed += part.failed
        self.failures += part.failures[: KEPT_FAILURES - len(self.failures)]


@forgetful
def verify(
    engine: Engine, keys: KeyringSource, *, on_progress: Callable[[int, int | None], None] | None = None
) -> list[TableReport]:
    """Read every encrypted value of every encrypted table.

    Args:
        engine: An engine whose connections may receive keys.
        keys: The keys.
        on_progress: Called with rows read, and how many there are about.

    Returns:
        A report for each table. Nothing is wrong where each has ``failed == 0``.

    Raises:
        VoiceAssistDBError: There is nothing to say about the values: the database or the key store does not answer, the
            database is not migrated, or the keys are not its keys.
    """
    with translated(), engine.connect() as connection:
        keys.keyring(connection)  # so that no database is called well, for lack of rows, that has no keys
        direct = [each for each in registered_keys(connection).values() if each.scheme is Scheme.DIRECT]
        needs_tokens = _needs_tokens(connection, direct)
        tables, copies = tables_and_copies(connection)
        total = sum(_about(connection, table) for table in tables)
        reports: list[TableReport] = []
        for table in tables:
            done = sum(report.rows for report in reports)
            for _ in range(WALKS):
                walk = _Walk(connection, keys, table, is_adopted=bool(direct), needs_tokens=needs_tokens)
                for rows in walk.pages():
                    if on_progress:
                        on_progress(done + rows, max(total, done + rows))
                if not (missed := walk.missed()):
                    break
            for index in table.indexes:
                if not normalisers.is_known(index.normaliser):
                    walk.report.fail("", index.field, UNCHECKED.format(missing=normalisers.missing(index.normaliser)))
            if missed:
                walk.report.fail("", None, MISSED.format(missed=missed))
            reports.append(walk.report)
        for each in copies:
            report = TableReport(each.table)
            report.fail("", None, each.problem)
            reports.append(report)
    return reports


def _needs_tokens(connection: Connection, direct: list[RegisteredKey]) -> bool:
    """Say whether every value must have its blind index.

    Values of scheme ``direct`` were adopted without one, and keep none when they become ``bound``. A rotation of the index key makes it:
    so none may lack it after one that began when the last of these versions was retired.
    """
    if not direct:
        return True
    retired = [each.retired_at for each in direct]
    finished = select(func.max(_RUNS.c.started_at)).where(_RUNS.c.kind == "index", _RUNS.c.state == "finished")
    began = execute(connection, finished, table=_RUNS.name).scalar()
    return began is not None and all(at is not None and at < began for at in retired)


def _about(connection: Connection, table: EncryptedTable) -> int:
    estimate = text(
        "SELECT greatest(reltuples, 0)::bigint FROM pg_catalog.pg_class "
        "WHERE oid OPERATOR(pg_catalog.=) CAST(:name AS pg_catalog.regclass)"
    )
    name = regclass(connection, table.table)
    return int(execute(connection, estimate, {"name": name}, table=table.name).scalar_one())


class _Walk:
    """Reads one table page by page; a page with a damaged value is halved until the value stands alone."""

    def __init__(
        self,
        connection: Connection,
        keys: KeyringSource,
        table: EncryptedTable,
        *,
        is_adopted: bool,
        needs_tokens: bool,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._table = table
        self._is_adopted = is_adopted
        self._needs_tokens = needs_tokens
        self._since = Moment.now(connection)
        self._loaded = _loaded_columns(table)
        self._width = len(table.key)
        self._statements: dict[tuple[EncryptedField, ...], Prepared] = {}
        self._decoders = {name: codec.decoder(each, table=table.name) for name, each in table.fields.items()}
        self._dumpers = [dumper(each.type) for each in table.key]
        self.report = TableReport(table.name)

    def pages(self) -> Iterator[int]:
        """Check the table; yields, after each page, how many rows have been read."""
        after: tuple[Any, ...] | None = None
        first, later = self._key_pages()
        while True:
            values: dict[str, Any] = {"limit": PAGE_ROWS}
            if after is not None:
                values |= {f"after_{position}": value for position, value in enumerate(after)}
            see_all_rows(self._connection)
            page = (first if after is None else later).tolerant_rows(self._connection, values)
            self._connection.rollback()
            if not page:
                return
            after = tuple(text_of(each) for each in page[-1][: self._width])
            for part in self._parts([each for each in page if self._has_loadable_key(each)]):
                self._load(part)
                self._check(part, tuple(self._table.fields.values()))
            yield self.report.rows

    def missed(self) -> int:
        """Return how many rows were there when the walk began, and were not met."""
        count = select(func.count()).select_from(self._table.table).where(self._since.had_row())
        see_all_rows(self._connection)
        there: int = execute(self._connection, count, table=self._table.name).scalar_one()
        self._connection.rollback()
        return max(0, there - self.report.rows)

    def _has_loadable_key(self, row: tuple[Any, ...]) -> bool:
        """Say whether Python can hold a row's primary key; else the row counts as read, and failed."""
        key = row[: self._width]
        for column, value in zip(self._table.key, key, strict=True):
            if isinstance(value, Unloadable):
                self.report.rows += 1
                self.report.fail(codec.row_id([text_of(each) for each in key]), column.name, PROBLEM)
                return False
        return True

    def _load(self, part: list[tuple[Any, ...]]) -> None:
        """Load the plain columns of rows, of which a read would fail where Python cannot hold one."""
        if not self._loaded or not part:
            return
        see_all_rows(self._connection)
        for row in self._plain.tolerant_rows(self._connection, self._keys_of(part)):
            for column, value in zip(self._loaded, row[self._width :], strict=True):
                if isinstance(value, Unloadable):
                    self.report.fail(codec.row_id(row[: self._width]), column.name, PROBLEM)
        self._connection.rollback()

    def _parts(self, page: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
        """Give the keys of a page, whose last column is each row's size, in parts of at most PAGE_BYTES."""
        part: list[tuple[Any, ...]] = []
        size = 0
        for row in page:
            if part and size + row[-1] > PAGE_BYTES:
                yield part
                part, size = [], 0
            part.append(row[: self._width])
            size += row[-1]
        if part:
            yield part

    @functools.cached_property
    def _plain(self) -> Prepared:
        # Without a type, so that SQLAlchemy converts nothing: what matters is whether the driver can load it.
        columns = [type_coerce(each, NullType()).label(each.name) for each in self._loaded]
        statement = select(*self._table.key, *columns).where(_is_one_of(self._table))
        return Prepared(statement, table=self._table.name)

    def _keys_of(self, page: list[tuple[Any, ...]]) -> dict[str, Any]:
        columns = zip(*page, strict=True)
        return {
            f"key_{position}": dump(list(values))
            for position, (dump, values) in enumerate(zip(self._dumpers, columns, strict=True))
        }

    def _key_pages(self) -> tuple[Prepared, Prepared]:
        key = self._table.key
        stored = [
            func.pg_catalog.octet_length(self._table.table.c[each.column]) for each in self._table.fields.values()
        ]
        stored += [func.pg_catalog.pg_column_size(each) for each in self._loaded]
        sizes = [func.coalesce(each, literal_column("0")) for each in stored]
        size = functools.reduce(operator.add, sizes)
        statement = select(*key, size).order_by(*key).limit(bindparam("limit"))
        after = tuple_(*(bindparam(f"after_{position}", type_=each.type) for position, each in enumerate(key)))
        name = self._table.name
        return Prepared(statement, table=name), Prepared(statement.where(tuple_(*key) > after), table=name)

    def _check(self, page: list[tuple[Any, ...]], fields: tuple[EncryptedField, ...]) -> None:
        """Check these rows' fields: together if they open together, else in halves, else value by value."""
        try:
            self.report.add(self._read(page, fields))
        except DecryptionError as error:
            self._connection.rollback()
            if len(page) > 1:
                middle = len(page) // 2
                self._check(page[:middle], fields)
                self._check(page[middle:], fields)
            elif len(fields) > 1:
                before = self.report.rows
                for each in fields:
                    self._check(page, (each,))
                self.report.rows = before + 1
            else:
                self.report.rows += 1
                self.report.values += 1
                self.report.fail(codec.row_id(page[0]), fields[0].name, self._why_unopened(page, fields[0], error))

    def _why_unopened(self, page: list[tuple[Any, ...]], field: EncryptedField, error: DecryptionError) -> str:
        """Say why a value does not open; what its packet says of itself needs no key."""
        if error.sqlstate == _NOT_TEXT:
            return "opens, but is not text in the database's encoding"
        column: ColumnElement[str | None] = literal_column(packets.weakness(_quoted(self._connection, field.column)))
        statement = Prepared(
            select(column).select_from(self._table.table).where(_is_one_of(self._table)), table=self._table.name
        )
        see_all_rows(self._connection)
        found = statement.rows(self._connection, self._keys_of(page))
        self._connection.rollback()
        weak = found[0][0] if found else None
        if weak in packets.WEAK:
            return f"does not open, and {packets.described(weak)}"
        return "does not open: damaged, or under another key"

    def _read(self, page: list[tuple[Any, ...]], fields: tuple[EncryptedField, ...]) -> TableReport:
        """Return what is found in these rows, each looked at while the server decrypts the next ones."""
        statement = self._statements.get(fields)
        if statement is None:
            statement = self._statements[fields] = _select(
                self._connection, self._table, fields, is_adopted=self._is_adopted
            )
        see_all_rows(self._connection)
        keyring = self._keys.keyring(self._connection)
        keys = self._keys_of(page)
        for is_last in (False, True):
            found = TableReport(self._table.name)
            part = Examination(
                found,
                self._width,
                fields,
                self._decoders,
                keyring,
                needs_tokens=self._needs_tokens,
                is_last=is_last,
                is_in_place=self._table.is_in_place,
            )
            unknown = statement.read(self._connection, keys | parameters(keyring, self._table, fields), part.examine)
            if unknown is None:
                break
            keyring = self._keys.refresh(self._connection, unknown)
        self._connection.rollback()
        return found


def _quoted(connection: Connection, column: str) -> str:
    """Return a column's name for literal_column(), which doubles percent signs itself."""
    return connection.dialect.identifier_preparer.quote(column).replace("%%", "%")


def _select(
    connection: Connection, table: EncryptedTable, fields: tuple[EncryptedField, ...], *, is_adopted: bool
) -> Prepared:
    columns: list[Any] = []
    for each in fields:
        column = _quoted(connection, each.column)
        columns += [
            decrypt_stored(table, each, is_adopted=is_adopted).label(each.name),
            literal_column(bound_format(column)),
            literal_column(packets.weakness(column)),
            *(table.table.c[index.column] for index in each.indexes),
        ]
    return Prepared(select(*table.key, table.version, *columns).where(_is_one_of(table)), table=table.name)


def _is_one_of(table: EncryptedTable) -> ColumnElement[bool]:
    arrays = (
        array_parameter(f"key_{position}", each.type, element_type(each.type))
        for position, each in enumerate(table.key)
    )
    return tuple_(*table.key).in_(select(*(func.pg_catalog.unnest(each) for each in arrays)))


def _loaded_columns(table: EncryptedTable) -> tuple[Column[Any], ...]:
    """Return the plain columns of types of which the server holds more values than Python."""
    own = {table.version.name, *(each.name for each in table.key), *table.covered}
    return tuple(each for each in table.table.c if each.name not in own and not isinstance(each.type, _ALWAYS_LOADED))
