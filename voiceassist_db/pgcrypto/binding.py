"""How a key reaches a statement: as a bind parameter that only psycopg unwraps.

Owns the SQL type of a key and the dumper. A connection without the dumper cannot send a key at all, so whoever registers it
decides which connections are fit to receive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import psycopg
from psycopg.adapt import Dumper
from sqlalchemy import BindParameter, bindparam
from sqlalchemy.types import UserDefinedType

from voiceassist_db.keys import Key


class Keys:
    """The keys of one statement, as one array: a parameter for each would cost more than the encryption.

    Shows itself as little as a :class:`~voiceassist_db.keys.Key` does.

    Args:
        keys: The keys by position; None where the statement has no use for that one.
    """

    __slots__ = ("_exposed",)

    def __init__(self, keys: Sequence[Key | None]) -> None:
        # Base64 needs no quotes in an array.
        self._exposed = b"{" + b",".join(b"NULL" if key is None else key.expose() for key in keys) + b"}"

    def expose(self) -> bytes:
        """Return the keys as the text of a PostgreSQL ``text[]``; only the dumper calls it."""
        return self._exposed

    def __repr__(self) -> str:
        return "Keys(•••)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("Keys cannot be pickled or copied")


class KeysType(UserDefinedType[Keys]):
    """SQL ``text[]`` to the server, :class:`Keys` to Python; it never touches the value itself."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "TEXT[]"


class KeyType(UserDefinedType[Key]):
    """SQL ``text`` to the server, :class:`~voiceassist_db.keys.Key` to Python; it never touches the value itself."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "TEXT"


class _KeyDumper(Dumper):
    oid = psycopg.adapters.types["text"].oid

    def dump(self, obj: Key) -> bytes:
        return obj.expose()


class _KeysDumper(Dumper):
    oid = psycopg.adapters.types["text"].array_oid

    def dump(self, obj: Keys) -> bytes:
        return obj.expose()


def allow_keys(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Let this connection, and no other, send keys."""
    connection.adapters.register_dumper(Key, _KeyDumper)
    connection.adapters.register_dumper(Keys, _KeysDumper)


def keys_parameter() -> BindParameter[Keys]:
    """Return the bind parameter ``keys``, whose value must be given when the statement executes."""
    return bindparam("keys", type_=KeysType())


def key_parameter(name: str) -> BindParameter[Key]:
    """Return a bind parameter whose value must be given when the statement executes."""
    return bindparam(name, type_=KeyType())
