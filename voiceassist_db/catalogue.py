"""Which encrypted tables a database has, read from the database itself.

Owns discovery. Rotation, status and verify work on what is found here, so that a table of any team is rotated and verified
without being named anywhere, and a column that merely looks encrypted is never passed over in silence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Row, Table, text
from sqlalchemy.exc import SAWarning

from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.execution import execute, regclass, require_transactions
from voiceassist_db.models import EncryptedTable, declared_tables, undeclared_columns, undeclared_in
from voiceassist_db.models.declaration import ENCRYPTED_SUFFIX, VERSION_COLUMN, of_detached
from voiceassist_db.safety import NOT_TRUSTED

_KEEPER = "voiceassist_db.keeper"
"""A setting of the transaction that keeps the owner of the registry while names are looked up in the system's schema only."""

_CANDIDATES = text(
    f"""
    SELECT DISTINCT n.nspname, c.relname, c.relkind, pg_catalog.pg_get_userbyid(c.relowner) AS owner,
        {NOT_TRUSTED.format(role="c.relowner")} AS is_untrusted,
        c.relowner OPERATOR(pg_catalog.=) CAST(pg_catalog.current_setting('{_KEEPER}') AS pg_catalog.oid) AS is_of_keeper,
        pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS is_readable,
        pg_catalog.row_security_active(c.oid) AS is_hidden,
        EXISTS (SELECT FROM pg_catalog.pg_attribute v WHERE v.attrelid OPERATOR(pg_catalog.=) c.oid AND v.attname OPERATOR(pg_catalog.=) :version
                AND NOT v.attisdropped AND v.atttypid OPERATOR(pg_catalog.=) ANY (ARRAY['pg_catalog.int2', 'pg_catalog.int4', 'pg_catalog.int8']::pg_catalog.regtype[])
               ) AS has_version
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND (a.attname LIKE :suffix AND (t.oid = 'pg_catalog.bytea'::regtype OR t.typtype = 'd')
           OR pg_catalog.col_description(c.oid, a.attnum) LIKE ANY (ARRAY['encrypted % as %', 'blind index of % by %']))
    ORDER BY 1, 2
    """  # noqa: S608  # of constants
)

_FLAWS = text(
    """
    SELECT n.nspname, c.relname, pg_catalog.format('the primary key column %s has the collation %s, by which different texts are equal, '
        'but values are bound to one text: ALTER TABLE ... ALTER COLUMN %s TYPE ... COLLATE "C"', a.attname, l.collname, a.attname) AS problem
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
    JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
    WHERE i.indisprimary AND NOT l.collisdeterministic
    UNION ALL
    SELECT n.nspname, c.relname, pg_catalog.format('values cannot be bound to the primary key column %s of type %s; use uuid, an integer '
        'type, text, varchar or date', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod))
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
    WHERE i.indisprimary AND a.atttypid <> ALL (ARRAY['uuid', 'int2', 'int4', 'int8', 'text', 'varchar', 'date']::regtype[])
    UNION ALL
    SELECT n.nspname, c.relname, pg_catalog.format('it inherits from, or is inherited by, %s: rows of one table would be found in the other, '
        'and values bound to neither. ALTER TABLE ... NO INHERIT ..., or use partitions', other.oid::regclass)
    FROM pg_catalog.pg_inherits h
    JOIN pg_catalog.pg_class child ON child.oid = h.inhrelid AND NOT child.relispartition
    CROSS JOIN LATERAL (VALUES (h.inhrelid, h.inhparent), (h.inhparent, h.inhrelid)) AS pair (one, two)
    JOIN pg_catalog.pg_class c ON c.oid = pair.one
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_class other ON other.oid = pair.two
    """
)
"""What SQLAlchemy's reflection does not see of a table: which texts are equal, types of other schemas, and inheritance."""

_CHANGERS = text(
    """
    SELECT DISTINCT pg_catalog.format('the trigger %s', t.tgname) AS what, p.prosrc AS source
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid
    WHERE (t.tgrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass)
           OR t.tgrelid OPERATOR(pg_catalog.=) ANY (SELECT tree.relid FROM pg_catalog.pg_partition_tree(CAST(:table AS pg_catalog.regclass)) tree))
          AND NOT t.tgisinternal AND t.tgenabled OPERATOR(pg_catalog.<>) 'D' AND t.tgtype OPERATOR(pg_catalog.&) 3::pg_catalog.int2
          OPERATOR(pg_catalog.=) 3 AND t.tgtype OPERATOR(pg_catalog.&) 20::pg_catalog.int2 OPERATOR(pg_catalog.>) 0
    UNION ALL
    SELECT pg_catalog.format('the rule %s', r.rulename), ''
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass)
    ORDER BY 1
    """
)
"""What acts before a row is inserted or updated (``pg_trigger.h``: bits 1 row, 2 before, 4 insert, 16 update), and can change it."""


