"""The roles that a deployment needs, with the rights of each and no more, as SQL.

Owns which role may do what. The statements are found by looking at the database as it is, may be repeated, and hold no
password: whoever runs them sets those. Settings are given to each role itself, for they come with a login and are not inherited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from sqlalchemy import Connection, MetaData, Table, text

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import ConfigurationError, ProvisioningError
from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import (
    EncryptedTable,
    EncryptionKeyRow,
    IndexKeyRow,
    KeyRotationFailureRow,
    KeyRotationRow,
    table_of,
)
from voiceassist_db.safety import SETTINGS

_NEWER_SETTINGS: Final = {"auto_explain.log_parameter_max_length": 16}
"""Settings by the PostgreSQL version that brought them: the ones before refuse the name while the module is loaded."""

_DATES: Final = ("created_at", "updated_at")
_MIGRATIONS: Final = Table("alembic_version", MetaData())
_REGISTRY: Final = tuple(
    table_of(row) for row in (EncryptionKeyRow, IndexKeyRow, KeyRotationRow, KeyRotationFailureRow)
)


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

    Args:
        connection: A connection of any role. Most statements need a superuser to run.
        roles: Names of the roles; those that are missing are created.

    Raises:
        ProvisioningError: A name is that of a superuser.
    """
    return list(_Plan(connection, roles).statements())


def provision(connection: Connection, roles: Roles) -> list[str]:
    """Run them in the connection's transaction, which the caller commits, and return them.

    Raises:
        DatabaseError: The connection's role may not do that.
    """
    made = statements(connection, roles)
    for statement in made:
        execute(connection, text(statement.replace(":", r"\:")), table="roles")
    return made


