"""The roles that a deployment needs, with the rights of each and no more, as SQL.

Owns which role may do what. The statements are found by looking at the database as it is, may be repeated, and hold no
password: whoever runs them sets those. Settings are given to each role itself, for they come with a login and are not inherited.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table, text

from voiceassist_db.catalogue import encrypted_tables, system_names
from voiceassist_db.errors import ConfigurationError, ProvisioningError
from voiceassist_db.escaping import escaped_sql
from voiceassist_db.execution import execute
from voiceassist_db.history import VERSION_TABLE
from voiceassist_db.models import (
    REGISTRY_ROWS,
    EncryptedTable,
    EncryptionKeyRow,
    IndexKeyRow,
    KeyRotationFailureRow,
    table_of,
)
from voiceassist_db.safety import LEFTOVERS, NOT_TRUSTED, SETTINGS, Finding, quoted, schemas_named, unsafe_schemas

_NEWER_SETTINGS: Final = {"auto_explain.log_parameter_max_length": 16}
"""Settings by the PostgreSQL version that brought them: the ones before refuse the name while the module is loaded."""

_DATES: Final = ("created_at", "updated_at")
_MIGRATIONS: Final = Table(VERSION_TABLE, MetaData())
_REGISTRY: Final = tuple(table_of(row) for row in REGISTRY_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Names of the roles.

    Attributes:
        owner: Owns the tables: runs migrations, makes the first keys, retires keys.
        app: The application: reads and writes rows.
        rotator: Rotates keys.
        auditor: Sees key versions, rotations, and ciphertexts; no token, no plain value, and it cannot call pgcrypto.
    """

    owner: str = "voiceassist_owner"
    app: str = "voiceassist_app"
    rotator: str = "voiceassist_rotator"
    auditor: str = "voiceassist_auditor"

    def __post_init__(self) -> None:
        names = [getattr(self, each.name) for each in fields(self)]
        if len(set(names)) < len(names) or not all(names):
            raise ConfigurationError(f"the roles must be four different ones, not {', '.join(names)}")

    def names(self) -> tuple[str, ...]:
        """Return the four names."""
        return self.owner, self.app, self.rotator, self.auditor


def statements(connection: Connection, roles: Roles) -> list[str]:
    """Return what brings the database's roles to what they should be; the same again where they are.

    A name is written so that it can be seen: each statement is safe to print.

    Args:
        connection: A connection of any role. Most statements need a superuser to run.
        roles: Names of the roles; those that are missing are created.

    Raises:
        ProvisioningError: A name is that of a superuser, or somebody unknown has something where only the owner's may be.
        SchemaNotMigratedError: A table is declared as encrypted and cannot be followed.
    """
    path = _all(connection, "SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]")[0][0]
    with system_names(connection):
        return [escaped_sql(statement) for statement in _Plan(connection, roles, path).statements()]


def provision(connection: Connection, roles: Roles) -> list[str]:
    """Run them in the connection's transaction, which the caller commits, and return them.

    Raises:
        ProvisioningError, SchemaNotMigratedError: As for :func:`statements`.
        DatabaseError: The connection's role may not do that.
    """
    made = statements(connection, roles)
    with system_names(connection):
        for statement in made:
            execute(connection, text(statement.replace(":", r"\:")), table="roles")
    return made


def without_password(connection: Connection, roles: Roles) -> list[str]:
    """Return which of the roles have no password yet; all of them where this connection's role may not see that.

    Args:
        connection: A connection of any role.
        roles: Names of the roles.
    """
    may_see = "SELECT pg_catalog.has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'SELECT')"
    if not _all(connection, may_see)[0][0]:
        return list(roles.names())
    having = _all(
        connection,
        "SELECT CAST(rolname AS pg_catalog.text) FROM pg_catalog.pg_authid WHERE rolpassword IS NOT NULL "
        "AND CAST(rolname AS pg_catalog.text) OPERATOR(pg_catalog.=) ANY (CAST(:names AS pg_catalog.text[]))",
        names=list(roles.names()),
    )
    known = {row.rolname for row in having}
    return [name for name in roles.names() if name not in known]


