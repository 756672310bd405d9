"""Names of columns: when two are the same, which one was meant, and what may be shown of a header.

Owns the messages about headers. A file without a header begins with a patient, so only what is surely a header is shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from voiceassist_db.errors import ImportFileError
from voiceassist_db.escaping import escaped
from voiceassist_db.spelling import as_seen

_OWN: Final = ("patient_id", "ssn", "mrn", "name", "date_of_birth", "address")
_SYNTHEA: Final = ("Id", "BIRTHDATE", "SSN", "FIRST", "LAST", "ADDRESS")
EXPECTED: Final = f"Synthea's patients.csv ({', '.join(_SYNTHEA)}, and more), or a header of {', '.join(_OWN)}, of which patient_id must be there"

_MEANT: Final = {
    "patient_id": "id pid patientid patient_no patient_number identifier external_id",
    "ssn": "social social_security social_security_number social_security_no ssn_number tax_id",
    "mrn": "medical_record_number medical_record_no record_number record_no chart_number hospital_number",
    "name": "first_name last_name firstname lastname full_name fullname patient_name given_name family_name surname middle_name",
    "date_of_birth": "dob birth_date birthdate birthday born birth_dt",
    "address": "street street_address home_address addr postal_address",
}
"""What other systems call our columns."""
_SYNONYMS: Final = {other: name for name, others in _MEANT.items() for other in others.split()}

_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "birth birthdate birthday born cd code date dob dt email ethnicity first firstname gender id "
        "identification identifier ids last lastname middle mrn name nr number patient phone pid "
        "postal postcode race sex social ssn status surname zip ",
    )
)
"""Words that names of columns have, and rows of values rarely."""


def key_of(column: str) -> str:
    """Return what two spellings of a column's name have in common: case and outer blanks make no difference."""
    return as_seen(column).strip().casefold()


KNOWN: Final = frozenset(map(key_of, (*_OWN, *_SYNTHEA)))
"""Names of columns by which a header is recognised."""


def listed(columns: Iterable[str]) -> str:
    """Return names of columns as text that is safe to show."""
    return ", ".join(f'"{escaped(each.strip())}"' for each in columns)


def found(header: Sequence[str]) -> str:
    """Return half a sentence that says which columns a header has, or how many if it may be a patient's row."""
    if _is_header(header):
        return f". The file has the columns {listed(each for each in header if each.strip())}"
    return f". The first line has {len(header)} cells, which are not shown: they may be values"


def not_known(header: Sequence[str]) -> ImportFileError:
    """Return the error of a header without a column for ``patient_id``."""
    keys = set(map(key_of, header))
    lacking = [each for each in _SYNTHEA if key_of(each) not in keys]
    if len(lacking) < len(_SYNTHEA) / 2:
        return ImportFileError(
            f"the header is that of Synthea's patients.csv, but lacks {', '.join(lacking)}{found(header)}"
        )
    if keys & set(_OWN[:3]):
        return ImportFileError(
            f"the header lacks patient_id{found(header)}. --map COLUMN=patient_id says which one it is"
        )
    return ImportFileError(
        f"the first line is not a header that is known: expected {EXPECTED}{found(header)}. "
        "Columns with other names are read with --map COLUMN=field"
    )


def require_known(unknown: Sequence[tuple[int, str]]) -> None:
    """Refuse a file of our own format with columns that are not known, and suggest those that may be meant.

    Args:
        unknown: Position and name of each unknown column.

    Raises:
        ImportFileError: There is one.
    """
    if not unknown:
        return
    shown = []
    for number, column in unknown:
        key = re.sub(r"[\W_]+", "_", key_of(column))
        near = _SYNONYMS.get(key) or next(iter(difflib.get_close_matches(key, _OWN, n=1)), None)
        shown.append(f'column {number + 1} "{escaped(column.strip())}"{f" (is it {near}?)" if near else ""}')
    raise ImportFileError(
        f"the header has columns that are not known: {', '.join(shown)}. Correct their names, say what they are with "
        "--map COLUMN=field, or pass over them with --ignore-columns"
    )


def _is_header(cells: Sequence[str]) -> bool:
    """Say whether a row surely holds names of columns: half of them have a word of such names, and none looks like a value."""
    given = [each.strip() for each in cells if each.strip()]
    if any(re.match(r"[\W\d]", each) or re.search(r"\d{3}|@", each) for each in given):
        return False
    named = [each for each in given if not _WORDS.isdisjoint(re.findall("[a-z]+", _split(each)))]
    return len(named) * 2 >= len(given) > 0


def _split(column: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower()