_ELSEWHERE = text(
    f"""
    SELECT pg_catalog.quote_ident(n.nspname) AS schema, pg_catalog.current_setting('search_path') AS path,
           pg_catalog.quote_ident(current_user) AS role
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relname OPERATOR(pg_catalog.=) 'encryption_keys' AND c.relkind OPERATOR(pg_catalog.=) 'r'
      AND NOT n.nspname OPERATOR(pg_catalog.=) ANY (pg_catalog.current_schemas(false)) AND NOT {NOT_TRUSTED.format(role="c.relowner")}
    ORDER BY 1 LIMIT 1
    """  # noqa: S608  # of constants
)
"""The schema of the registry, where the role does not find it by its name."""

_LACKING = text(
    """
    SELECT c.conname, pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(c.oid), ' NOT VALID$', '') AS definition
    FROM pg_catalog.pg_constraint c
    WHERE c.conrelid OPERATOR(pg_catalog.=) CAST(:parent AS pg_catalog.regclass) AND c.contype OPERATOR(pg_catalog.=) 'c'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o
                      WHERE o.conrelid OPERATOR(pg_catalog.=) CAST(:part AS pg_catalog.regclass)
                        AND o.contype OPERATOR(pg_catalog.=) 'c' AND o.convalidated AND o.conname OPERATOR(pg_catalog.=) c.conname
                        AND pg_catalog.pg_get_constraintdef(o.oid) OPERATOR(pg_catalog.=)
                            pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(c.oid), ' NOT VALID$', ''))
    ORDER BY c.conname
    """
)


@dataclass(frozen=True, slots=True)
class Changer:
    """A trigger or a rule that can change a row of an encrypted table, or put another one in its place.

    Attributes:
        what: Which one it is, as ``the trigger stamp``.
        sets_key: Whether the source of its function assigns a column of the primary key, which values are bound to.
    """

    what: str
    sets_key: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """A table as ``CREATE TABLE … AS SELECT`` makes one of an encrypted table: the values are there, and the declaration is not.

    Attributes:
        table: Its name.
        problem: Why it stops a rotation and a retirement, and what to do.
    """

    table: str
    problem: str


_BEFORE = text(
    f"""
    SELECT pg_catalog.current_setting('search_path') AS path, pg_catalog.current_setting('quote_all_identifiers') AS quotes,
        pg_catalog.current_schema() AS name, coalesce(pg_catalog.current_setting('{_KEEPER}', true), '') AS keeper,
        coalesce((SELECT CAST(c.relowner AS pg_catalog.text) FROM pg_catalog.pg_class c
                  WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('encryption_keys')), '0') AS owner
    """  # noqa: S608  # of constants
)
_LOOK_UP = text(
    "SELECT pg_catalog.set_config('search_path', CAST(:path AS pg_catalog.text), true), "
    "pg_catalog.set_config('quote_all_identifiers', CAST(:quotes AS pg_catalog.text), true), "
    f"pg_catalog.set_config('{_KEEPER}', CAST(:keeper AS pg_catalog.text), true)"
)


@contextmanager
def system_names(connection: Connection) -> Iterator[str | None]:
    """Look names up in the system's own schema only, for the block: what others put into a search path may run as whoever asks.

    Names are quoted only where they must be: SQLAlchemy does not know the type ``"bytea"``.

    Yields:
        The schema that names without one are in, outside the block.
    """
    require_transactions(connection)
    row = execute(connection, _BEFORE, table="search_path").one()
    execute(
        connection,
        _LOOK_UP,
        {"path": "pg_catalog, pg_temp", "quotes": "off", "keeper": row.keeper or row.owner},
        table="search_path",
    )
    yield row.name
    given = {"path": row.path, "quotes": row.quotes, "keeper": row.keeper}
    execute(connection, _LOOK_UP, given, table="search_path")


