"""Whether every encrypted value of a database can be trusted: it opens, belongs to its row, and has the right format.

Owns the walk over all encrypted tables, in short read-only transactions of one page each. Changes nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, func, literal_column, null, select, text, tuple_

from voiceassist_db.blind_index import NORMALISERS, token
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import BindingError, DecryptionError, ValueFormatError
from voiceassist_db.execution import execute, regclass, see_all_rows, translated
from voiceassist_db.keyring import Keyring, KeyringSource
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable
from voiceassist_db.models.declaration import any_format, bound_format
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import array_parameter, dumper, element_type
from voiceassist_db.pgcrypto.expressions import decrypt_stored, parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.tracebacks import forgetful

PAGE_ROWS: Final = 1000
PAGE_BYTES: Final = 8 << 20
"""Ciphertext that is decrypted at once, 8 MiB: a page of long notes is read in parts."""

_BOUND: Final = Scheme.BOUND
KEPT_FAILURES: Final = 1000
"""How many failures of a table are kept with their row; all are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One value that cannot be trusted; never what it holds.

    Attributes:
        row_id: The row's primary key as text.
        field: The field's name; None where the whole row could not be read.
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
        unindexed: Values without the blind-index token that their field should have: they cannot be found by search.
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
        tables = encrypted_tables(connection)
        total = sum(_about(connection, table) for table in tables)
        reports: list[TableReport] = []
        for table in tables:
            done = sum(report.rows for report in reports)
            walk = _Walk(connection, keys, table)
            for rows in walk.pages():
                if on_progress:
                    on_progress(done + rows, max(total, done + rows))
            reports.append(walk.report)
    return reports


def _about(connection: Connection, table: EncryptedTable) -> int:
    estimate = text(
        "SELECT greatest(reltuples, 0)::bigint FROM pg_catalog.pg_class WHERE oid = CAST(:name AS regclass)"
    )
    name = regclass(connection, table.table)
    return int(execute(connection, estimate, {"name": name}, table=table.name).scalar_one())


class _Walk:
    """Reads one table page by page; a page with a damaged value is halved until the value stands alone."""

    def __init__(self, connection: Connection, keys: KeyringSource, table: EncryptedTable) -> None:
        self._connection = connection
        self._keys = keys
        self._table = table
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
            page = (first if after is None else later).rows(self._connection, values)
            self._connection.rollback()
            if not page:
                return
            after = page[-1][: self._width]
            for part in self._parts(page):
                self._check(part, tuple(self._table.fields.values()))
            yield self.report.rows

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
        yield part

    def _key_pages(self) -> tuple[Prepared, Prepared]:
        key = self._table.key
        sizes = [
            func.coalesce(func.pg_catalog.octet_length(self._table.table.c[each.column]), literal_column("0"))
            for each in self._table.fields.values()
        ]
        size = functools.reduce(operator.add, sizes)
        statement = select(*key, size).order_by(*key).limit(bindparam("limit"))
        after = tuple_(*(bindparam(f"after_{position}", type_=each.type) for position, each in enumerate(key)))
        name = self._table.name
        return Prepared(statement, table=name), Prepared(statement.where(tuple_(*key) > after), table=name)

    def _check(self, page: list[tuple[Any, ...]], fields: tuple[EncryptedField, ...]) -> None:
        """Check these rows' fields: together if they open together, else in halves, else value by value."""
        try:
            self.report.add(self._read(page, fields))
        except DecryptionError:
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
                self.report.fail(codec.row_id(page[0]), fields[0].name, "does not open: damaged, or under another key")

    def _read(self, page: list[tuple[Any, ...]], fields: tuple[EncryptedField, ...]) -> TableReport:
        """Return what is found in these rows, each looked at while the server decrypts the next ones."""
        statement = self._statements.get(fields)
        if statement is None:
            quote = self._connection.dialect.identifier_preparer.quote
            statement = self._statements[fields] = _select(self._table, fields, quote)
        see_all_rows(self._connection)
        keyring = self._keys.keyring(self._connection)
        columns = zip(*page, strict=True)
        keys = {
            f"key_{position}": dump(list(values))
            for position, (dump, values) in enumerate(zip(self._dumpers, columns, strict=True))
        }
        for is_last in (False, True):
            part = _Part(self._table, fields, self._decoders, keyring, is_last=is_last)
            unknown = statement.read(self._connection, keys | parameters(keyring, self._table, fields), part.examine)
            if unknown is None:
                break
            keyring = self._keys.refresh(self._connection, unknown)
        self._connection.rollback()
        return part.report


