"""Keyed tokens by which an encrypted value can be found: HMAC-SHA256 of its normalised form, made in Python.

Owns the normalisers and the token. Neither the index key nor the value ever reaches SQL; the token does. Whoever has the
index key and the tokens can try all 10⁹ social security numbers in minutes: guard it like the encryption key.
"""

from __future__ import annotations

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
    digits = "".join(filter(str.isdecimal, value if value.isascii() else unicodedata.normalize("NFKC", value)))
    if len(digits) != SSN_DIGITS or not digits.isascii():
        raise ValueError(f"must have {SSN_DIGITS} digits")
    return digits


def mrn(value: str) -> str:
    """Return a medical record number in upper case, without white space and invisible characters, its dashes hyphens."""
    return _not_empty("".join(value.upper().split()) if value.isascii() else _mrn(value))


def name(value: str) -> str:
    """Return a name case-folded, without invisible characters, its dashes hyphens, runs of white space one space."""
    return _not_empty(" ".join(value.casefold().split()) if value.isascii() else _name(value))


def _mrn(value: str) -> str:
    return _plain("".join(_plain(_plain(value).upper()).split()))


def _name(value: str) -> str:
    return _plain(" ".join(_plain(_plain(value).casefold()).split()))


def _plain(text: str) -> str:
    """Return text as it looks: compatibility forms composed (NFKC), dashes as hyphens, what cannot be seen left out."""
    if unicodedata.is_normalized("NFKC", text) and _CHANGED.isdisjoint(text):
        return text
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).translate(_AS_SEEN))


def _code_points(ranges: str) -> list[int]:
    pairs = (each.split("-") for each in ranges.split())
    return [point for pair in pairs for point in range(int(pair[0], 16), int(pair[-1], 16) + 1)]


# Written out and not asked of unicodedata: a token must not change with the Unicode version of the Python that makes it.
_DASHES: Final = (
    "58A 5BE 1400 1806 2010-2015 2E17 2E1A 2E3A-2E3B 2E40 2E5D 301C 3030 30A0 FE31-FE32 FE58 FE63 FF0D 10EAD"
)
"""Unicode 15's category Pd (Dash_Punctuation), but for the hyphen itself."""

_UNSEEN: Final = (
    "AD 600-605 61C 6DD 70F 890-891 8E2 180E 200B-200F 202A-202E 2060-206F FEFF FFF9-FFFB 110BD 110CD 13430-1343F "
    "1BCA0-1BCA3 1D173-1D17A E0000-E0FFF 34F 115F-1160 17B4-17B5 180B-180F 3164 FE00-FE0F FFA0 FFF0-FFF8"
)
"""Unicode 15's category Cf (Format) and Default_Ignorable_Code_Point."""

_AS_SEEN: Final = dict.fromkeys(_code_points(_DASHES), "-") | dict.fromkeys(_code_points(_UNSEEN))
_CHANGED: Final = frozenset(map(chr, _AS_SEEN))


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
