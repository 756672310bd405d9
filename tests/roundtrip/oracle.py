"""What must be stored and what must come back, worked out without any code of the product.

Owns its own keys (HKDF and HMAC by ``cryptography``), its own form of a plaintext, its own SQL and its own rule of equality. It takes
the keys from the key store by HTTP and reads the tables on a connection of its own.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import psycopg
import requests
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from psycopg import sql

from tests.conftest import VaultServer

BOUND: Final = "bound"
DIRECT: Final = "direct"


@dataclass(frozen=True)
class Secret:
    """The keys of a key store: raw bytes by version, and the root of the blind indexes."""

    keys: Mapping[int, bytes]
    index_key: bytes

    @classmethod
    def read(cls, vault: VaultServer, path: str) -> Secret:
        """Read the secret at ``MOUNT/PATH`` by HTTP."""
        mount, _, rest = path.partition("/")
        headers = {"X-Vault-Token": vault.root_token}
        answer = requests.get(f"{vault.address}/v1/{mount}/data/{rest}", headers=headers, timeout=30)
        answer.raise_for_status()
        stored = answer.json()["data"]["data"]
        keys = {int(stored.get("key_version", 1)): base64.b64decode(stored["key"])}
        if stored.get("previous_key"):
            keys[int(stored["previous_key_version"])] = base64.b64decode(stored["previous_key"])
        return cls(keys, base64.b64decode(stored["index_key"]))

    def password(self, version: int, scheme: str, context: str) -> str:
        """Return what pgcrypto takes as the password of one column under one version."""
        key = self.keys[version]
        return base64.b64encode(key if scheme == DIRECT else derived(key, context)).decode()

    def token(self, context: str, form: str) -> bytes:
        """Return the token of a value in the form by which it is searched: 16 bytes of its HMAC."""
        mac = HMAC(derived(self.index_key, context), SHA256())
        mac.update(form.encode())
        return mac.finalize()[:16]


@functools.cache
def derived(key: bytes, context: str) -> bytes:
    """Return the key of one context: HKDF-SHA256 (RFC 5869) without a salt."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=context.encode("ascii")).derive(key)


def row_id(key: Sequence[Any]) -> str:
    """Return the text to which the values of a row are bound."""
    return "/".join(map(_part, key))


def _part(part: Any) -> str:
    if isinstance(part, date):
        return _date(part)
    text = str(part)
    return text.replace("%", "%25").replace(":", "%3A").replace("/", "%2F") if isinstance(part, str) else text


def plaintext(kind: str, value: Any) -> str | bytes:
    """Return a value as the plaintext that pgcrypto gets under scheme ``direct``."""
    match kind:
        case "text" | "bytes":
            return value  # type: ignore[no-any-return]  # which the caller's value is
        case "date":
            return _date(value)
        case "datetime":
            moment = _in_utc(value)
            fraction = f".{moment.microsecond:06d}" if moment.microsecond else ""
            return f"{_date(moment)}T{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d}{fraction}+00:00"
        case "integer":
            return f"{value:d}"
        case "decimal":
            return f"{value}"
        case "json":
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    raise AssertionError(kind)


def _date(value: date) -> str:
    return f"{value.year:04d}-{value.month:02d}-{value.day:02d}"


def _in_utc(value: datetime) -> datetime:
    """Return a moment in UTC by its own offset. ``fold`` counts, as a comparison of two zones would not see."""
    offset = value.utcoffset() or timedelta(0)
    return value.replace(tzinfo=None, fold=0) - offset


def is_same(expected: Any, actual: Any) -> bool:
    """Say whether two values are equal and of the same types, in all their parts."""
    if type(expected) is not type(actual):
        return False
    match expected:
        case dict():
            return list(expected) == list(actual) and all(is_same(expected[name], actual[name]) for name in expected)
        case list():
            return len(expected) == len(actual) and all(map(is_same, expected, actual))
        case float():
            return bool(expected.hex() == actual.hex())  # -0.0 is another value
        case Decimal():
            return bool(expected.as_tuple() == actual.as_tuple())  # so are -0 and 1.10
        case datetime():
            return _in_utc(expected) == _in_utc(actual)
    return bool(expected == actual)


def in_utc(value: datetime) -> datetime:
    """Return a moment as it must come back: in UTC."""
    return _in_utc(value).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Column:
    """One encrypted column: its name, its kind and context, and the column and context of its blind index."""

    name: str
    kind: str
    context: str
    index: str | None = None


@dataclass(frozen=True)
class Stored:
    """What a table holds for one row: its key version, the plaintexts and the tokens, both by column."""

    version: int
    plaintexts: Mapping[str, str | bytes | None]
    tokens: Mapping[str, bytes | None]


def connect(dsn: str) -> psycopg.Connection[Any]:
    """Open a connection of the oracle's own."""
    return psycopg.connect(dsn, autocommit=True, client_encoding="UTF8")


def stored(
    connection: psycopg.Connection[Any],
    table: str,
    key: Sequence[str],
    columns: Sequence[Column],
    secret: Secret,
    schemes: Mapping[int, str],
) -> Iterator[tuple[tuple[Any, ...], Stored]]:
    """Yield what a table holds, opened by the oracle's own keys: the primary key of each row, and the rest."""
    names = [sql.Identifier(each) for each in key]
    indexed = [each for each in columns if each.index]
    for version, scheme in schemes.items():
        opened = [
            sql.SQL("pgcrypto.{}({}, %s)").format(
                sql.Identifier("pgp_sym_decrypt_bytea" if each.kind == "bytes" else "pgp_sym_decrypt"),
                sql.Identifier(each.name),
            )
            for each in columns
        ]
        tokens = [sql.Identifier(each.index or "") for each in indexed]
        query = sql.SQL("SELECT {} FROM {} WHERE key_version = %s").format(
            sql.SQL(", ").join([*names, *tokens, *opened]), named(table)
        )
        passwords = [secret.password(version, scheme, each.context) for each in columns]
        width = len(names) + len(tokens)
        for row in connection.execute(query, [*passwords, version]):
            yield (
                row[: len(names)],
                Stored(
                    version,
                    {each.name: value for each, value in zip(columns, row[width:], strict=True)},
                    {each.name: token for each, token in zip(indexed, row[len(names) : width], strict=True)},
                ),
            )


def named(name: str) -> sql.Identifier:
    """Return a name in a statement that has parameters."""
    return sql.Identifier(name.replace("%", "%%"))


def digest(table: str) -> str:
    """Return the query of how many rows a table has, with a digest of every byte of them."""
    query = "SELECT count(*), md5(coalesce(string_agg(md5(given::text), '' ORDER BY md5(given::text)), '')) FROM {} AS given"
    return sql.SQL(query).format(sql.Identifier(table)).as_string()
