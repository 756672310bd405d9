"""Where a database stands in the history of this package's migrations, beside the histories of others.

Owns the version table, the lock of migrators, and the rule of which databases of the time before are taken over. An application may
have migrations of its own in the table ``alembic_version``, with any revision ids. Its row is never changed unless the database holds
nothing but this package's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, text

from voiceassist_db.errors import MigrationError
from voiceassist_db.escaping import escaped
from voiceassist_db.execution import execute
from voiceassist_db.models import REGISTRY_ROWS
from voiceassist_db.safety import NOT_OWN, NOT_OWN_SCHEMAS, described, unsafe_schemas

VERSION_TABLE: Final = "voiceassist_version"
FORMER_TABLE: Final = "alembic_version"
"""Where revisions 0001 to 0005 were recorded before this package had a table of its own. It is Alembic's name for any history."""

LOCK_TIMEOUT: Final = "4s"
"""A migration that cannot get its lock gives up, rather than make every query behind it wait."""

STATEMENT_TIMEOUT: Final = "15min"

ADVISORY_LOCK: Final = 0x766F6963
"""Any fixed number ("voic"): a second migrator waits for the first, and then finds nothing left to do."""

PATIENT_TABLES: Final = ("patient_data", "clinical_notes")
_REGISTRY_ONLY: Final = "registry only"
"""Comment of the version table of a database that shall not get the patients' tables."""

_REGISTRY: Final = frozenset(
    {
        ("encryption_keys", "encryption_keys_scheme"),
        ("index_keys", "index_keys_state"),
        ("key_rotations", "key_rotations_versions"),
        ("key_rotation_failures", "fk_key_rotation_failures_rotation"),
    }
)
_PATIENTS: Final = frozenset(
    {("patient_data", "patient_data_ssn_encrypted_format"), ("clinical_notes", "clinical_notes_note_encrypted_format")}
)
_SUPERSEDED: Final = ("key_rotations", "key_rotations_state")
_IDENTITY: Final = frozenset({("database_identity", "database_identity_is_only")})

_IS_OWN: Final = f"NOT {NOT_OWN.format(role='c.relowner')}"
_IS_PLAIN: Final = (
    "c.relkind::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.text[]) AND NOT c.relrowsecurity"
)
"""A view or a policy runs functions of its owner's as whoever reads it."""

_CONSTRAINTS = text(
    f"""
    SELECT c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid) AS definition
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) k.conrelid
    WHERE c.oid OPERATOR(pg_catalog.=) ANY (SELECT CAST(pg_catalog.to_regclass(name) AS pg_catalog.oid)
                                            FROM pg_catalog.unnest(CAST(:names AS pg_catalog.text[])) AS t (name))
      AND {_IS_OWN}
    """  # noqa: S608  # of constants
)
_RELATION = text(
    f"""
    SELECT {_IS_PLAIN} AS is_plain, {_IS_OWN} AS is_own, pg_catalog.pg_get_userbyid(c.relowner) AS owner,
        pg_catalog.has_table_privilege(c.oid, 'SELECT') AND EXISTS (
            SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attname OPERATOR(pg_catalog.=) 'version_num') AS is_readable
    FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) CAST(pg_catalog.to_regclass(:name) AS pg_catalog.oid)
    """  # noqa: S608  # of constants
)
_ELSEWHERE = text(
    f"""
    SELECT CAST(n.nspname AS pg_catalog.text) FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) k.conrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relname OPERATOR(pg_catalog.=) 'encryption_keys' AND k.conname OPERATOR(pg_catalog.=) 'encryption_keys_scheme'
      AND {_IS_OWN}
      AND coalesce(c.oid OPERATOR(pg_catalog.<>) CAST(pg_catalog.to_regclass('encryption_keys') AS pg_catalog.oid), true)
    ORDER BY 1 LIMIT 1
    """  # noqa: S608  # of constants
)
"""The schema of a registry to which the search path does not lead."""
_COMMENT = text("SELECT pg_catalog.obj_description(CAST(pg_catalog.to_regclass(:name) AS pg_catalog.oid), 'pg_class')")
_OTHER_TABLES = text(
    """
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'
          AND NOT pg_catalog.starts_with(CAST(n.nspname AS pg_catalog.text), 'pg_')
          AND CAST(c.relname AS pg_catalog.text) OPERATOR(pg_catalog.<>) ALL (CAST(:names AS pg_catalog.text[])))
    """
)


