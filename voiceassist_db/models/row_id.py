"""A row's primary key as one text: what values are bound to, and how errors and reports name the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def row_id(key: Sequence[Any]) -> str:
    """Return a primary key as the text that values are bound to."""
    if len(key) == 1:
        return _part(key[0]) if isinstance(key[0], str) else str(key[0])
    return "/".join(map(_part, key))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part.replace("%", "%25").replace(":", "%3A").replace("/", "%2F")
    return str(part)
