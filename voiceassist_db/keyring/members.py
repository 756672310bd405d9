"""Which databases use the keys of a key store: a list beside the keys, because a key must stay until its last user has left it.

Owns the identity of a database, the list's form, and the rule of who still needs a key. The list is a JSON object: for each
identity the database's ``name``, the ``oldest`` key version that it may need, and ``index``, the check value of the only blind-index
key that it needs. A ``forgotten`` entry stays, with the revision at which it became so: nobody takes its database for one that the
list lost. The list holds no secret.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, func, insert, select, text, update

from voiceassist_db.errors import MalformedKeyError
from voiceassist_db.execution import execute, require_transactions, translated
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.models import DatabaseIdentityRow, EncryptionKeyRow, IndexKeyRow, table_of
from voiceassist_db.waits import one_at_a_time

_IDENTITY: Final = table_of(DatabaseIdentityRow)
_KEYS: Final = table_of(EncryptionKeyRow)
_INDEX_KEYS: Final = table_of(IndexKeyRow)

_MAY_ASK: Final = text("SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
_SERVER: Final = text("SELECT system_identifier FROM pg_catalog.pg_control_system()")
_NUMBER: Final = text(
    "SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"
)


@dataclass(frozen=True, slots=True)
class Member:
    """A database that uses the keys.

    Attributes:
        name: What people call it, such as ``clinic on db1:5432``. Only the identity counts.
        oldest: The oldest key version that it may need.
        index: Check value, in hexadecimal, of the only blind-index key that it needs; None while it may need another, too.
        forgotten_at: The revision of the secret at which an operator said that it no longer exists; None of one that does.
    """

    name: str
    oldest: int
    index: str | None = None
    forgotten_at: int | None = None

    def is_done_with(self, keys: KeySet) -> bool:
        """Say whether it needs the current encryption key only."""
        return self.oldest >= keys.version

    def is_done_with_index(self, keys: KeySet) -> bool:
        """Say whether it needs the current blind-index key only."""
        return keys.index_key is not None and self.index == _index_check_value(keys.index_key)


@dataclass(frozen=True, slots=True)
class Here:
    """The database that a connection leads to.

    Attributes:
        id: Its identity.
        name: What people call it.
        retired: The key versions that are retired in it.
        retired_index_keys: The blind-index keys that are, by their check values in the registry.
    """

    id: UUID
    name: str
    retired: frozenset[int] = frozenset()
    retired_index_keys: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, connection: Connection) -> Here | None:
        """Return who this database is; None while it has no identity of its own, as a copy of another one has not."""
        found = execute(connection, select(_IDENTITY.c.id, _IDENTITY.c.place), table=_IDENTITY.name).first()
        return None if found is None or found.place != _place(connection) else cls._with(connection, found.id)

    @classmethod
    def known(cls, engine: Engine) -> Here:
        """Return who this database is, and give it an identity if it has none, in a transaction of its own.

        The identity is on disk before the key store learns it: a list never names a database that does not know so itself.
        """
        with translated(), engine.begin() as connection:
            return cls.made(connection)

    @classmethod
    def made(cls, connection: Connection) -> Here:
        """The same in the connection's transaction, which the caller commits."""
        if (found := cls.of(connection)) is not None:
            return found
        require_transactions(connection)
        one_at_a_time(connection, _IDENTITY)  # the second of two processes waits here, and finds the first one's
        if (found := cls.of(connection)) is not None:
            return found
        execute(connection, text("SET LOCAL synchronous_commit = on"), table=_IDENTITY.name)
        made = cls._with(connection, uuid4())
        values = {"id": made.id, "place": _place(connection), "created_at": func.now()}
        if not execute(connection, update(_IDENTITY).values(values), table=_IDENTITY.name).rowcount:
            execute(connection, insert(_IDENTITY).values(values), table=_IDENTITY.name)
        return made

    @classmethod
    def _with(cls, connection: Connection, identity: UUID) -> Here:
        keys = select(_KEYS.c.version).where(_KEYS.c.state == "retired")
        index_keys = select(_INDEX_KEYS.c.check_value).where(_INDEX_KEYS.c.state == "retired")
        return cls(
            identity,
            _name(connection),
            frozenset(execute(connection, keys, table=_KEYS.name).scalars()),
            frozenset(execute(connection, index_keys, table=_INDEX_KEYS.name).scalars()),
        )


def _place(connection: Connection) -> str:
    """Return what tells this database from a copy of it: its server, by the identifier of its cluster, and its number there.

    A physical replica has both of the original. A server that keeps its identifier to itself tells copies on one server apart.
    """
    may_ask: bool = execute(connection, _MAY_ASK, table="pg_control").scalar_one()
    server = str(execute(connection, _SERVER, table="pg_control").scalar_one()) if may_ask else ""
    return f"{server}/{execute(connection, _NUMBER, table='pg_database').scalar_one()}"


def _name(connection: Connection) -> str:
    """Return what to call the database: its name and its server's. An address in a file is where this client finds it."""
    info = connection.connection.dbapi_connection.info  # type: ignore[union-attr]  # psycopg's
    host = socket.gethostname() if not info.host or info.host.startswith(("/", "@")) else info.host
    return (
        f"{execute(connection, select(func.current_database()), table='pg_catalog').scalar_one()} on {host}:{info.port}"
    )


def members(keys: KeySet) -> dict[UUID, Member]:
    """Return the databases that the key store lists, without the forgotten ones; none where it keeps no list.

    Raises:
        MalformedKeyError: The list is not of its form.
    """
    return {each: member for each, member in entries(keys).items() if member.forgotten_at is None}


