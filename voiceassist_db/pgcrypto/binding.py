"""How a key reaches a statement: as a bind parameter that only psycopg unwraps.

Owns the SQL type of a key and the dumper. A connection without the dumper cannot send a key at all, so whoever registers it
decides which connections are fit to receive one.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.adapt import Dumper
from sqlalchemy import BindParameter, bindparam
from sqlalchemy.types import UserDefinedType

from voiceassist_db.keys import Key


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


def allow_keys(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Let this connection, and no other, send keys."""
    connection.adapters.register_dumper(Key, _KeyDumper)


def key_parameter(name: str) -> BindParameter[Key]:
    """Return a bind parameter whose value must be given when the statement executes."""
    return bindparam(name, type_=KeyType())
