"""How a key, and many values at once, reach a statement: as bind parameters that only psycopg unwraps.

Owns the SQL types of keys and the dumpers. A connection without the dumpers cannot send a key at all, so whoever registers
them decides which connections are fit to receive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import psycopg
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format
from sqlalchemy import BindParameter, bindparam
from sqlalchemy.types import UserDefinedType

from voiceassist_db.errors import ConfigurationError, UnsafeConnectionError
from voiceassist_db.keys import Key
from voiceassist_db.loading import BytesArrayLoader, IntervalLoader
from voiceassist_db.masking import Opaque


class Keys(Opaque):
    """The keys of one statement, as one array: a parameter for each would cost more than the encryption.

    Shows itself as little as a :class:`~voiceassist_db.keys.Key` does.

    Args:
        keys: The keys by position; None where the statement has no use for that one.
    """

    __slots__ = ("_exposed",)

    def __init__(self, keys: Sequence[Key | None]) -> None:
        # Base64 needs no quotes in an array. A missing key is empty, which pgcrypto refuses: NULL would be a text where array_nulls is off.
        self._exposed = b"{" + b",".join(b'""' if key is None else key.expose() for key in keys) + b"}"

    def expose(self) -> bytes:
        """Return the keys as the text of a PostgreSQL ``text[]``; only the dumper calls it."""
        return self._exposed


class Array(Opaque):
    """Many values, which may be patients', as PostgreSQL's binary form of an array; the statement must cast it to its type.

    Args:
        data: What ``array_recv`` reads: psycopg's own dumper makes it, ahead of the statement.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class KeysType(UserDefinedType[Keys]):
    """SQL ``text[]`` to the server, :class:`Keys` to Python; it never touches the value itself."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "TEXT[]"


class _Apart(Dumper):
    """Sends a value beside the statement, and never in its text: an application may give a connection other cursors after its check."""

    def quote(self, obj: object) -> NoReturn:
        del obj  # a traceback that shows locals would show it
        raise ConfigurationError(
            "this connection's cursors bind parameters in the client, which would put keys into the text of statements: nothing was sent. "
            "Leave out cursor_factory=ClientCursor"
        )


class _KeysDumper(_Apart):
    oid = psycopg.adapters.types["text"].array_oid

    def dump(self, obj: Keys) -> bytes:
        return obj.expose()


class _ArrayDumper(_Apart):
    format = Format.BINARY  # and no type: the server takes that of the cast

    def dump(self, obj: Array) -> bytes:
        return obj.data


class HexDumper(Dumper):
    """Writes bytes as text that the server reads alike under every setting.

    psycopg's own doubles backslashes where standard_conforming_strings is off, and apostrophes where it has no connection.
    """

    oid = psycopg.adapters.types["bytea"].oid

    def dump(self, obj: Any) -> bytes:
        """Return the text."""
        return b"\\x" + bytes(obj).hex().encode()


def allow_keys(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Let this connection, and no other, send keys and arrays of values, and load every plain value exactly or not at all."""
    connection.adapters.register_loader("interval", IntervalLoader)
    connection.adapters.register_loader(psycopg.adapters.types["bytea"].array_oid, BytesArrayLoader)
    own = connection.adapters.get_dumper(bytes, PyFormat.BINARY)
    for dumper in (
        HexDumper,
        own,
    ):  # text within arrays, and the driver's binary form, which the last one decides, elsewhere
        connection.adapters.register_dumper(bytes, dumper)
    connection.adapters.register_dumper(Keys, _KeysDumper)
    connection.adapters.register_dumper(Array, _ArrayDumper)


def refuse_keys(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], why: str) -> None:
    """Let statements that hold keys or arrays of values fail on this connection before they are sent.

    Args:
        connection: The connection.
        why: The message of the :class:`~voiceassist_db.errors.UnsafeConnectionError`.
    """

    class Refusing(Dumper):
        def dump(self, obj: object) -> NoReturn:
            del obj  # a traceback that shows locals would show it
            raise UnsafeConnectionError(why)

    for kind in (Keys, Array):
        connection.adapters.register_dumper(kind, Refusing)


def require_keys(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raise what a statement with a key would raise on this connection, and send nothing.

    Raises:
        UnsafeConnectionError: Keys are refused.
        psycopg.ProgrammingError: Its engine may not send keys.
    """
    dumper = connection.adapters.get_dumper(Keys, PyFormat.AUTO)
    dumper(Keys, connection).dump(Keys(()))


def keys_parameter() -> BindParameter[Keys]:
    """Return the bind parameter ``keys``, whose value must be given when the statement executes."""
    return bindparam("keys", type_=KeysType())