def leftovers(connection: Connection, roles: Roles) -> list[Finding]:
    """Return the objects that the roles' statements could find by name, and whose owners are not trusted; they stay as they are.

    Functions, operators, aggregates, types, casts, collations, operator classes, tables: in pgcrypto, in the schemas of encrypted
    tables, in this connection's search path, and in those that the roles have by a setting.

    Args:
        connection: A connection of any role.
        roles: Names of the roles.
    """
    path = _all(connection, "SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]")[0][0]
    with system_names(connection):
        plan = _Plan(connection, roles, path)
        schemas = {*path, *plan.schemas(), *(name for own in plan.own_paths() for name in own.schemas)}
        searched = ", ".join(quoted(name) for name in sorted(schemas - {"pg_catalog", "pg_temp", "$user"}))
        set_path = "SELECT pg_catalog.set_config('search_path', CAST(:path AS pg_catalog.text), true)"
        _all(connection, set_path, path=searched)
        return unsafe_schemas(tuple(row) for row in _all(connection, LEFTOVERS))


@dataclass(frozen=True, slots=True)
class _OwnPath:
    """A search path that is set for one role.

    Attributes:
        role: The role.
        database: The only database that it is set for; None: all.
        schemas: The names in it.
    """

    role: str
    database: str | None
    schemas: tuple[str, ...]

    @property
    def is_late(self) -> bool:
        """Whether names are found elsewhere before pg_catalog."""
        return "pg_catalog" in self.schemas[1:]


def _all(connection: Connection, query: str, **parameters: Any) -> list[Any]:
    return list(execute(connection, text(query), parameters, table="pg_catalog"))


