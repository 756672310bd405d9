"""Values as libraries hand them over, with what must come back; REFUSED where they hold more than their type can, or are of no such type."""

from __future__ import annotations

import enum
from array import array
from collections import OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Self
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pendulum
from freezegun.api import FakeDate, FakeDatetime
from markupsafe import Markup

from voiceassist_db.models import Kind

REFUSED = object()
"""A value that must be a ValueError, with nothing written."""


class _Loud:
    """Every way to print, format or convert an object, each of which gives something else than its data."""

    def __str__(self) -> str:
        return "other"

    def __repr__(self) -> str:
        return "other"

    def __format__(self, spec: str) -> str:
        return "other"

    def __bytes__(self) -> bytes:
        return b"other"

    def __int__(self) -> int:
        return 77

    def __index__(self) -> int:
        return 77

    def __float__(self) -> float:
        return 77.0

    def isoformat(self, *_: Any) -> str:
        return "2001-01-01"

    def encode(self, *_: Any) -> bytes:
        return b"other"

    def casefold(self) -> str:
        return "other"

    def upper(self) -> str:
        return "OTHER"

    def isascii(self) -> bool:
        return True

    def utcoffset(self) -> timedelta:
        return timedelta(hours=7)

    def astimezone(self, *_: Any) -> datetime:
        return datetime(2001, 1, 1, tzinfo=UTC)

    @property
    def hex(self) -> str:
        return "other"


class LoudText(_Loud, str):
    __slots__ = ()


class LoudBytes(_Loud, bytes):
    __slots__ = ()


class LoudInteger(_Loud, int):
    __slots__ = ()


class LoudFloat(_Loud, float):
    __slots__ = ()


class LoudDecimal(_Loud, Decimal):
    __slots__ = ()


class LoudDate(_Loud, date):
    __slots__ = ()


class LoudDatetime(_Loud, datetime):
    __slots__ = ()


class LoudUUID(_Loud, UUID):
    __slots__ = ()


class ForeignUUID(UUID):
    """As asyncpg's: it keeps the number in a place of its own."""

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_number", UUID(text).int)

    @property
    def int(self) -> Any:
        return self.__dict__["_number"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UUID) and self.int == other.int

    def __hash__(self) -> Any:
        return hash(self.int)

    def __str__(self) -> str:
        return "other"


class _Unequal:
    """What says of itself that it is more than its data."""

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1


class UnequalText(_Unequal, str):
    __slots__ = ()


class UnequalInteger(_Unequal, int):
    __slots__ = ()


class Word(enum.StrEnum):
    GOOD = "good"


class Mood(str, enum.Enum):  # noqa: UP042  # its str() is not its value, which is the point
    GOOD = "good"


class Coded(str, enum.Enum):  # noqa: UP042  # as above
    """A member whose value is another text than the member is."""

    GOOD = ("good", "Good mood")

    def __new__(cls, code: str, label: str) -> Self:
        made = str.__new__(cls, code)
        made._value_ = label
        return made


class Level(enum.IntEnum):
    LOW = 1


class Degree(int, enum.Enum):  # as above
    LOW = 1


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Rate(Decimal, enum.Enum):
    HALF = "0.50"


class Feast(date, enum.Enum):
    CHRISTMAS = 2024, 12, 25


class Epoch(datetime, enum.Enum):
    UNIX = 1970, 1, 1, 0, 0, 0, 0, UTC


class Plain(enum.Enum):
    ONE = 1


Pair = namedtuple("Pair", "one other")  # noqa: PYI024  # of no types, as many libraries have

_NOON = datetime(2024, 2, 29, 12, 0, 0, 5, tzinfo=UTC)
_ID = "018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f"
_TWICE = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"))
"""In an hour that clocks repeat; with ``fold=1`` the second time."""
_NEVER = datetime(2024, 3, 31, 2, 30, tzinfo=ZoneInfo("Europe/Paris"))
"""In an hour that clocks leave out."""


class Nowhere(tzinfo):
    """A zone that knows no offset, with which a moment is as good as one without a zone."""

    def utcoffset(self, when: datetime | None, /) -> None:
        return None

    dst = tzname = utcoffset


def _fake(moment: datetime) -> FakeDatetime:
    """Return a moment as freezegun gives it."""
    return FakeDatetime(*moment.timetuple()[:6], moment.microsecond, moment.tzinfo, fold=moment.fold)


