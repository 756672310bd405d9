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
    digits = "".join(character for character in unicodedata.normalize("NFKC", value) if character.isdecimal())
    if len(digits) != SSN_DIGITS or not digits.isascii():
        raise ValueError(f"must have {SSN_DIGITS} digits")
    return digits


def mrn(value: str) -> str:
    """Return a medical record number in upper case without white space."""
    return _not_empty("".join(unicodedata.normalize("NFKC", value).upper().split()))


def name(value: str) -> str:
    """Return a name case-folded, its runs of white space made one space."""
    return _not_empty(" ".join(unicodedata.normalize("NFKC", value).casefold().split()))


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