class _Part:
    """Looks at rows as :func:`_select` gives them.

    Args:
        table: Their table.
        fields: The fields that are selected.
        decoders: What decodes each field.
        keyring: The keys that they were decrypted with.
        is_last: Whether a row under a version that the keyring lacks is a failure, and not a reason to ask the key store.
    """

    def __init__(
        self,
        table: EncryptedTable,
        fields: tuple[EncryptedField, ...],
        decoders: Mapping[str, codec.Decoder],
        keyring: Keyring,
        *,
        is_last: bool,
    ) -> None:
        self._width = len(table.key)
        first = range(self._width + 1, self._width + 1 + 4 * len(fields), 4)
        self._fields = [(each, decoders[each.name], position) for each, position in zip(fields, first, strict=True)]
        self._keyring = keyring
        self._is_last = is_last
        self.report = TableReport(table.name)

    def examine(self, rows: Iterable[tuple[Any, ...]]) -> int | None:
        """Look at rows; return the version of the first that the keyring lacks, where looking has stopped, or None."""
        for row in rows:
            version = row[self._width]
            scheme = self._keyring.scheme(version)
            if scheme is None and not self._is_last:
                unknown: int = version
                return unknown
            self.report.rows += 1
            row_id = codec.row_id(row[: self._width])
            if scheme is None:
                self.report.fail(row_id, None, f"is under key version {version}, which the key store does not hold")
            else:
                self._examine_values(row, row_id, scheme)
        return None

    def _examine_values(self, row: tuple[Any, ...], row_id: str, scheme: Scheme) -> None:
        for each, decode, position in self._fields:
            plaintext, is_bound, is_any, stored = row[position : position + 4]
            if plaintext is None:
                if stored is not None:
                    self.report.fail(row_id, each.name, "has a blind index, but no value")
                continue
            self.report.values += 1
            if not (is_bound if scheme is _BOUND else is_any):
                self.report.fail(row_id, each.name, f"is not in the format of scheme {scheme.value}")
                continue
            try:
                value = decode(scheme, row_id, plaintext)
            except BindingError:
                self.report.fail(row_id, each.name, "was encrypted for another row or column")
            except ValueFormatError:
                self.report.fail(row_id, each.name, f"is not of type {each.kind.value}")
            else:
                if each.index_column is not None and each.normaliser is not None:
                    self._examine_token(row_id, each, value, stored)

    def _examine_token(self, row_id: str, each: EncryptedField, value: Any, stored: bytes | None) -> None:
        if stored is None:
            self.report.unindexed += 1
            return
        try:
            normalised = NORMALISERS[each.normaliser or ""](value)
        except ValueError:
            self.report.fail(row_id, each.name, "has a blind index, but a value that cannot be searched")
            return
        if all(stored != token(key, normalised) for key in self._keyring.index_column_keys(each.context)):
            self.report.fail(row_id, each.name, "has the blind index of another value")


def _select(table: EncryptedTable, fields: tuple[EncryptedField, ...], quote: Callable[[str], str]) -> Prepared:
    columns: list[Any] = []
    for each in fields:
        column = quote(each.column).replace("%%", "%")  # which literal_column() doubles itself
        columns += [
            decrypt_stored(table, each).label(each.name),
            literal_column(bound_format(column)),
            literal_column(any_format(column)),
            table.table.c[each.index_column] if each.index_column else null(),
        ]
    arrays = (
        array_parameter(f"key_{position}", each.type, element_type(each.type))
        for position, each in enumerate(table.key)
    )
    condition = tuple_(*table.key).in_(select(*(func.pg_catalog.unnest(each) for each in arrays)))
    return Prepared(select(*table.key, table.version, *columns).where(condition), table=table.name)