def entries(keys: KeySet) -> dict[UUID, Member]:
    """Return the same with the databases that were forgotten."""
    if not keys.databases:
        return {}
    problem = ""
    try:
        listed = {UUID(name): _member(entry) for name, entry in json.loads(keys.databases).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = type(error).__name__
    if problem:
        raise MalformedKeyError(
            f"the field `databases` of the secret is not the list that `voiceassist-db init-keys` writes ({problem}), and it says until "
            "when keys are needed. Restore it from an earlier version of the secret (`vault kv get -version=… -field=databases SECRET | vault kv "
            "patch SECRET databases=-`). If none has it, empty it (`vault kv patch SECRET databases=`), and run `voiceassist-db init-keys` in "
            "every database that uses the secret. Nothing was changed."
        )
    return listed


def _member(entry: Mapping[str, Any]) -> Member:
    made = Member(entry["name"], entry["oldest"], entry.get("index"), entry.get("forgotten"))
    if type(made.oldest) is not int or type(made.name) is not str or not isinstance(made.index, str | None):
        raise TypeError
    if not isinstance(made.forgotten_at, int | None):
        raise TypeError
    return made


def listing(keys: KeySet, listed: Mapping[UUID, Member]) -> KeySet:
    """Return the keys with this list."""
    fields = {
        str(each): {"name": member.name, "oldest": member.oldest}
        | ({"index": member.index} if member.index else {})
        | ({} if member.forgotten_at is None else {"forgotten": member.forgotten_at})
        for each, member in listed.items()
    }
    return replace(keys, databases=json.dumps(fields, separators=(",", ":"), sort_keys=True))


def is_listed(keys: KeySet, here: Here | None) -> bool:
    """Say whether the key store lists this database, or keeps no list."""
    return keys.databases is None or (here is not None and here.id in members(keys))


def used_by(keys: KeySet, here: Here | None) -> tuple[str, ...]:
    """Return the names of the databases that are listed, where this one is not."""
    listed = members(keys)
    return () if here is not None and here.id in listed else tuple(each.name for each in listed.values())


def needed_by(keys: KeySet, here: Here | None) -> tuple[str, ...]:
    """Return the names of the other databases that may need the previous encryption key."""
    return () if keys.previous_version is None else _others(keys, here, Member.is_done_with)


def lost_to(keys: KeySet, here: Here | None) -> tuple[tuple[str, int], ...]:
    """Return the names of the other databases that need an older key than any that is left, and its version: somebody removed it by hand."""
    oldest = min(keys.versions())
    others = (member for each, member in members(keys).items() if here is None or each != here.id)
    return tuple((member.name, member.oldest) for member in others if member.oldest < oldest)


def index_needed_by(keys: KeySet, here: Here | None) -> tuple[str, ...]:
    """Return the names of the other databases that may need the previous blind-index key."""
    return () if keys.previous_index_key is None else _others(keys, here, Member.is_done_with_index)


def is_listed_as_done_with_index(keys: KeySet, here: Here | None) -> bool:
    """Say whether the key store has been told that this database needs the current blind-index key only."""
    member = members(keys).get(here.id) if here is not None else None
    return member is not None and member.is_done_with_index(keys)


def _others(keys: KeySet, here: Here | None, is_done: Callable[[Member, KeySet], bool]) -> tuple[str, ...]:
    # Two entries of one name are this database and what it was before it was restored: only their identities tell them apart.
    return tuple(
        f"{member.name} (identity {each})" if here is not None and member.name == here.name else member.name
        for each, member in members(keys).items()
        if (here is None or each != here.id) and not is_done(member, keys)
    )


def joined(keys: KeySet, here: Here) -> KeySet:
    """Return the keys with this database in their list.

    It may need all of them, unless it was listed as done with one and its own registry agrees: it may be a backup of the time before.
    """
    if keys.databases is None:
        return keys
    before = members(keys).get(here.id)
    oldest = keys.previous_version or keys.version
    if before is not None:
        oldest = before.oldest if keys.previous_version in {None, *here.retired} else min(before.oldest, oldest)
    index = before.index if before is not None else None
    if keys.index_key is not None:
        current, older = _index_check_value(keys.index_key), keys.previous_index_key
        if older is None:
            index = current
        elif index == current and registered_as(older) not in here.retired_index_keys:
            index = None
    return listing(keys, entries(keys) | {here.id: Member(here.name, oldest, index)})


def needing(keys: KeySet, here: Here, version: int) -> KeySet:
    """Return the keys with it written down that this database has rows under a version."""
    return _changed(keys, here, lambda member: replace(member, oldest=min(member.oldest, version)))


def done_with(keys: KeySet, here: Here, version: int) -> KeySet:
    """Return the keys without the previous one, or with it written down that this database needs ``version`` and later only."""
    left = _changed(keys, here, lambda member: replace(member, oldest=version))
    return left if needed_by(left, here) else replace(left, previous_version=None, previous_key=None)


def done_with_index(keys: KeySet, here: Here) -> KeySet:
    """Return the keys without the previous blind-index key, or with it written down that this database needs the current one only."""
    current = keys.index_key
    assert current is not None  # a rotation of it is at its end
    left = _changed(keys, here, lambda member: replace(member, index=_index_check_value(current)))
    return left if index_needed_by(left, here) else replace(left, previous_index_key=None)


def _changed(keys: KeySet, here: Here, change: Callable[[Member], Member]) -> KeySet:
    keys = joined(keys, here)
    listed = members(keys)
    if here.id not in listed:
        return keys
    return listing(keys, entries(keys) | {here.id: change(listed[here.id])})


def registered_as(key: Key) -> bytes:
    """Return the check value of a blind-index key in the registry."""
    return key.check_value("index_keys")


def _index_check_value(key: Key) -> str:
    return key.check_value("databases:index").hex()
