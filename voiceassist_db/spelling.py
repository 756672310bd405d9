"""When two spellings are one value to a person: what cannot be seen, and the form of a ``patient_id``.

Owns the characters that make no difference, and the one rule for ids. Knows no key, no table and no file.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_PATIENT_ID_BYTES: Final = 1024
"""Well below the 2,704 bytes that an entry of a PostgreSQL B-tree can hold."""

PATIENT_ID_FORM: Final = (
    "without blanks at its ends and without invisible characters, with single spaces, plain hyphens and letters in Unicode's "
    "form NFKC"
)
"""The rule for ``patient_id`` in words. Upper and lower case make two ids: other systems give out such (FHIR does)."""


def patient_id(value: str) -> str:
    """Return an id in the one form in which ids are stored: as it looks, without outer blanks, inner blanks one space.

    Ids that look alike have the same form: a no-break space, a zero-width space or a letter composed of two code points makes no
    other patient. Upper and lower case differ. A normal form is its own.

    Args:
        value: The id as somebody wrote it.

    Raises:
        ValueError: It has no form: it is empty, longer than 1,024 bytes, or holds a control character. The message does not hold
            the id.
    """
    if value.isascii() and value.isprintable():
        form = " ".join(value.split()) if " " in value else value
    else:
        form = as_seen(" ".join(as_seen(value).split()))
        require_no_control(form)
    if not form:
        raise ValueError("is missing")
    if len(form) * 4 > MAX_PATIENT_ID_BYTES and len(form.encode(errors="surrogatepass")) > MAX_PATIENT_ID_BYTES:
        raise ValueError(f"is longer than {MAX_PATIENT_ID_BYTES:,} bytes")
    return form


def require_patient_id(value: str) -> str:
    """Return a new id, which must have its form already: its owner will look for it as it is.

    Rows of earlier versions may have other ids. They are read, changed and deleted by exactly that id.

    Raises:
        ValueError: It has another form, or none.
    """
    if patient_id(value) != value:
        raise ValueError(f"must be {PATIENT_ID_FORM}: store what voiceassist_db.spelling.patient_id() returns")
    return value


def require_no_control(text: str) -> None:
    """Raise ValueError where a text holds a control character, other than white space."""
    if not text.isprintable() and any(unicodedata.category(each) == "Cc" and not each.isspace() for each in text):
        raise ValueError("holds a control character")


def as_seen(text: str) -> str:
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
