"""Keyed tokens by which an encrypted value can be found: HMAC-SHA256 of its normalised form, made in Python.

Owns the normalisers, which refuse what does not have the form of their value, and the token. Neither the index key nor the value ever reaches SQL; the token does. Whoever has the
index key and the tokens can try all 10⁹ social security numbers in minutes: guard it like the encryption key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from voiceassist_db.spelling import as_seen, require_no_control

TOKEN_BYTES: Final = 16
"""Length of a token. 128 bits, so that among 10⁹ values two tokens meet by chance with a probability below 10⁻²⁰."""

SSN_DIGITS: Final = 9

SPREADSHEET_NUMBER: Final = (
    "is a number as a spreadsheet writes it, which may have lost digits: format the column as text and export it again"
)

_GROUPED_SSN: Final = re.compile(r"([0-9]{3})(?:\s*-)?\s*([0-9]{2})(?:\s*-)?\s*([0-9]{4})")
_SPREADSHEET_NUMBER: Final = re.compile(
    r"[+-]?(?:[0-9]+[.,]0+|[0-9]+(?:[.,][0-9]*)?E\+[0-9]+|[0-9]+[.,][0-9]+E-?[0-9]+)", re.IGNORECASE
)
"""``12345678.0`` (pandas), ``1.23457E+11`` (Excel), ``1.23457E11`` (Java), with a decimal point or comma. ``12E4`` is a number of its
own, and so is ``1.2.3``."""


def ssn(value: str) -> str:
    """Return the nine digits of a social security number.

    A hyphen, blanks, or both may stand after the third digit and after the fifth: ``123456789``, ``123-45-6789``, ``123 45 6789``,
    ``123 - 45 - 6789``. Outer blanks and invisible characters do not matter; every dash is a hyphen, and digits may
    have any form that NFKC knows.

    Raises:
        ValueError: It is anything else. The message does not hold the value.
    """
    text = (value if value.isascii() else as_seen(value)).strip()
    if len(text) == SSN_DIGITS and text.isascii() and text.isdigit():
        return text
    if groups := _GROUPED_SSN.fullmatch(text):
        return "".join(groups.groups())
    if is_spreadsheet_number(text):
        raise ValueError(SPREADSHEET_NUMBER)
    if sum(map(str.isdecimal, text)) != SSN_DIGITS:
        raise ValueError(f"must have {SSN_DIGITS} digits")
    raise ValueError(f"must be {SSN_DIGITS} digits and nothing else: 123-45-6789, 123 45 6789 or 123456789")


def mrn(value: str) -> str:
    """Return a medical record number in upper case, without white space and invisible characters, its dashes hyphens.

    Raises:
        ValueError: It is empty, has neither a letter nor a digit, holds a control character, or is a number as a spreadsheet
            writes it (``12345.0``, ``1.2E+05``). The message does not hold the value.
    """
    form = "".join(value.upper().split()) if value.isascii() else _mrn(value)
    if form.replace("-", "").isalnum():
        return form
    require_no_control(_not_empty(form))
    if is_spreadsheet_number(form):
        raise ValueError(SPREADSHEET_NUMBER)
    if not any(map(str.isalnum, form)):
        raise ValueError("must hold a letter or a digit")
    return form


def name(value: str) -> str:
    """Return a name case-folded, without invisible characters, its dashes hyphens, runs of white space one space.

    Raises:
        ValueError: It is empty, or holds a control character. The message does not hold the value.
    """
    form = " ".join(value.casefold().split()) if value.isascii() else _name(value)
    if not form.isprintable() or not form:
        require_no_control(_not_empty(form))
    return form


def is_spreadsheet_number(text: str) -> bool:
    """Say whether a text is what a spreadsheet or a data frame makes of a number that it took for a quantity."""
    may_be = "." in text or "+" in text or "," in text  # faster than the expression
    return may_be and _SPREADSHEET_NUMBER.fullmatch(text) is not None


def _mrn(value: str) -> str:
    return as_seen("".join(as_seen(as_seen(value).upper()).split()))


def _name(value: str) -> str:
    return as_seen(" ".join(as_seen(as_seen(value).casefold()).split()))


def exact(value: str) -> str:
    """Return the value as it is."""
    return value


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


NORMALISERS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {"exact": exact, "mrn": mrn, "name": name, "ssn": ssn}
)


_FREE_SIGNS: Final = "'\u2019\u2018\u201b\u02bc\u02bb\u2032`"
"""Signs that stand for an apostrophe in names, as keyboards and programs write it."""

_OTHER_SIGNS: Final = "\u02b9\u02bd\u02be\u02bf\u02c8\u02ca\u02cb\u02f4\u055a\u05f3\u07f4\u07f5\u2035\ua78c\u275b\u275c"
"""Signs that look like one, or transcribe a sound that others write with one: Unicode's confusables of ``'`` that are no letters of
words, the half rings of Arabic names, and the ornaments."""

_ACCENTS: Final = (" \u0301", " \u0313", " \u0314")
"""An accent that stands alone, as NFKC has it: the acute (U+00B4), and the two breathings of Greek."""

_APOSTROPHES: Final = (*_FREE_SIGNS, *_ACCENTS, *_OTHER_SIGNS)
"""All of them. A stored token keeps the one that its value has; a search asks for all."""

_UNIFIED: Final = str.maketrans(dict.fromkeys(_FREE_SIGNS + _OTHER_SIGNS, "'"))

_LONE_ACCENT: Final = re.compile("(?:^| )[\u0301\u0313\u0314]")

_FREE_APOSTROPHES: Final = 2
"""Up to so many apostrophes, each may be another one of the first signs or an accent. In a name with more, and with the other signs,
all are the same sign, or as the search spells them."""


def unified(form: str) -> str:
    """Return a normalised name with every apostrophe as ``'``."""
    if form.isascii():
        return form.replace("`", "'")
    return _LONE_ACCENT.sub("'", form.translate(_UNIFIED))


def spellings(form: str) -> set[str]:
    """Return the normalised names that a search for one looks for: with any signs for its apostrophes."""
    parts = unified(form).split("'")
    if len(parts) == 1:
        return {form}
    chosen = [(sign,) * (len(parts) - 1) for sign in _APOSTROPHES]
    if len(parts) - 1 <= _FREE_APOSTROPHES:
        chosen += itertools.product((*_FREE_SIGNS, *_ACCENTS), repeat=len(parts) - 1)
    # An accent brings a blank of its own, which the form has but once, and not at its beginning.
    spelled = ("".join(itertools.chain(*zip(parts, (*signs, ""), strict=True))) for signs in chosen)
    return {form, *(" ".join(each.split()) for each in spelled)}


class Macs(Protocol):
    """What makes tokens; a ``Key`` does."""

    def mac(self, message: bytes) -> bytes: ...  # noqa: D102


def token(key: Macs, normalised: str) -> bytes:
    """Return the token of a normalised value: the first 16 bytes of HMAC-SHA256 under the column's index key."""
    return key.mac(normalised.encode())[:TOKEN_BYTES]
