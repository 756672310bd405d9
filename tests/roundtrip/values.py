"""Values of every kind, with what must come back of each; and what must be refused.

Every sample names its class of values, by which the trial counts. All is made by a seed.
"""

from __future__ import annotations

import enum
import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from tests.handed_over import OF_KIND, REFUSED, Nowhere
from tests.roundtrip.oracle import in_utc
from voiceassist_db.models import Kind

ABSENT: Final = "absent"


@dataclass(frozen=True)
class Sample:
    """One value: its class, what is given, what must come back, by which form it is found if it is searched, and if it is special."""

    group: str
    given: Any
    value: Any
    form: str | None = None
    is_special: bool = False


NOTHING: Final = Sample(ABSENT, None, None)


# --- what applications and libraries hand over -----------------------------------------------------------------------


class LoudText(str):
    """Text that prints itself otherwise."""

    __slots__ = ()

    def __str__(self) -> str:
        return "loud"

    __repr__ = __str__


class Colour(enum.StrEnum):
    RED = "röt"


class Shade(str, enum.Enum):  # noqa: UP042  # its str() is not its value, which is the point
    DARK = "dark:%3A/"


class Blob(bytes):
    def __str__(self) -> str:
        return "blob"


class Level(enum.IntEnum):
    HIGH = 7


class LoudNumber(int):
    """A number that prints itself otherwise."""

    def __str__(self) -> str:
        return "loud"

    __repr__ = __str__


class Summer(tzinfo):
    """A zone whose clocks go back: an hour of the night comes twice, which ``fold`` tells apart."""

    def utcoffset(self, when: datetime | None, /) -> timedelta:
        is_late = when is None or when.fold == 1 or when.replace(tzinfo=None) >= datetime(2026, 10, 25, 3)
        return timedelta(hours=1 if is_late else 2)

    def dst(self, when: datetime | None, /) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None, /) -> str:
        return "summer"


def zone(**offset: int) -> timezone:
    """Return a zone of a fixed offset."""
    return timezone(timedelta(**offset))


# --- special values --------------------------------------------------------------------------------------------------

CONTROLS: Final = "".join(map(chr, (*range(1, 32), *range(127, 160))))
EDGES: Final = "\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffd\ufffe\uffff\U00010000\U0001ffff\U0010ffff"
"""The first and the last characters of each length in UTF-8, and what is no character though it can be encoded."""

TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "empty": ("",),
    "blanks": (" ", "  a  ", "\t", "a ", "\u00a0", "\u2003a\u200b", "\ufeff"),
    "line ends": ("\r\n", "a\rb\nc\r\nd\n", "\n\n", "\u2028\u2029\u0085\v\f"),
    "quoting": ("'", '"', "\\", "\\x41\\n\\0", "''", "$$", "'); DROP TABLE x;--", "E'\\''", "{a,NULL}", '{"a"}'),
    "formatting": ("%s", "%(id)s", "%%", ":x", "::text", "{0}", "%25%3A%2F", "/", "?", "$1"),
    "words": ("NULL", "null", "None", "nan", "infinity", "-infinity", "true", "0", "2026-01-02", "1e5", "\\N", "\\."),
    "controls": (CONTROLS,),
    "edges of UTF-8": (EDGES, *EDGES),
    "not normalised": ("é", "e\u0301", "Å", "\u212b", "ﬁ", "한글", "한글", "İıſß"),
    "right to left": ("\u202eabc\u202c", "שלום", "مرحبا", "👩‍👩‍👧‍👦🏳️‍🌈"),
    "long": ("x" * 20_001, "é𝄞\\'" * 4_000),
}
BYTES: Final[dict[str, tuple[bytes, ...]]] = {
    "empty": (b"",),
    "every byte": (bytes(range(256)), b"\x00", b"\xff", b"\x00" * 100),
    "not UTF-8": (b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"),
    "like text": (b"a\rb\nc\r\nd", b"\\x41", b"\\000", b"'", b"NULL", "é".encode(), b"%s"),
    "like a message": (bytes.fromhex("c30c04090108") + b"12345678\xd2", b"-----BEGIN PGP MESSAGE-----"),
    "long": (bytes(range(256)) * 80,),
}
DATES: Final[dict[str, tuple[date, ...]]] = {
    "extremes": (date.min, date.max, date(9999, 1, 1), date(1, 12, 31)),
    "calendar": (date(1582, 10, 4), date(1582, 10, 15), date(1900, 2, 28), date(2000, 2, 29), date(2024, 2, 29)),
    "epochs": (date(1970, 1, 1), date(1969, 12, 31), date(2000, 1, 1), date(2038, 1, 19), date(99, 12, 31)),
    "day or month": (date(2026, 1, 2), date(2026, 2, 1), date(2001, 2, 3), date(2012, 12, 12)),
}
_NIGHT: Final = datetime(2026, 10, 25, 2, 30, tzinfo=Summer())
MOMENTS: Final[dict[str, tuple[datetime, ...]]] = {
    "extremes": (
        *(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        *(datetime.max.replace(tzinfo=zone(hours=14)), datetime.min.replace(tzinfo=zone(hours=-12))),
    ),
    "fractions": tuple(datetime(2026, 1, 2, 3, 4, 5, each, tzinfo=UTC) for each in (1, 10, 100_000, 120_000, 999_999)),
    "zones": (
        *(datetime(2026, 1, 2, 3, tzinfo=zone(hours=14)), datetime(2026, 1, 2, 3, tzinfo=zone(hours=-12))),
        *(datetime(2026, 1, 2, tzinfo=zone(hours=5, minutes=45)), datetime(2026, 1, 2, tzinfo=zone(seconds=1))),
        *(datetime(1890, 1, 2, tzinfo=zone(seconds=-3_211)), datetime(2026, 1, 2, tzinfo=zone(microseconds=-1))),
        *(datetime(2026, 1, 2, tzinfo=zone(hours=23, minutes=59)), datetime(1, 1, 2, tzinfo=zone(hours=23))),
    ),
    "folds": (_NIGHT, _NIGHT.replace(fold=1), _NIGHT.replace(hour=1, fold=1), datetime(2026, 1, 2, fold=1, tzinfo=UTC)),
    "epochs": (datetime(1970, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
}
DIGITS: Final = 640
"""Most digits of an integer: what Python reads under every setting (``sys.int_info.str_digits_check_threshold``)."""

INTEGERS: Final[dict[str, tuple[int, ...]]] = {
    "small": (0, 1, -1, 10, -10),
    "edges": tuple(
        sign * (1 << bits) + step for bits in (15, 31, 32, 53, 63, 64) for sign in (1, -1) for step in (-1, 0)
    ),
    "large": (10**40, -(10**400), 1 << 2048),
    "longest": (10**DIGITS - 1, 1 - 10**DIGITS, 10 ** (DIGITS - 1)),
}
DECIMALS: Final[dict[str, tuple[str, ...]]] = {
    "zeros": ("0", "-0", "0.00", "-0.000", "0E+10", "0E-30"),
    "trailing zeros": ("1.10", "100", "1E+2", "-12.500", "1.0E+1"),
    "exponents": ("1E+30", "-1E-30", "1.5E+1000", "9.99E-1000", "1E+999999999999999999", "-1E-999999999999999999"),
    "long": ("3." + "14159" * 2000, "1" * 5000, "-0." + "0" * 3000 + "1"),
}
OBJECTS: Final[dict[str, tuple[Any, ...]]] = {
    "empty": ({}, [], "", {"": ""}, [[]], [{}]),
    "top level": ("text", 0, -1, 1.5, True, False),
    "null inside": ({"a": None}, [None]),
    "true or 1": ({"a": True, "b": 1, "c": 1.0}, [False, 0, 0.0, -0.0]),
    "floats": ([5e-324, 1.7976931348623157e308, 0.1, 1e22, 1e-7, 123456789.123456789, 2.0**53, -0.0],),
    "integers": ([0, 2**53 + 1, 2**63, -(2**64), 10**400],),
    "texts": ({"é\r\n": "\u2028\x01\\'\"/<>&", "\x00": "\x00", "%s": EDGES}, ["𝄞", "\\u0000", "\ufeff"]),
    "flat": ({"street": "1 Main St", "city": "Zoë\r\n", "zip": "00501", "": ""},),
    "names": ({"b": 1, "a": 2, "A": 3, " ": 4, "key_version": 5, "__proto__": 6},),
    "large": ([*range(300)], {f"name {n}": n for n in range(50)}),
}
DEPTH: Final = 50
"""Levels of JSON that every reader must accept."""


def nested(levels: int, inner: Any = None) -> Any:
    """Return JSON of so many levels, lists and objects in turn."""
    made = inner
    for level in range(levels):
        made = [made] if level % 2 else {"a": made}
    return made


def specials(kind: str) -> list[Sample]:
    """Return the special values of a kind that must be accepted."""
    match kind:
        case "text":
            made = _as_they_are(TEXTS)
            made += [
                Sample("enum", Colour.RED, "röt"),
                Sample("enum", Shade.DARK, "dark:%3A/"),
                Sample("subclass", LoudText("quiet é"), "quiet é"),
            ]
        case "bytes":
            made = _as_they_are(BYTES)
            made += [
                Sample("other buffers", bytearray(b"\x00\xff"), b"\x00\xff"),
                Sample("other buffers", memoryview(b"\x00\xff\x01")[::2], b"\x00\x01"),
                Sample("subclass", Blob(b"\x00'"), b"\x00'"),
            ]
        case "date":
            made = _as_they_are(DATES)
        case "datetime":
            made = [Sample(group, each, in_utc(each)) for group, values in MOMENTS.items() for each in values]
        case "integer":
            made = _as_they_are(INTEGERS)
            made.append(Sample("enum", Level.HIGH, 7))
        case "decimal":
            made = [
                Sample(group, Decimal(each), Decimal(each)) for group, values in DECIMALS.items() for each in values
            ]
        case "json":
            made = _as_they_are(OBJECTS)
            made += [
                Sample("deep", nested(DEPTH), nested(DEPTH)),
                Sample("deep", nested(DEPTH - 1, "é"), nested(DEPTH - 1, "é")),
            ]
            made += [
                Sample("enum", {"a": Colour.RED, "b": Level.HIGH}, {"a": "röt", "b": 7}),
                Sample("subclass", [LoudText("a"), LoudNumber(3)], ["a", 3]),
            ]
        case _:
            raise AssertionError(kind)
    made += [Sample("handed over", given, value) for given, value in OF_KIND[Kind(kind)] if value is not REFUSED]
    return [*(replace(each, is_special=True) for each in made), NOTHING]


def _as_they_are(values: dict[str, tuple[Any, ...]]) -> list[Sample]:
    return [Sample(group, each, each) for group, some in values.items() for each in some]


_TOO_DEEP: Final = tuple(nested(levels) for levels in (DEPTH + 1, 20_000, 100_000))


@functools.cache
def refused(kind: str) -> list[tuple[str, Any]]:
    """Return values that a kind must refuse, each with its class."""
    other: dict[str, list[tuple[str, Any]]] = {
        "text": [
            *(("no character", each) for each in ("\x00", "a\x00b", "\ud800", "a\udfff", LoudText("\x00"))),
            *(("other type", each) for each in (b"a", 5, 1.5, True, ["a"], object(), date(2026, 1, 2))),
        ],
        "bytes": [("other type", each) for each in ("a", "", 5, [1, 2], True, object())],
        "date": [
            *(("other type", each) for each in ("2026-01-02", 20260102, time(1), True, object())),
            *(("a moment", each) for each in (datetime(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC))),
        ],
        "datetime": [
            *(("no zone", each) for each in (datetime(2026, 1, 2), datetime(2026, 1, 2, tzinfo=Nowhere()))),
            ("out of range", datetime.max.replace(tzinfo=zone(hours=-1))),
            ("out of range", datetime.min.replace(tzinfo=zone(microseconds=1))),
            *(("other type", each) for each in (date(2026, 1, 2), "2026-01-02T00:00:00+00:00", 0, 1.5, object())),
        ],
        "integer": [
            *(("other type", each) for each in (True, False, 1.0, "1", Decimal(1), b"1", object())),
            *(("too long", each) for each in (10**DIGITS, -(10**DIGITS), 1 << 20_000)),
        ],
        "decimal": [
            *(("not finite", Decimal(each)) for each in ("NaN", "sNaN", "-NaN123", "Infinity", "-Infinity")),
            *(("other type", each) for each in (1, 1.5, "1.5", True, object())),
        ],
        "json": [
            *(("not JSON", each) for each in ([float("nan")], {"a": float("inf")}, [object()], [b"a"], {"a": {1, 2}})),
            *(
                ("other types", each)
                for each in ((1, 2), {"a": (1,)}, {1: 2}, {None: 1}, {True: 1}, MappingProxyType({"a": 1}))
            ),
            *(("other types", each) for each in ([Decimal("1.5")], [date(2026, 1, 2)], {"a": {1: "a", "1": "b"}})),
            *(("no character", each) for each in (["\ud800"], {"a\udfff": 1}, "\ud800", {"a": "\ud800"})),
            *(("too deep", each) for each in _TOO_DEEP),
            ("too long", [10**DIGITS]),
        ],
    }
    return other[kind] + [("handed over", given) for given, value in OF_KIND[Kind(kind)] if value is REFUSED]


# --- values by chance ------------------------------------------------------------------------------------------------


def by_chance(kind: str, chance: random.Random) -> Sample:
    """Return a value of a kind by chance; one in twenty is absent."""
    if chance.random() < 0.05:
        return NOTHING
    return _BY_CHANCE[kind](chance)


def any_text(chance: random.Random, longest: int) -> str:
    """Return text of characters from every part of Unicode."""
    ranges = chance.choice(((32, 126), (1, 255), (1, 0x2FFF), (0x2000, 0xD7FF), (0xE000, 0x10FFFF)))
    return "".join(chr(chance.randint(*ranges)) for _ in range(int(chance.expovariate(1 / 15)) % longest))


def _text(chance: random.Random) -> Sample:
    pieces = [each for values in TEXTS.values() for each in values if len(each) < 100]
    match chance.randrange(8):
        case 0:
            text, group = "".join(chance.choices(pieces, k=3)), "pieces"
        case 1:
            text, group = "é𝄞a\r\n" * chance.randint(100, 1000), "long"
        case 2:
            text, group = (
                f"{chance.choice(['x.text', 'a'])}:{chance.randint(0, 99)}:{any_text(chance, 20)}",
                "looks bound",
            )
        case _:
            text, group = any_text(chance, 200), "any characters"
    return Sample(group, text, text)


def _bytes(chance: random.Random) -> Sample:
    data = chance.randbytes(chance.choice((0, 1, 5, 16, 40, 100, 3000)))
    return Sample("any bytes", data, data)


def _day(chance: random.Random) -> Sample:
    day = date.fromordinal(chance.randint(1, date.max.toordinal()))
    return Sample("any day", day, day)


def _moment(chance: random.Random) -> Sample:
    offset = timedelta(seconds=chance.choice((0, 3600, 900, 60, 1)) * chance.randint(-13, 14))
    naive = datetime(1, 1, 2) + timedelta(microseconds=chance.randint(0, 315_537_700_000_000_000))
    if chance.random() < 0.3:
        naive = naive.replace(microsecond=0)
    moment = naive.replace(tzinfo=timezone(offset) if chance.random() < 0.9 else Summer(), fold=chance.randint(0, 1))
    return Sample("any moment", moment, in_utc(moment))


def _integer(chance: random.Random) -> Sample:
    number = chance.getrandbits(chance.choice((1, 8, 31, 64, 200, 2_100))) * chance.choice((1, -1))
    return Sample("any number", number, number)


def _decimal(chance: random.Random) -> Sample:
    digits = tuple(chance.randrange(10) for _ in range(chance.choice((1, 3, 10, 40, 300))))
    exponent = chance.choice((0, -2, chance.randint(-50, 50), chance.randint(-(10**6), 10**6)))
    number = Decimal((chance.randrange(2), digits, exponent))
    return Sample("any number", number, number)


def _object(chance: random.Random) -> Sample:
    made = _tree(chance, 4)
    return Sample("any tree" if isinstance(made, dict | list) else "any leaf", made, json.loads(json.dumps(made)))


def _tree(chance: random.Random, levels: int) -> Any:
    kind = chance.randrange(9 if levels else 7)
    if kind == 7:
        return {any_text(chance, 12): _tree(chance, levels - 1) for _ in range(chance.randrange(6))}
    if kind == 8:
        return [_tree(chance, levels - 1) for _ in range(chance.randrange(6))]
    if levels == 4 and kind == 0:
        kind = 1  # None alone is no value
    leaves: tuple[Any, ...] = (
        None,
        chance.random() < 0.5,
        chance.getrandbits(70) - (1 << 69),
        chance.gauss(0, 10.0 ** chance.randint(-300, 300)),
        any_text(chance, 40),
        "",
        0,
    )
    return leaves[kind]


_BY_CHANCE: Final[dict[str, Callable[[random.Random], Sample]]] = {
    "text": _text,
    "bytes": _bytes,
    "date": _day,
    "datetime": _moment,
    "integer": _integer,
    "decimal": _decimal,
    "json": _object,
}