_TAKEN_OVER: Final = "look at its triggers, and ALTER TABLE … OWNER TO the owner of your tables"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A table that looks encrypted and belongs to a role that is not trusted, so that no command touches it.

    Attributes:
        schema: Its schema.
        name: Its name.
        owner: Its owner.
        has_versions: Whether this role may ask it for rows of a key version.
        is_hidden: Whether row-level security hides some of its rows from this role.
    """

    schema: str
    name: str
    owner: str
    has_versions: bool
    is_hidden: bool

    @property
    def table(self) -> str:
        """Its name, with its schema."""
        return f"{self.schema}.{self.name}"

    @property
    def problem(self) -> str:
        """What is to be known of it."""
        return f"{self._cause} If its values are yours, {_TAKEN_OVER}; else it can stay, or be dropped"

    @property
    def obstacle(self) -> str:
        """The same where it is in the way."""
        return f"{self._cause} If its values are yours, {_TAKEN_OVER}, and rotate. If not, drop it"

    @property
    def _cause(self) -> str:
        return (
            f"belongs to {self.owner}, who may not create schemas in this database, so that its triggers are not trusted: no command reads or "
            "rotates it."
        )


def foreign_tables(connection: Connection) -> list[Foreign]:
    """Return the tables that look encrypted and are skipped, because of their owners."""
    with system_names(connection):
        found = _candidates(connection)
    return [
        Foreign(row.nspname, row.relname, row.owner, row.is_readable and row.has_version, row.is_hidden)
        for row in found
        if row.is_untrusted and not row.is_of_keeper
    ]


def _candidates(connection: Connection) -> Sequence[Row[Any]]:
    given = {"suffix": f"%{ENCRYPTED_SUFFIX}", "version": VERSION_COLUMN}
    return execute(connection, _CANDIDATES, given, table="pg_class").all()


@contextmanager
def _without_false_alarm() -> Iterator[None]:
    with warnings.catch_warnings():
        # SQLAlchemy 2.1 trips over what it has itself read of a constraint that is NOT VALID yet.
        warnings.filterwarnings("ignore", "Can't validate argument 'dialect_options'", SAWarning)
        # Types of extensions: of a plain column they do not matter, and of every other one they are refused below.
        warnings.filterwarnings("ignore", "Did not recognize type", SAWarning)
        yield


def encrypted_tables(connection: Connection) -> list[EncryptedTable]:
    """Return every encrypted table of the database, by name.

    Raises:
        SchemaNotMigratedError: A table has columns named ``*_encrypted`` that carry no declaration, or one that cannot be
            followed, so that nobody could know how to rotate them.
    """
    tables, copies = tables_and_copies(connection)
    if copies:
        raise SchemaNotMigratedError("; ".join(f"{each.table}: {each.problem}" for each in copies))
    return tables


def tables_and_copies(connection: Connection) -> tuple[list[EncryptedTable], list[Copy]]:
    """Return every encrypted table of the database and every copy of one, by name. For what only reads.

    Raises:
        SchemaNotMigratedError: As for :func:`encrypted_tables`, but not because of copies.
    """
    with system_names(connection) as default:
        candidates = [row for row in _candidates(connection) if not row.is_untrusted or row.is_of_keeper]
        flaws = {(row.nspname, row.relname): row.problem for row in execute(connection, _FLAWS, table="pg_class")}
        reflected = MetaData()
        with _without_false_alarm():
            for schema in sorted({row.nspname for row in candidates}):
                names = {row.relname for row in candidates if row.nspname == schema}
                chosen = lambda name, _, names=names: name in names  # noqa: E731
                reflected.reflect(connection, schema=schema, only=chosen, resolve_fks=False)
    if untrusted := [f"{row.nspname}.{row.relname} of {row.owner}" for row in candidates if row.is_untrusted]:
        # A restored database lacks the grant. To skip its tables, as those of others, would lose them with their key.
        raise SchemaNotMigratedError(
            f"{', '.join(untrusted)}: the owner of these tables and of the registry may not create schemas in this database, so that it is "
            "not trusted: GRANT CREATE ON DATABASE … to it, as `voiceassist-db provision` does before a migration."
        )
    metadata = MetaData()
    with _without_false_alarm():
        for each in reflected.tables.values():
            each.to_metadata(metadata, schema=None if each.schema == default else each.schema)  # type: ignore[arg-type]  # None is one
    copies = _take_copies(connection, metadata, default)
    if undeclared := undeclared_columns(metadata):
        raise SchemaNotMigratedError(
            f"{', '.join(undeclared)}: named as encrypted, but without the comment that says of what type and for what "
            "context, so that no rotation could include it. Declare it with encrypted_column() and migrate, or rename it."
            f"{_detached(connection, metadata, {(row.nspname, row.relname) for row in candidates if row.relkind == 'p'}, default)}"
        )
    try:
        tables = declared_tables(metadata)
    except ValueError as error:
        raise SchemaNotMigratedError(f"an encrypted table is not declared as it must be: {error}") from None
    for table in tables:
        if problem := flaws.get((table.table.schema or default, table.table.name)):
            raise SchemaNotMigratedError(f"table {table.name}: {problem}")
    return tables, copies


def _take_copies(connection: Connection, metadata: MetaData, default: str | None) -> list[Copy]:
    """Remove the copies of encrypted tables from what was read, and return them.

    A copy has neither a comment nor a primary key. A partition that was detached has the key: its rows are still in use.
    """
    bare = [
        each for each in metadata.tables.values() if not each.primary_key and all(c.comment is None for c in each.c)
    ]
    originals = {name: set(each.c.keys()) for name, each in metadata.tables.items() if each not in bare}
    copies = []
    for table in sorted(bare, key=lambda each: each.fullname):
        columns = undeclared_in(table)
        original = next((name for name, known in sorted(originals.items()) if known.issuperset(columns)), None)
        if columns and original is not None:
            metadata.remove(table)
            copies.append(Copy(table.fullname, _of_copy(connection, table, original, columns[0], default)))
    return copies


def _of_copy(connection: Connection, table: Table, original: str, column: str, default: str | None) -> str:
    preparer = connection.dialect.identifier_preparer
    quote: Callable[[str], str] = lambda name: preparer.quote(name).replace("%%", "%")  # noqa: E731
    name = _quoted(connection, table, default)
    rename = f"{quote(column)} TO {quote(column.removesuffix(ENCRYPTED_SUFFIX) + '_kept')}"
    return (
        f"is a copy of {original}, as CREATE TABLE … AS makes one. No rotation includes it, so its values stay under the key that they "
        f"have, and nothing opens them when that key is retired. Rotation and retirement begin when it is gone: DROP TABLE {name}. "
        f"If you need it until then, rename each of its encrypted columns: ALTER TABLE {name} RENAME COLUMN {rename}"
    )


def _detached(
    connection: Connection, metadata: MetaData, partitioned: set[tuple[str | None, str]], default: str | None
) -> str:
    """Say what to do about partitions that were detached: their comments stayed with the table to which their values are bound."""
    tables = sorted(metadata.tables.values(), key=lambda each: each.fullname)
    parents = [each for each in tables if (each.schema or default, each.name) in partitioned]
    return "".join(
        f" {part.fullname} has the columns of {parent.fullname}. If it was detached from that table, its values are bound to it:"
        f"{_checks(connection, part, parent)} ALTER TABLE {_quoted(connection, parent, None)} ATTACH PARTITION {_quoted(connection, part, None)} FOR VALUES …, and the comments of the "
        f"columns are its own again. Or, if it stays detached, declare its columns:{_comments(connection, part, parent, default)}"
        for part in tables
        for parent in parents
        if undeclared_in(part) and part is not parent and set(part.c.keys()) == set(parent.c.keys())
    )


def _checks(connection: Connection, part: Table, parent: Table) -> str:
    """Return the statements without which PostgreSQL does not attach a partition: a table gets a CHECK with each retirement of a key."""
    quote = connection.dialect.identifier_preparer.quote
    names = {"parent": regclass(connection, parent), "part": regclass(connection, part)}
    lacking = [
        (quote(row.conname).replace("%%", "%"), row.definition)
        for row in execute(connection, _LACKING, names, table=parent.name)
    ]
    table = _quoted(connection, part, None)
    return "".join(
        f" ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} {definition};"
        for name, definition in lacking
    )


def _comments(connection: Connection, part: Table, parent: Table, default: str | None) -> str:
    """Return the statements that declare a partition that was detached."""
    wanted = ((column, of_detached(parent.c[column.name].comment)) for column in part.c)
    return "".join(
        f" COMMENT ON COLUMN {_quoted(connection, part, default, column.name)} IS '{comment}';"
        for column, comment in wanted
        if comment not in {None, column.comment}
    )


def _quoted(connection: Connection, table: Table, default: str | None, *columns: str) -> str:
    """Return the name of a table or a column for a statement that is printed, with its schema: another one may have the same name."""
    quote = connection.dialect.identifier_preparer.quote
    return ".".join(quote(each).replace("%%", "%") for each in (table.schema or default, table.name, *columns) if each)


def misplaced(connection: Connection) -> str | None:
    """Say where this package's tables are, if the database has them and the role's search path does not reach them."""
    row = execute(connection, _ELSEWHERE, table="pg_class").first()
    if row is None:
        return None
    return (
        f"the tables of this database are in the schema {row.schema}, and the search_path of this role is {row.path or 'empty'}: ALTER ROLE "
        f"{row.role} SET search_path = {row.schema}, and GRANT USAGE on that schema to it. The database is migrated"
    )


def changers(connection: Connection, table: EncryptedTable) -> list[Changer]:
    """Return what can change the rows of a table while they are written."""
    found = execute(connection, _CHANGERS, {"table": regclass(connection, table.table)}, table=table.name)
    key = "|".join(re.escape(column.name) for column in table.key)
    assigns = re.compile(rf'\bnew\s*\.\s*"?({key})"?\s*:?=', re.IGNORECASE)
    return [Changer(row.what, bool(assigns.search(row.source))) for row in found]