class _Plan:
    """The statements for one database, whose names are looked up in the system's schema only, and so are written in full."""

    def __init__(self, connection: Connection, roles: Roles, path: list[str]) -> None:
        self._connection = connection
        self._roles = roles
        self._path = path
        self._owner, self._app, self._rotator, self._auditor = (quoted(name) for name in roles.names())
        self._everyone = (self._owner, self._app, self._rotator, self._auditor)
        self._keyed = (self._owner, self._app, self._rotator)

    def _all(self, query: str, **parameters: Any) -> list[Any]:
        return _all(self._connection, query, **parameters)

    def statements(self) -> Iterator[str]:
        self._require_trusted_schemas()
        yield from self._create_roles()
        yield from self._settings()
        yield from self._database()
        tables = encrypted_tables(self._connection)
        registry = self._registered()
        names = {table.name: self._tree(table.table) for table in tables}
        yield from self._schemas(self.schemas() | {"public"} & set(self._path))
        yield from self._registry({name: _full(*found) for name, found in registry.items() if found[0]})
        for table in tables:
            yield from self._encrypted(table, [_full(*found) for found in names[table.name]])

    def schemas(self) -> set[str]:
        """Return the schemas of encrypted tables, their partitions and the registry."""
        found = itertools.chain(*(self._tree(table.table) for table in encrypted_tables(self._connection)))
        return {schema for schema, _ in (*self._registered().values(), *found) if schema}

    def _registered(self) -> dict[str, tuple[str, str]]:
        return {table.name: self._existing(table) for table in (*_REGISTRY, _MIGRATIONS)}

    def own_paths(self) -> list[_OwnPath]:
        """Return the search paths that are set for the roles, as each role may do for itself."""
        rows = self._all(
            "SELECT r.rolname, d.datname, pg_catalog.substr(c.setting, 13) AS path FROM pg_catalog.pg_db_role_setting s "
            "CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c (setting) JOIN pg_catalog.pg_roles r ON r.oid = s.setrole "
            "LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase "
            "WHERE r.rolname = ANY(:names) AND pg_catalog.starts_with(c.setting, 'search_path=') "
            "AND (d.datname IS NULL OR d.datname = pg_catalog.current_database()) ORDER BY 1, 2",
            names=list(self._roles.names()),
        )
        return [_OwnPath(row.rolname, row.datname, schemas_named(row.path)) for row in rows]

    def _require_trusted_schemas(self) -> None:
        """Refuse a schema pgcrypto of somebody unknown, who could put functions into it that are given keys."""
        foreign = self._all(
            f"SELECT pg_catalog.pg_get_userbyid(n.nspowner) FROM pg_catalog.pg_namespace n WHERE n.nspname = 'pgcrypto' "  # noqa: S608  # of constants
            f"AND n.nspowner <> coalesce((SELECT oid FROM pg_catalog.pg_roles WHERE rolname = :owner), 0::oid) AND {NOT_TRUSTED.format(role='n.nspowner')}",
            owner=self._roles.owner,
        )
        if foreign:
            raise ProvisioningError(
                f"the schema pgcrypto is of {foreign[0][0]}, who could put functions into it that are given keys: look what is in "
                "it, then drop it, or ALTER SCHEMA pgcrypto OWNER TO a superuser"
            )

    def _create_roles(self) -> Iterator[str]:
        known = {
            row.rolname: row.rolsuper
            for row in self._all(
                "SELECT rolname, rolsuper FROM pg_catalog.pg_roles WHERE rolname = ANY(:names)",
                names=list(self._roles.names()),
            )
        }
        for name, quoted_name in zip(self._roles.names(), self._everyone, strict=True):
            if known.get(name):
                raise ProvisioningError(f"{name} is a superuser, so its rights cannot be limited: choose another role")
            if name not in known:
                yield f"CREATE ROLE {quoted_name} LOGIN"
        sees_all = self._unhidden()
        for name, role in zip(self._roles.names(), self._everyone, strict=True):
            hidden = "BYPASSRLS" if name in sees_all else "NOBYPASSRLS"
            yield f"ALTER ROLE {role} NOCREATEDB NOCREATEROLE NOREPLICATION {hidden}"
        memberships = self._all(
            "SELECT g.rolname AS granted, m.rolname AS member FROM pg_catalog.pg_auth_members a "
            "JOIN pg_catalog.pg_roles g ON g.oid = a.roleid JOIN pg_catalog.pg_roles m ON m.oid = a.member "
            "WHERE m.rolname = ANY(:names) AND NOT (m.rolname = :rotator AND g.rolname = 'pg_read_all_stats') ORDER BY 1, 2",
            names=list(self._roles.names()[1:]),
            rotator=self._roles.rotator,
        )
        for row in memberships:
            yield f"REVOKE {quoted(row.granted)} FROM {quoted(row.member)}"

    def _unhidden(self) -> set[str]:
        """Return the roles that row-level security of an encrypted table may hide nothing from: a rotation must see all rows.

        The owner retires keys, and is subject to it only where a table forces it.
        """
        names = [_full(*found) for table in encrypted_tables(self._connection) for found in self._tree(table.table)]
        row = self._all(
            "SELECT coalesce(pg_catalog.bool_or(c.relrowsecurity), false), "
            "coalesce(pg_catalog.bool_or(c.relrowsecurity AND c.relforcerowsecurity), false) FROM pg_catalog.pg_class c "
            "WHERE c.oid = ANY (CAST(:names AS pg_catalog.text[])::pg_catalog.regclass[]::pg_catalog.oid[])",
            names=names,
        )[0]
        wanted = ((self._roles.rotator, row[0]), (self._roles.owner, row[1]))
        return {role for role, is_needed in wanted if is_needed}

    def _settings(self) -> Iterator[str]:
        version = self._all("SELECT pg_catalog.current_setting('server_version_num')::int / 10000")[0][0]
        names = {name: value for name, value in SETTINGS.items() if version >= _NEWER_SETTINGS.get(name, 0)}
        for role in self._keyed:
            for name, value in names.items():
                yield f"ALTER ROLE {role} SET {name} = {value}"
        # One for this database alone would win over the role's.
        for row in self._all(
            "SELECT r.rolname, d.datname, pg_catalog.split_part(c.setting, '=', 1) AS setting FROM pg_catalog.pg_db_role_setting s "
            "CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c (setting) JOIN pg_catalog.pg_roles r ON r.oid = s.setrole "
            "JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase AND d.datname = pg_catalog.current_database() "
            "WHERE r.rolname = ANY(:names) AND pg_catalog.split_part(c.setting, '=', 1) = ANY(:settings) ORDER BY 1, 3",
            names=list(self._roles.names()),
            settings=list(names),
        ):
            yield f"ALTER ROLE {quoted(row.rolname)} IN DATABASE {quoted(row.datname)} RESET {row.setting}"
        for own in self.own_paths():
            if own.is_late:
                where = f" IN DATABASE {quoted(own.database)}" if own.database else ""
                yield f"ALTER ROLE {quoted(own.role)}{where} RESET search_path"
        # Who holds an old snapshot, and how far replicas are: a rotation waits for them.
        yield f"GRANT pg_read_all_stats TO {self._rotator}"

    def _database(self) -> Iterator[str]:
        name = quoted(self._all("SELECT pg_catalog.current_database()")[0][0])
        yield f"REVOKE CREATE, TEMPORARY ON DATABASE {name} FROM PUBLIC"
        for role in self._everyone:
            yield f"REVOKE ALL ON DATABASE {name} FROM {role}"
            yield f"GRANT CONNECT ON DATABASE {name} TO {role}"
        yield f"GRANT CREATE, TEMPORARY ON DATABASE {name} TO {self._owner}"

    def _schemas(self, schemas: Iterable[str]) -> Iterator[str]:
        found = self._all(
            "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'pgcrypto'"
        )
        if not found:
            yield "CREATE SCHEMA IF NOT EXISTS pgcrypto"
            yield "CREATE EXTENSION pgcrypto SCHEMA pgcrypto"
        elif found[0][0] != "pgcrypto":
            yield "CREATE SCHEMA IF NOT EXISTS pgcrypto"
            yield "ALTER EXTENSION pgcrypto SET SCHEMA pgcrypto"
        yield "REVOKE ALL ON SCHEMA pgcrypto FROM PUBLIC"
        for role in (self._app, self._rotator, self._auditor):
            yield f"REVOKE ALL ON SCHEMA pgcrypto FROM {role}"
        for role in self._keyed:
            yield f"GRANT USAGE ON SCHEMA pgcrypto TO {role}"
        for schema in (quoted(each) for each in sorted(schemas)):
            yield f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"
            for role in (self._app, self._rotator, self._auditor):
                yield f"REVOKE ALL ON SCHEMA {schema} FROM {role}"
            for role in self._everyone:
                yield f"GRANT USAGE ON SCHEMA {schema} TO {role}"
            yield f"GRANT CREATE ON SCHEMA {schema} TO {self._owner}"

    def _registry(self, names: dict[str, str]) -> Iterator[str]:
        keys, index_keys, failures = (
            row.__tablename__ for row in (EncryptionKeyRow, IndexKeyRow, KeyRotationFailureRow)
        )
        for table, name in names.items():
            yield from self._owned(name)
            if table == _MIGRATIONS.name:
                continue
            if table in {keys, index_keys}:
                yield f"GRANT SELECT ON {name} TO {self._app}"
            yield f"GRANT SELECT, INSERT, UPDATE{', DELETE' if table == failures else ''} ON {name} TO {self._rotator}"
            yield f"GRANT SELECT ON {name} TO {self._auditor}"

    def _encrypted(self, table: EncryptedTable, names: list[str]) -> Iterator[str]:
        seen = [
            *(column.name for column in table.key),
            table.version.name,
            *(each.column for each in table.fields.values()),
            *(name for name in _DATES if name in table.table.columns),
        ]
        columns = ", ".join(quoted(column) for column in dict.fromkeys(seen))
        for name in names:
            yield from self._owned(name)
            yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {self._app}"
            yield f"GRANT SELECT, UPDATE ON {name} TO {self._rotator}"
            yield f"GRANT SELECT ({columns}) ON {name} TO {self._auditor}"
        for row in self._all(
            "SELECT n.nspname, s.relname FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace "
            "JOIN pg_catalog.pg_depend d ON d.objid = s.oid AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') "
            "WHERE s.relkind = 'S' AND d.refobjid = CAST(:name AS regclass) ORDER BY 1, 2",
            name=names[0],
        ):
            yield f"GRANT USAGE ON SEQUENCE {_full(*row)} TO {self._app}"

    def _owned(self, name: str) -> Iterator[str]:
        owner = self._all(
            "SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = CAST(:name AS regclass)",
            name=name,
        )[0][0]
        if owner != self._roles.owner:  # it would wait for everybody who uses the table, and let others wait meanwhile
            yield f"ALTER TABLE {name} OWNER TO {self._owner}"
        for role in ("PUBLIC", self._app, self._rotator, self._auditor):
            yield f"REVOKE ALL ON {name} FROM {role} CASCADE"

    def _existing(self, table: Table) -> tuple[str, str]:
        """Return schema and name of a table that is found by its name alone outside of here; empty where there is none."""
        rows = self._all(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = :name AND n.nspname::text = ANY(:path) AND c.relkind = 'r' "
            "ORDER BY pg_catalog.array_position(CAST(:path AS text[]), n.nspname::text) LIMIT 1",
            name=table.name,
            path=self._path,
        )
        return (rows[0][0], rows[0][1]) if rows else ("", "")

    def _tree(self, table: Table) -> list[tuple[str, str]]:
        """Return schema and name of a table, and of its partitions, on which the rotation works."""
        rows = self._all(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.oid = CAST(:name AS regclass) "
            "OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(CAST(:name AS regclass))) "
            "ORDER BY c.oid = CAST(:name AS regclass) DESC, 1, 2",
            name=_full(table.schema or "", table.name),
        )
        return [(row[0], row[1]) for row in rows]


def _full(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"