class _Plan:
    def __init__(self, connection: Connection, roles: Roles) -> None:
        self._connection = connection
        self._roles = roles
        self._owner, self._app, self._rotator, self._auditor = (self._quote(name) for name in roles.names())
        self._everyone = (self._owner, self._app, self._rotator, self._auditor)

    @staticmethod
    def _quote(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def statements(self) -> Iterator[str]:
        yield from self._create_roles()
        yield from self._settings()
        yield from self._database()
        yield from self._pgcrypto()
        tables = encrypted_tables(self._connection)
        yield from self._registry()
        for table in tables:
            yield from self._encrypted(table)
        for schema in sorted({each.table.schema for each in tables if each.table.schema}):
            for role in self._everyone:
                yield f"GRANT USAGE ON SCHEMA {self._quote(schema)} TO {role}"

    def _create_roles(self) -> Iterator[str]:
        found = execute(
            self._connection,
            text("SELECT rolname, rolsuper FROM pg_catalog.pg_roles WHERE rolname = ANY(:names)"),
            {"names": list(self._roles.names())},
            table="pg_roles",
        )
        known = dict(tuple(row) for row in found)
        for name, quoted in zip(self._roles.names(), self._everyone, strict=True):
            if known.get(name):
                raise ProvisioningError(f"{name} is a superuser, whom no right can be kept from: name another role")
            if name not in known:
                yield f"CREATE ROLE {quoted} LOGIN"

    def _settings(self) -> Iterator[str]:
        number = text("SELECT current_setting('server_version_num')::int / 10000")
        version = execute(self._connection, number, table="pg_settings").scalar_one()
        for role in (self._owner, self._app, self._rotator):
            for name, value in SETTINGS.items():
                if version >= _NEWER_SETTINGS.get(name, 0):
                    yield f"ALTER ROLE {role} SET {name} = {value}"
        # Who holds an old snapshot, and how far replicas are: a rotation waits for them.
        yield f"GRANT pg_read_all_stats TO {self._rotator}"

    def _database(self) -> Iterator[str]:
        name = execute(self._connection, text("SELECT current_database()"), table="pg_database").scalar_one()
        for role in self._everyone:
            yield f"GRANT CONNECT ON DATABASE {self._quote(name)} TO {role}"
            yield f"GRANT USAGE ON SCHEMA public TO {role}"
        yield f"GRANT CREATE ON DATABASE {self._quote(name)} TO {self._owner}"
        yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        yield f"GRANT CREATE ON SCHEMA public TO {self._owner}"

    def _pgcrypto(self) -> Iterator[str]:
        found = execute(
            self._connection,
            text(
                "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
                "WHERE e.extname = 'pgcrypto'"
            ),
            table="pg_extension",
        ).scalar()
        if found is None:
            yield "CREATE SCHEMA IF NOT EXISTS pgcrypto"
            yield "CREATE EXTENSION pgcrypto SCHEMA pgcrypto"
        elif found != "pgcrypto":
            yield "CREATE SCHEMA IF NOT EXISTS pgcrypto"
            yield "ALTER EXTENSION pgcrypto SET SCHEMA pgcrypto"
        yield "REVOKE ALL ON SCHEMA pgcrypto FROM PUBLIC"
        for role in (self._owner, self._app, self._rotator):
            yield f"GRANT USAGE ON SCHEMA pgcrypto TO {role}"

    def _registry(self) -> Iterator[str]:
        keys, index_keys, _, failures = _REGISTRY
        for table in _REGISTRY:
            if (name := self._existing(table)) is None:
                continue
            yield from self._owned(name)
            if table in (keys, index_keys):
                yield f"GRANT SELECT ON {name} TO {self._app}"
            yield f"GRANT SELECT, INSERT, UPDATE ON {name} TO {self._rotator}"
            if table is failures:
                yield f"GRANT DELETE ON {name} TO {self._rotator}"
            yield f"GRANT SELECT ON {name} TO {self._auditor}"
        if (name := self._existing(_MIGRATIONS)) is not None:
            yield from self._owned(name)

    def _encrypted(self, table: EncryptedTable) -> Iterator[str]:
        seen = [
            *(column.name for column in table.key),
            table.version.name,
            *(each.column for each in table.fields.values()),
        ]
        seen += [name for name in _DATES if name in table.table.columns]
        columns = ", ".join(self._quote(column) for column in dict.fromkeys(seen))
        for name in self._tree(table.table):
            yield from self._owned(name)
            yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {self._app}"
            yield f"GRANT SELECT, UPDATE ON {name} TO {self._rotator}"
            yield f"GRANT SELECT ({columns}) ON {name} TO {self._auditor}"
        for sequence in self._sequences(table.table):
            yield f"GRANT USAGE ON SEQUENCE {sequence} TO {self._app}"

    def _owned(self, name: str) -> Iterator[str]:
        owner = execute(
            self._connection,
            text(
                "SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = CAST(:name AS regclass)"
            ),
            {"name": name},
            table="pg_class",
        ).scalar_one()
        if owner != self._roles.owner:  # it would wait for everybody who uses the table, and let others wait meanwhile
            yield f"ALTER TABLE {name} OWNER TO {self._owner}"
        for role in (self._app, self._rotator, self._auditor):
            yield f"REVOKE ALL ON {name} FROM {role}"
        yield f"REVOKE ALL ON {name} FROM PUBLIC"

    def _existing(self, table: Table) -> str | None:
        found: str | None = execute(
            self._connection,
            text("SELECT to_regclass(:name)::text"),
            {"name": regclass(self._connection, table)},
            table=table.name,
        ).scalar()
        return found

    def _tree(self, table: Table) -> list[str]:
        """Return the names of a table and of its partitions, on which the rotation works."""
        return self._names(
            table, "SELECT relid::regclass::text FROM pg_catalog.pg_partition_tree(CAST(:name AS regclass))"
        ) or [regclass(self._connection, table)]

    def _sequences(self, table: Table) -> list[str]:
        return self._names(
            table,
            "SELECT s.oid::regclass::text FROM pg_catalog.pg_class s JOIN pg_catalog.pg_depend d ON d.objid = s.oid "
            "AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'a' "
            "WHERE s.relkind = 'S' AND d.refobjid = CAST(:name AS regclass) ORDER BY 1",
        )

    def _names(self, table: Table, query: str) -> list[str]:
        name = {"name": regclass(self._connection, table)}
        return list(execute(self._connection, text(query), name, table=table.name).scalars())
