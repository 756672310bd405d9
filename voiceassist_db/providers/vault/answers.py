"""What Vault answers, from bytes to checked fields. Sends nothing.

Whoever can answer in Vault's place can send anything. So an answer is limited in depth, and a field is given only if it has the
type that Vault gives it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from voiceassist_db.masking import Opaque

LIMIT_DEPTH: Final = 100
"""Levels of objects and lists in an answer. Vault has four; the rest is for the fields of others in the secret."""

LIMIT_NUMBER: Final = 1 << 63
"""Numbers of Vault's are 64 bits wide."""


class RawSecret(Opaque):
    """A JSON object of Vault's, or the fields of the secret: shows itself only by :meth:`expose`, and is no mapping.

    Tools that report errors walk through mappings and show each value, whatever the mapping's repr is.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, Any] | None = None) -> None:
        self._fields = {} if fields is None else fields

    def expose(self) -> dict[str, Any]:
        """Return the fields themselves; only what builds a request from them calls it."""
        return self._fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __bool__(self) -> bool:
        return bool(self._fields)

    def branch(self, *names: str) -> RawSecret | None:
        """Return the object at the end of a path of names; None where one is missing or is no object."""
        branch: Any = self._fields
        for name in names:
            branch = branch.get(name) if isinstance(branch, dict) else None
        return RawSecret(branch) if isinstance(branch, dict) else None

    def number(self, name: str, *, least: int = 0) -> int | None:
        """Return a whole number of at least ``least``; None where there is none."""
        value = self._fields.get(name)
        # Of exactly this type: for Python, True is a whole number too.
        return value if type(value) is int and least <= value < LIMIT_NUMBER else None

    def flag(self, name: str) -> bool | None:
        """Return a truth value, False where it is missing; None where it is something else."""
        value = self._fields.get(name, False)
        return value if isinstance(value, bool) else None

    def texts(self, name: str) -> list[str] | None:
        """Return a list of strings; None where there is none."""
        value = self._fields.get(name)
        return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


class Answer(Opaque):
    """An HTTP answer.

    Attributes:
        status: The status.
        body: The JSON object; None where the body is anything else.
    """

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: RawSecret | None) -> None:
        self.status = status
        self.body = body

    @property
    def errors(self) -> list[str] | None:
        """The messages of a refusal; None where they do not have Vault's form."""
        return None if self.body is None else self.body.texts("errors")


def parsed(content: bytes) -> RawSecret | None:
    """Return the JSON object that an answer's body is; None where it is anything else, is ambiguous or is too deep."""
    try:
        tree = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse)
        _require_sound(tree)
    except (ValueError, RecursionError):
        return None
    return RawSecret(tree) if isinstance(tree, dict) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice")  # and each parser would choose another one of the two
    return made


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _require_sound(tree: Any) -> None:
    """Refuse what cannot be written back: deep nesting, lone surrogates, and numbers beyond a float's range."""
    level: list[Any] = [tree]
    for _ in range(LIMIT_DEPTH):
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return
    raise ValueError("too deep")


def _within(each: Any) -> Iterable[Any]:
    if isinstance(each, dict):
        return (*each, *each.values())
    if isinstance(each, list):
        return each
    if isinstance(each, str):
        each.encode()  # raises ValueError for a lone surrogate
    elif isinstance(each, float) and not math.isfinite(each):
        raise ValueError("not finite")
    return ()
