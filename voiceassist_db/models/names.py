"""Names in the database: what PostgreSQL keeps of them, and the contexts and constraint names that are made of them.

Owns the rule of default contexts and of names that would be cut. A context is data: it is part of every stored value, so neither
rule may ever give another result for a name that it has already been used for.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

NAME_BYTES: Final = 63
"""PostgreSQL silently cuts a longer identifier (NAMEDATALEN is 64, and counts the NUL at its end)."""

CONTEXT: Final = r"[A-Za-z0-9_.-]+"
"""Contexts are of these characters only: ASCII for HKDF's info, no colon for the prefix of a value, no quote for SQL."""

SYSTEM_SCHEMA: Final = re.compile("pg_.*|information_schema|pgcrypto")

_ODD: Final = re.compile(rb"[^A-Za-z0-9_]")
_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_]*")
_DIGEST_CHARACTERS: Final = 8


def default_context(schema: str | None, table: str, field: str) -> str:
    """Return the context ``schema.table.field`` of a field, without the schema where the table has none.

    A byte of the UTF-8 name that is no ASCII letter, digit or ``_`` becomes ``-`` and two hexadecimal digits. No part has a dot, so
    different fields have different contexts.

    Raises:
        ValueError: A name has a dot, so that ``a.b`` and ``c`` could give what ``a`` and ``b.c`` give.
    """
    parts = [part for part in (schema, table, field) if part is not None]
    if any("." in part for part in parts):
        raise ValueError(
            f"the names {', '.join(map(repr, parts))} have a dot, so that they have no default context: give the column one of its own, "
            "encrypted_column(…, context=…), and the same to its blind_index_column"
        )
    return ".".join(_ODD.sub(lambda found: f"-{found[0].hex()}".encode(), part.encode()).decode() for part in parts)


def require_context(context: str) -> str:
    """Return a context that was given.

    Raises:
        ValueError: It has other characters than contexts may have.
    """
    if not re.fullmatch(CONTEXT, context):
        raise ValueError(
            f"context {context!r}: it may have ASCII letters, digits, '_', '.' and '-' only, and at least one"
        )
    return context


def fitted(name: str, suffix: str) -> str:
    """Return a name and its suffix as one name that PostgreSQL does not cut.

    Where both together are too long, the name is cut here, and a digest of all of it tells it apart from others of its beginning.
    """
    if len((name + suffix).encode()) <= NAME_BYTES:
        return name + suffix
    mark = f"_{hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARACTERS]}{suffix}"
    room = NAME_BYTES - len(mark.encode())
    return name.encode()[:room].decode(errors="ignore") + mark


def quoted(name: str) -> str:
    """Return a name as an SQL identifier that means this name and no other."""
    return name if _PLAIN.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))


def full_name(schema: str | None, table: str) -> str:
    """Return the SQL name of a table, which may be called by a word of SQL, such as ``order``."""
    names = [name for name in (schema, table) if name]
    return ".".join(f'"{name}"' if name in RESERVED_WORDS else quoted(name) for name in names)


def problem_with_schema(name: str) -> str | None:
    """Return why no table can be put into a schema of this name; None where one can."""
    if SYSTEM_SCHEMA.fullmatch(name):
        return "is not for tables: choose another one"
    if name == "$user":
        return "means another schema for each role in a search_path: choose another name"
    return problem_with(name)


def problem_with(name: str) -> str | None:
    """Return why PostgreSQL cannot have a schema, table or column of this name; None where it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "has a lone surrogate, which is not a character"
    if not name or "\x00" in name:
        return "is empty, or has a NUL character"
    if size > NAME_BYTES:
        return f"has {size} bytes, of which PostgreSQL keeps {NAME_BYTES} only: choose a shorter one"
    if getattr(name, "quote", None) is False and not _PLAIN.fullmatch(name):
        return "is another name where it is not quoted: leave out quote=False"
    return None
