"""Values of primary and lookup keys of every type: special ones, any, those of subclasses, and what must be refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID

import numpy as np
import pendulum
from freezegun.api import FakeDate

from tests.handed_over import ForeignUUID, LoudBytes, LoudDate, LoudInteger, LoudText, LoudUUID
from tests.roundtrip.values import any_text

KEYS: Final[dict[str, tuple[Any, ...]]] = {
    "uuid": (UUID(int=0), UUID(int=2**128 - 1), UUID("018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f"), UUID(int=1)),
    "integer": (0, -1, 2**31 - 1, -(2**31), 7),
    "bigint": (0, -1, 2**63 - 1, -(2**63), 2**31, 2**53 + 1),
    "text": (
        *(
            "",
            " ",
            "a ",
            "A",
            "a",
            "%",
            ":",
            "/",
            "%25",
            "%3A",
            "%2F",
            "a/b:c%d",
            "//",
            "::",
            "%s",
            "%(id)s",
            ":x",
            "NULL",
            "null",
        ),
        *(
            "é",
            "e\u0301",
            "İıſß",
            "\u202eabc",
            "\u200b",
            "\ufeff",
            "𝄞",
            "\U0010ffff",
            "'",
            '"',
            "\\",
            "\\x41",
            "a\r\nb",
            "\t",
            "\x01\x7f",
        ),
        *("infinity", "2026-01-02", "{a,b}", "x" * 300, "𝄞" * 70),
    ),
    "bytes": (b"", b"\x00", b"\xff", b"'", b"\\", b"\\x41", b"NULL", bytes(range(256))),
    "date": (
        date.min,
        date.max,
        date(2026, 1, 2),
        date(2026, 2, 1),
        date(99, 12, 31),
        date(2024, 2, 29),
        date(1582, 10, 10),
    ),
}
LETTERS: Final = 40
"""Characters of a ``varchar`` key."""
KEY_BYTES: Final = 2600
"""Documented limit of all key and lookup columns of a row, shared equally by them."""

_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "uuid": (str(UUID(int=1)), UUID(int=1).bytes, 1, None, True),
    "integer": (2**31, -(2**31) - 1, 2**63, 10**40, 1.0, "1", True, None),
    "bigint": (2**63, -(2**63) - 1, 10**40, 1.0, "1", False, None),
    "text": ("\x00", "a\x00", "\ud800", b"a", 1, None),
    "bytes": ("a", 1, None),
    "date": (datetime(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02", 1, None),
}


def special_keys(type_: str, most: int) -> list[Any]:
    """Return special values of a key of a type, whose text and data have at most so many bytes."""
    match type_:
        case "varchar":
            short = [each for each in KEYS["text"] if len(each) <= LETTERS]
            return [*short, "x" * LETTERS, "é" * LETTERS, "𝄞" * LETTERS, "x" * (LETTERS - 1) + " "]
        case "text" | "collated":
            dense = "".join(map(chr, random.Random(most).choices(range(32, 127), k=most)))  # noqa: S311  # no compression
            return [*KEYS["text"], dense, "x" * most, "é" * (most // 2), "𝄞" * (most // 4)]
        case "bytes":
            return [*KEYS["bytes"], random.Random(most).randbytes(most)]  # noqa: S311  # as above
    return list(KEYS[type_])


def _any_key(type_: str, chance: random.Random) -> Any:
    match type_:
        case "uuid":
            return UUID(int=chance.getrandbits(128))
        case "integer":
            return chance.randint(-(2**31), 2**31 - 1)
        case "bigint":
            return chance.randint(-(2**63), 2**63 - 1)
        case "bytes":
            return chance.randbytes(chance.randint(1, 40))
        case "date":
            return date.fromordinal(chance.randint(1, date.max.toordinal()))
    return f"{any_text(chance, 20)}{chance.getrandbits(40):x}"[: LETTERS if type_ == "varchar" else None]


def keys(types: Sequence[str], most: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Yield keys of these types, no two alike: of every second one the parts are special, while there are such.

    So the special ones are written by every operation. Keys of several parts combine them by chance.
    """
    seen: set[tuple[Any, ...]] = set()
    special = [special_keys(each, most) for each in types]
    for values in special:
        chance.shuffle(values)
    for at in itertools.count():
        turn = at // 2
        if at % 2 == 0 and (len(types) > 1 or turn < len(special[0])):
            key = tuple(values[turn % len(values)] for values in special)
        else:
            key = tuple(_any_key(each, chance) for each in types)
        if key not in seen:
            seen.add(key)
            yield key


def refused_keys(types: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield keys of these types of which one part cannot be one."""
    for at, type_ in enumerate(types):
        too_long = ("x" * (LETTERS + 1), "x" * LETTERS + " ", "é" * (LETTERS + 1)) if type_ == "varchar" else ()
        for part in (*_REFUSED["text" if type_ in {"varchar", "collated"} else type_], *too_long):
            yield _with_part(types, at, part)


def long_keys(types: Sequence[str], most: int) -> Iterator[tuple[Any, ...]]:
    """Yield keys of which one part is longer than an index may have to hold: no new row can have them."""
    for at, type_ in enumerate(types):
        if type_ in {"text", "collated"}:
            for part in ("x" * (most + 1), "é" * (most // 2 + 1), "x" * 100_000):
                yield _with_part(types, at, part)


def _with_part(types: Sequence[str], at: int, part: Any) -> tuple[Any, ...]:
    key = [KEYS["text" if each in {"varchar", "collated"} else each][0] for each in types]
    key[at] = part
    return tuple(key)


_AS_HANDED_OVER: Final[dict[type, tuple[Callable[[Any], Any], ...]]] = {
    UUID: (lambda part: LoudUUID(int=part.int), lambda part: ForeignUUID(str(part))),
    int: (LoudInteger,),
    str: (LoudText, np.str_),
    bytes: (LoudBytes, bytearray),
    date: (
        lambda part: LoudDate(part.year, part.month, part.day),
        lambda part: FakeDate(part.year, part.month, part.day),
        lambda part: pendulum.date(part.year, part.month, part.day),
    ),
}


def handed_over(part: Any, chance: random.Random) -> Any:
    """Return a part of a key as a library may hand it over: one in five is of a subclass."""
    if type(part) not in _AS_HANDED_OVER or chance.random() >= 0.2:
        return part
    return chance.choice(_AS_HANDED_OVER[type(part)])(part)
