"""What a cell must look like, field by field, and what a spreadsheet may have made of it.

Owns the wording of what is wrong with a value, which it never holds. Knows no header.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from voiceassist_db import blind_index, spelling
from voiceassist_db.values import MAX_DIGITS, MAX_JSON_DEPTH, is_deeper

EARLIEST_BIRTH: Final = date(1850, 1, 1)

SUSPECTS: Final = ("NULL", "(null)", "<null>", "N/A", "#N/A", "\\N", "NaN", "<NA>", "None", "NaT", "undefined")
"""Words that databases, spreadsheets and data frames write where there is no value; and NA, in capitals only: Na is a name."""

_NO_ADDRESS: Final = f"is not a JSON object (each name once, at most {MAX_JSON_DEPTH} levels, no NaN, no NUL, no integer of more than {MAX_DIGITS} digits)"
_DATE_DIRECTIVES: Final = frozenset("YmdjbB")
_TEXT_FORMULA: Final = re.compile(r'="((?:[^"]|"")*)"')

_MARKS: Final = frozenset("'=")
"""First characters of a cell whose text is marked as text."""

Read = Callable[[Sequence[str]], Any]
"""Makes a field's value of its cells, of which one at least is not empty. Raises ValueError in words fit to show."""


def words(given: Iterable[str] | None) -> frozenset[str]:
    """Return the spellings of words that mean "no value": of those given, in any case, else of :data:`SUSPECTS`."""
    spelled = SUSPECTS if given is None else [each.strip() for each in given if each.strip()]
    found = {way for each in spelled for way in (each, each.lower(), each.upper(), each.capitalize())}
    return frozenset(found | ({"NA"} if given is None else set()))


def latest_birth() -> date:
    """Return today's date where the day begins first, at UTC+14: nobody is born after it."""
    return (datetime.now(UTC) + timedelta(hours=14)).date()


# --- numbers and names -----------------------------------------------------------------------------------------------


def patient_id(cells: Sequence[str]) -> str:
    """Read a patient's id and give it its form."""
    value = cells[0]
    form = spelling.patient_id(_unescaped(value) if value[:1] in _MARKS else value)
    if blind_index.is_spreadsheet_number(form):
        raise ValueError(blind_index.SPREADSHEET_NUMBER)
    return form


def ssn(cells: Sequence[str]) -> str:
    """Read a social security number."""
    value = cells[0]
    if value[0] in _MARKS:
        value = _unescaped(value)
    blind_index.ssn(value)
    return value


def mrn(cells: Sequence[str]) -> str:
    """Read a medical record number."""
    value = cells[0]
    if value[0] in _MARKS:
        value = _unescaped(value)
    blind_index.mrn(value)
    return value


def name(cells: Sequence[str]) -> str:
    """Read a name, of which the cells are the parts."""
    if len(cells) == 1:
        whole = cells[0] if cells[0][0] != "=" else _text(cells[0])
    else:
        whole = " ".join([_text(cell) for cell in cells if cell and not cell.isspace()])
    blind_index.name(whole)
    return whole


def _unescaped(cell: str) -> str:
    """Return the text of a number that is marked as text: ``="0012"``, or ``'0012``."""
    return cell[1:] if cell[:1] == "'" else _text(cell)


def _text(cell: str) -> str:
    """Return the text of a cell, which may be written as a formula, so that a spreadsheet takes it for no number."""
    if cell[:1] != "=":
        return cell
    formula = _TEXT_FORMULA.fullmatch(cell)
    if formula is None:
        raise ValueError("is a spreadsheet's formula: export its value")
    return formula[1].replace('""', '"')


# --- dates -----------------------------------------------------------------------------------------------------------


def birth_reader(date_format: str | None, latest: date) -> Read:
    """Return what reads a date of birth.

    Args:
        date_format: How it is written, in the directives of ``strptime``; None for YYYY-MM-DD.
        latest: The last date that it may be.
    """
    parse = _iso_date if date_format is None else _parser(date_format)

    def read(cells: Sequence[str]) -> date:
        cell = cells[0]
        value = parse(_unescaped(cell) if cell[0] in _MARKS else cell)
        if value < EARLIEST_BIRTH:
            raise ValueError(f"is before {EARLIEST_BIRTH.year}")
        if value > latest:
            raise ValueError("is after today")
        return value

    return read


def require_date_format(date_format: str) -> None:
    """Raise ValueError unless a format has year, month and day once each, and nothing that can be read in two ways."""
    directives = re.findall("%(.?)", date_format.replace("%%", ""))
    if unknown := sorted(set(directives) - _DATE_DIRECTIVES):
        century = " (a year of two digits does not tell the century)" if "y" in unknown else ""
        raise ValueError(f"the date format has %{unknown[0]}, which is none of %Y %m %d %j %b %B{century}")
    if sorted(map(str.lower, directives)) not in (sorted("ymd"), sorted("yj"), sorted("ybd")):
        raise ValueError("the date format must have %Y, %d and one of %m %b %B, or %Y and %j, each once")


def _iso_date(cell: str) -> date:
    try:
        value = date.fromisoformat(cell)
    except ValueError:
        value = None
    if value is None or value.isoformat() != cell:  # fromisoformat reads ISO 8601's week dates as well
        raise ValueError("is not a date (YYYY-MM-DD)")
    return value


def _parser(date_format: str) -> Callable[[str], date]:
    # Where nothing stands between two numbers, 1970111 may be January 11th or November 1st.
    is_exact = re.search("%[a-zA-Z]%[a-zA-Z]", date_format) is not None

    def parse(cell: str) -> date:
        try:
            value = datetime.strptime(cell, date_format).replace(tzinfo=UTC).date()
        except ValueError:
            value = None
        if value is None or (is_exact and value.strftime(date_format) != cell):
            raise ValueError(f"is not a date ({date_format})")
        return value

    return parse


# --- addresses -------------------------------------------------------------------------------------------------------


def address_reader(parts: Sequence[str]) -> Read:
    """Return what makes an address of cells that hold these parts of it, in this order."""

    def read(cells: Sequence[str]) -> dict[str, str]:
        return {part: _text(cell) for part, cell in zip(parts, cells, strict=True) if cell}

    return read


def address_json(cells: Sequence[str]) -> dict[str, Any]:
    """Read an address that is written as a JSON object."""
    text = cells[0]
    try:
        value = _JSON.decode(text)
        sound = isinstance(value, dict)
        # Only many brackets can nest deep, and only an escape can spell what UTF-8 cannot: half a character, or NUL.
        if text.count("{") + text.count("[") > MAX_JSON_DEPTH:
            sound = sound and not is_deeper(value)
        if sound and "\\u" in text:
            sound = b"\x00" not in _strings(value).encode()
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(_NO_ADDRESS)
    result: dict[str, Any] = value
    return result


def _strings(value: Any) -> str:
    """Return all strings of a JSON value in one, to check their characters."""
    if isinstance(value, dict):
        return "".join(f"{key}{_strings(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "".join(map(_strings, value))
    return value if isinstance(value, str) else ""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in a JSON object, and one of its values would be lost")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large for JSON")
    return value


def _short(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError("an integer has too many digits")
    return int(text)


def _no_constant(_name: str) -> float:
    raise ValueError("JSON has no such number")


_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_once_each, parse_float=_finite, parse_int=_short, parse_constant=_no_constant
)