_AMBIGUOUS: Final = f"""this database has this package's tables, and {FORMER_TABLE} records other migrations only. Nothing was changed.
If the application's own Alembic history includes this package's migrations, run `alembic upgrade heads` there instead.
If it does not, run this once, and then `voiceassist-db migrate` again:
{{statements}}"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database stands.

    Attributes:
        revisions: Revisions that it is at; none for a database without this package's tables.
        is_recorded: Whether the version table says so, and not only the tables themselves.
        former: The row of ``alembic_version`` that recorded the same before this package had a table of its own; None where there is none.
        is_former_ours: Whether that row can be of no other history.
        registry_only: Whether the database shall not get the patients' tables.
    """

    revisions: tuple[str, ...]
    is_recorded: bool
    former: str | None = None
    is_former_ours: bool = False
    registry_only: bool = False

    def statements(self) -> Iterator[str]:
        """Yield what records the place in the version table, and takes the former row away if it can be of no other history."""
        if self.is_recorded or not self.revisions:
            return
        yield (
            f"CREATE TABLE IF NOT EXISTS {VERSION_TABLE} (version_num pg_catalog.varchar(32) NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
        for revision in self.revisions:
            yield f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('{revision}')"  # noqa: S608  # of constants
        if self.former is not None and self.is_former_ours:
            yield f"DELETE FROM {FORMER_TABLE} WHERE version_num OPERATOR(pg_catalog.=) '{self.former}'"  # noqa: S608  # of constants


def place_of(connection: Connection) -> Place:
    """Return where the database stands that the search path of the connection leads to.

    Raises:
        MigrationError: The application's own Alembic history has this package's revisions; or a role that is not trusted has, or may put,
            something where a migration finds it by its name.
    """
    _require_trusted_path(connection)
    version, former = (_all(connection, _RELATION, name=name) for name in (VERSION_TABLE, FORMER_TABLE))
    if version:
        if not (version[0].is_plain and version[0].is_own):
            raise MigrationError(
                f"{VERSION_TABLE} is not the table of this package, but {escaped(version[0].owner)}'s: drop it, or give it to this role "
                f"(ALTER TABLE {VERSION_TABLE} OWNER TO …), without row-level security. Nothing was changed"
            )
        comment = _all(connection, _COMMENT, name=VERSION_TABLE)[0][0]
        rows = _rows(connection, VERSION_TABLE)
        if rows:
            return Place(rows, is_recorded=True, registry_only=comment == _REGISTRY_ONLY)
    revisions, number = _found(connection)
    if not former or not (former[0].is_plain and former[0].is_readable):
        return Place(revisions, is_recorded=False)
    rows = _rows(connection, FORMER_TABLE)
    if included := [row for row in rows if row.startswith("voiceassist_")]:
        raise MigrationError(
            f"the table {FORMER_TABLE} records {', '.join(included)}, so the application's own Alembic history includes this package's "
            "migrations: run `alembic upgrade heads` there. Nothing was changed"
        )
    if number not in rows:
        place = Place(revisions, is_recorded=False)
        if rows and revisions:  # a revision that depends on ours takes the place of our row
            raise MigrationError(_AMBIGUOUS.format(statements="\n".join(f"  {each};" for each in place.statements())))
        return place
    names = [VERSION_TABLE, FORMER_TABLE, *PATIENT_TABLES, *(row.__tablename__ for row in REGISTRY_ROWS)]
    is_ours = former[0].is_own and rows == (number,) and not _all(connection, _OTHER_TABLES, names=names)[0][0]
    return Place(revisions, is_recorded=False, former=number, is_former_ours=is_ours)


def _require_trusted_path(connection: Connection) -> None:
    """Refuse to migrate where another role could put an operator, for example, into the statements of SQLAlchemy and Alembic.

    Raises:
        MigrationError: One could; the message says how to stop it.
    """
    found = unsafe_schemas(map(tuple, _all(connection, text(NOT_OWN_SCHEMAS))))
    if found:
        raise MigrationError(
            f"roles that are not trusted could have what they like done as this role, which a migration is run by:\n{described(found)}\n"
            "Nothing was changed. `voiceassist-db provision` revokes rights to create, and lists what is left"
        )


def require_no_other(connection: Connection, place: Place) -> None:
    """Refuse to create a second registry, where another schema of the database has one.

    Raises:
        MigrationError: It has. The message says what to do.
    """
    if place.revisions or not (found := _all(connection, _ELSEWHERE)):
        return
    schema = connection.dialect.identifier_preparer.quote(found[0][0]).replace("%%", "%")
    raise MigrationError(
        f"this database has this package's tables in the schema {schema}, and none where this command looked for them: nothing was changed. "
        f"Give --schema {schema}, or no --schema where the search_path leads there. A second registry of keys is not made: rotation and "
        "retirement work on all encrypted tables of a database"
    )


def record(connection: Connection, place: Place) -> None:
    """Record the place of a database of the time before. The caller commits."""
    for statement in place.statements():
        execute(connection, text(statement), table=VERSION_TABLE)


def leave_out_patients(connection: Connection, *, registry_only: bool) -> None:
    """Record whether the database shall not get the patients' tables. The caller commits."""
    comment = f"'{_REGISTRY_ONLY}'" if registry_only else "NULL"
    execute(connection, text(f"COMMENT ON TABLE {VERSION_TABLE} IS {comment}"), table=VERSION_TABLE)


def _found(connection: Connection) -> tuple[tuple[str, ...], str]:
    """Return the revisions that the tables themselves show, and the number of the one revision that was recorded for them before.

    The first revision leaves nothing by which it could be told from an application's own; it is run again, which changes nothing.
    """
    tables = [*PATIENT_TABLES, *(row.__tablename__ for row in REGISTRY_ROWS)]
    found = {(row.relname, row.conname): row.definition for row in _all(connection, _CONSTRAINTS, names=tables)}
    if not found.keys() >= _REGISTRY:
        return (), ""
    registry = 2
    if "superseded" in found.get(_SUPERSEDED, ""):
        registry = 5 if found.keys() >= _IDENTITY else 4
    if not found.keys() >= _PATIENTS:
        return (f"voiceassist_{registry:04}",), f"{registry:04}" if registry == 2 else ""
    if registry == 5:
        return ("voiceassist_0006",), "0005"
    if registry == 4:
        return ("voiceassist_0003", "voiceassist_0004"), "0004"
    return ("voiceassist_0003",), "0003"


def _rows(connection: Connection, table: str) -> tuple[str, ...]:
    return tuple(row[0] for row in _all(connection, text(f"SELECT version_num FROM {table} ORDER BY 1")))  # noqa: S608  # of constants


def _all(connection: Connection, query: Any, **parameters: Any) -> Sequence[Any]:
    return execute(connection, query, parameters, table=VERSION_TABLE).all()


@contextmanager
def migrating(connection: Connection, *, schema: str | None = None) -> Iterator[None]:
    """Let one migrator at a time work in the block, which never waits long for a lock.

    The connection's settings are afterwards what they were.

    Args:
        connection: A connection without a transaction.
        schema: The schema in which tables are created and looked for; None: as the search path of the connection says.
    """
    before = {name: _shown(connection, name) for name in ("search_path", "statement_timeout", "lock_timeout")}
    # The wait for another migrator is not one for a table's lock, and nobody queues behind it.
    _set(connection, statement_timeout=STATEMENT_TIMEOUT, lock_timeout="0")
    connection.execute(text("SELECT pg_catalog.pg_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK})
    _set(connection, lock_timeout=LOCK_TIMEOUT)
    if schema is not None:
        _set(connection, search_path=connection.dialect.identifier_preparer.quote(schema).replace("%%", "%"))
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_catalog.pg_advisory_unlock(:lock)"), {"lock": ADVISORY_LOCK})
        _set(connection, **before)
        connection.commit()


def _shown(connection: Connection, name: str) -> str:
    return str(connection.scalar(text("SELECT pg_catalog.current_setting(:name)"), {"name": name}))


def _set(connection: Connection, **settings: str) -> None:
    for name, value in settings.items():
        connection.execute(text("SELECT pg_catalog.set_config(:name, :value, false)"), {"name": name, "value": value})
