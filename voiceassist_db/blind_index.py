"""Keyed tokens by which an encrypted value can be found: HMAC-SHA256 of its normalised form, made in Python.

Owns the normalisers and the token. Neither the index key nor the value ever reaches SQL; the token does. Whoever has the
index key and the tokens can try all 10⁹ social security numbers in minutes: guard it like the encryption key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from voiceassist_db.keys import Key

TOKEN_BYTES: Final = 16
"""Length of a token. 128 bits, so that among 10⁹ values two tokens meet by chance with a probability below 10⁻²⁰."""

SSN_DIGITS: Final = 9


def ssn(value: str) -> str:
    """Return the nine digits of a social security number; hyphens, spaces and the form of its digits do not matter."""
    digits = "".join(character for character in unicodedata.normalize("NFKC", value) if character.isdecimal())
    if len(digits) != SSN_DIGITS or not digits.isascii():
        raise ValueError(f"must have {SSN_DIGITS} digits")
    return digits


def mrn(value: str) -> str:
    """Return a medical record number in upper case, without white space and invisible characters, its dashes hyphens."""
    return _not_empty(_plain("".join(_plain(_plain(value).upper()).split())))


def name(value: str) -> str:
    """Return a name case-folded, without invisible characters, its dashes hyphens, runs of white space one space."""
    return _not_empty(_plain(" ".join(_plain(_plain(value).casefold()).split())))


def _plain(text: str) -> str:
    """Return text as it looks: compatibility forms composed (NFKC), dashes as hyphens, what cannot be seen left out."""
    if text.isascii():
        return text
    seen = (
        "-" if unicodedata.category(character) == "Pd" else character
        for character in unicodedata.normalize("NFKC", text)
        if unicodedata.category(character) != "Cf" and not _IGNORABLE.match(character)
    )
    return unicodedata.normalize("NFKC", "".join(seen))


_IGNORABLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point, but for category Cf and unassigned ones: drawn as nothing."""


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


def token(key: Key, normalised: str) -> bytes:
    """Return the token of a normalised value: the first 16 bytes of HMAC-SHA256 under the column's index key."""
    return key.mac(normalised.encode())[:TOKEN_BYTES]