_MISSING = [pd.NaT, pd.NA, np.nan, np.datetime64("NaT"), float("nan")]

TEXTS: list[tuple[Any, Any]] = [
    (np.str_("é'x"), "é'x"),
    (Markup("<b>"), "<b>"),
    (Word.GOOD, "good"),
    (Mood.GOOD, "good"),
    (LoudText("é data"), "é data"),
    (LoudText("a\x00"), REFUSED),
    (LoudText("\ud800"), REFUSED),
    (Coded.GOOD, REFUSED),
    (UnequalText("x"), REFUSED),
    (np.bytes_(b"x"), REFUSED),
    (Plain.ONE, REFUSED),
]
BYTES: list[tuple[Any, Any]] = [
    (np.bytes_(b"\xff"), b"\xff"),
    (LoudBytes(b"\x00data"), b"\x00data"),
    (bytearray(b"data"), b"data"),
    (memoryview(b"abcdef"), b"abcdef"),
    (memoryview(b"abcdef")[::-2], b"fdb"),
    (memoryview(b"abcdef").cast("B", (2, 3)), REFUSED),
    (memoryview(array("i", [1, 2])), REFUSED),
    (array("b", [1]), REFUSED),
    (np.array([1, 2], dtype=np.uint8), REFUSED),
]
INTEGERS: list[tuple[Any, Any]] = [
    (Level.LOW, 1),
    (Degree.LOW, 1),
    (Access.READ | Access.WRITE, 3),
    (LoudInteger(-5), -5),
    (UnequalInteger(1), REFUSED),
    (np.int64(1), REFUSED),
    (np.bool_(True), REFUSED),
    (True, REFUSED),
    (Plain.ONE, REFUSED),
    (Decimal(1), REFUSED),
]
DECIMALS: list[tuple[Any, Any]] = [
    (Rate.HALF, Decimal("0.50")),
    (LoudDecimal("-1.50"), Decimal("-1.50")),
    (LoudDecimal("NaN"), REFUSED),
    (Decimal("sNaN"), REFUSED),
    (Decimal("-Infinity"), REFUSED),
    (np.float64(0.5), REFUSED),
]
DATES: list[tuple[Any, Any]] = [
    (pendulum.date(2024, 2, 29), date(2024, 2, 29)),
    (FakeDate(2024, 2, 29), date(2024, 2, 29)),
    (LoudDate(2024, 2, 29), date(2024, 2, 29)),
    (Feast.CHRISTMAS, date(2024, 12, 25)),
    (FakeDatetime(2024, 2, 29), REFUSED),
    (pd.Timestamp("2024-02-29"), REFUSED),
    (np.datetime64("2024-02-29"), REFUSED),
]
DATETIMES: list[tuple[Any, Any]] = [
    (pendulum.instance(_NOON).in_timezone("Europe/Paris"), _NOON),
    (FakeDatetime(2024, 2, 29, 12, 0, 0, 5, tzinfo=UTC), _NOON),
    (LoudDatetime(2024, 2, 29, 12, 0, 0, 5, tzinfo=UTC), _NOON),
    (pd.Timestamp(_NOON).tz_convert("America/New_York"), _NOON),
    (Epoch.UNIX, datetime(1970, 1, 1, tzinfo=UTC)),
    (pendulum.instance(_TWICE), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)),
    (pendulum.instance(_TWICE.replace(fold=1)), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
    (_fake(_TWICE), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)),
    (_fake(_TWICE.replace(fold=1)), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
    (_fake(_NEVER), datetime(2024, 3, 31, 1, 30, tzinfo=UTC)),
    (pd.Timestamp(_TWICE), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)),
    (pd.Timestamp(_TWICE.replace(fold=1)), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
    (pd.Timestamp(_TWICE.replace(fold=1)) + pd.Timedelta(1, "ns"), REFUSED),
    (_TWICE.replace(fold=1), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
    (_NOON.astimezone(timezone(timedelta(hours=-23, minutes=-59))), _NOON),
    (_NOON.astimezone(timezone(timedelta(hours=16, microseconds=1))), _NOON),
    (_NOON.astimezone(timezone(timedelta(microseconds=-1))), _NOON),
    (_fake(_NOON.astimezone(timezone(timedelta(microseconds=1)))), _NOON),
    (_fake(_NOON.replace(tzinfo=Nowhere())), REFUSED),
    (_NOON.replace(tzinfo=Nowhere()), REFUSED),
    (pd.Timestamp(_NOON) + pd.Timedelta(1, "ns"), REFUSED),
    (pd.Timestamp(np.datetime64("12024-02-29", "s")).tz_localize("UTC"), REFUSED),
    (pendulum.naive(2024, 2, 29), REFUSED),
    (pd.Timestamp("2024-02-29"), REFUSED),
    (FakeDatetime(2024, 2, 29), REFUSED),
    (np.datetime64("2024-02-29"), REFUSED),
    (FakeDate(2024, 2, 29), REFUSED),
]
UUIDS: list[tuple[Any, Any]] = [
    (LoudUUID(_ID), UUID(_ID)),
    (ForeignUUID(_ID), UUID(_ID)),
    (_ID, REFUSED),
    (np.str_(_ID), REFUSED),
]
JSONS: list[tuple[Any, Any]] = [
    ({Mood.GOOD: Mood.GOOD, "n": np.str_("é")}, {"good": "good", "n": "é"}),
    ({"a": [Level.LOW, Degree.LOW, LoudInteger(5)]}, {"a": [1, 1, 5]}),
    ({"a": np.float64(0.1), "b": LoudFloat(-0.0)}, {"a": 0.1, "b": -0.0}),
    (OrderedDict(b=1, a=LoudText("é")), {"b": 1, "a": "é"}),
    (defaultdict(list, {"a": [1]}), {"a": [1]}),
    (MappingProxyType({"a": 1}), REFUSED),
    ({"a": Pair(1, 2)}, REFUSED),
    ({"a": np.int64(1)}, REFUSED),
    ({"a": np.bool_(True)}, REFUSED),
    ({"a": np.float64("nan")}, REFUSED),
    ({"a": LoudFloat("inf")}, REFUSED),
    ({"a": Rate.HALF}, REFUSED),
    ({"a": _NOON}, REFUSED),
    ({"a": pd.NaT}, REFUSED),
    ({"a": pd.NA}, REFUSED),
    ({Level.LOW: 1}, REFUSED),
    ({"a": LoudText("\x00")}, {"a": "\x00"}),
]

OF_KIND: dict[Kind, list[tuple[Any, Any]]] = {
    Kind.TEXT: TEXTS,
    Kind.BYTES: BYTES,
    Kind.INTEGER: INTEGERS,
    Kind.DECIMAL: DECIMALS,
    Kind.DATE: DATES,
    Kind.DATETIME: DATETIMES,
    Kind.JSON: JSONS,
}
for _kind, _values in OF_KIND.items():
    _values += [(each, REFUSED) for each in _MISSING if _kind is not Kind.JSON or each is pd.NaT]

FLOATS: list[tuple[Any, Any]] = [
    (np.float64(0.1), 0.1),
    (LoudFloat(-1.5), -1.5),
    (Level.LOW, 1.0),
    (2**53 + 1, REFUSED),
    (10**400, REFUSED),
    (np.float32(0.5), REFUSED),
    (Decimal("0.5"), REFUSED),
    ("0.5", REFUSED),
]
BOOLEANS: list[tuple[Any, Any]] = [
    (True, True),
    (np.bool_(True), REFUSED),
    (1, REFUSED),
    (Level.LOW, REFUSED),
    ("t", REFUSED),
]
TIMES: list[tuple[Any, Any]] = [
    (pendulum.time(1, 2, 3, 4), time(1, 2, 3, 4)),
    (time(1, tzinfo=timezone(timedelta(hours=1))), REFUSED),
    ("01:02", REFUSED),
]
SPANS: list[tuple[Any, Any]] = [
    (pendulum.duration(days=1, microseconds=5), timedelta(days=1, microseconds=5)),
    (pd.Timedelta("5us"), timedelta(microseconds=5)),
    (pd.Timedelta("5ns"), REFUSED),
    (np.timedelta64(5, "us"), REFUSED),
]


def is_same(expected: Any, found: Any) -> bool:
    """Say whether two values are equal and of the same plain types, all the way down."""
    if type(expected) is not type(found):
        return False
    if isinstance(expected, dict):
        return list(expected) == list(found) and all(
            is_same(one, other)
            for one, other in zip([*expected, *expected.values()], [*found, *found.values()], strict=True)
        )
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if isinstance(expected, float | Decimal):
        return repr(expected) == repr(found)
    return bool(expected == found)
