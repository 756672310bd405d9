"""The CSV formats that can be imported: which columns make which field of a patient, and what a value must look like.

Owns the wording of what is wrong with a line: columns by their name, never a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from typing import Any, Final, NamedTuple

from voiceassist_db import blind_index, spelling
from voiceassist_db.errors import ImportFileError
from voiceassist_db.repositories import Patient

MAX_ADDRESS_DEPTH: Final = 50
"""Levels of JSON, far below those at which Python's encoder gives up."""

_NO_ADDRESS: Final = f"is not a JSON object (each name once, at most {MAX_ADDRESS_DEPTH} levels, no NaN, no NUL)"
_ADDRESS_PARTS: Final = ("street", "city", "state", "county", "zip", "latitude", "longitude")

Read = Callable[[Sequence[str]], Any]
"""Makes a field's value of its cells, of which one at least is not empty. Raises ValueError in words fit to show."""


class BadRowError(Exception):
    """A row is not a patient; the message says why and holds no value."""


def _patient_id(cells: Sequence[str]) -> str:
    return spelling.patient_id(cells[0])


def _ssn(cells: Sequence[str]) -> str:
    blind_index.ssn(cells[0])
    return cells[0]


def _mrn(cells: Sequence[str]) -> str:
    blind_index.mrn(cells[0])
    return cells[0]


def _name(cells: Sequence[str]) -> str:
    name = " ".join(filter(None, cells))
    blind_index.name(name)
    return name


def _date(cells: Sequence[str]) -> date:
    try:
        value = date.fromisoformat(cells[0])
    except ValueError:
        value = None
    if value is None or value.isoformat() != cells[0]:  # fromisoformat reads ISO 8601's week dates as well
        raise ValueError("is not a date (YYYY-MM-DD)")
    return value


def _address_parts(cells: Sequence[str]) -> dict[str, str]:
    return {part: cell for part, cell in zip(_ADDRESS_PARTS, cells, strict=True) if cell}


def _address_json(cells: Sequence[str]) -> dict[str, Any]:
    text = cells[0]
    try:
        value = _JSON.decode(text)
        sound = isinstance(value, dict)
        # Only many brackets can nest deep, and only an escape can spell what UTF-8 cannot: half a character, or NUL.
        if text.count("{") + text.count("[") > MAX_ADDRESS_DEPTH:
            sound = sound and not _is_deeper(value, MAX_ADDRESS_DEPTH)
        if sound and "\\u" in text:
            sound = b"\x00" not in _text(value).encode()
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(_NO_ADDRESS)
    result: dict[str, Any] = value
    return result


def _text(value: Any) -> str:
    """Return all strings of a JSON value in one, for a look at their characters."""
    if isinstance(value, dict):
        return "".join(f"{key}{_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "".join(map(_text, value))
    return value if isinstance(value, str) else ""


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in children)


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


def _no_constant(_name: str) -> float:
    raise ValueError("JSON has no such number")


_JSON: Final = json.JSONDecoder(object_pairs_hook=_once_each, parse_float=_finite, parse_constant=_no_constant)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    columns: tuple[str, ...]
    read: Read


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    required: tuple[str, ...]
    fields: tuple[_Field, ...]


_SYNTHEA: Final = _Format(
    "Synthea patients.csv",
    ("Id", "BIRTHDATE", "SSN", "FIRST", "LAST", "ADDRESS", "CITY", "STATE", "ZIP"),
    (
        _Field("patient_id", ("Id",), _patient_id),
        _Field("ssn", ("SSN",), _ssn),
        # Synthea's own FHIR export gives the Id as the patient's medical record number.
        _Field("mrn", ("Id",), _mrn),
        _Field("name", ("FIRST", "LAST"), _name),
        _Field("date_of_birth", ("BIRTHDATE",), _date),
        _Field("address", ("ADDRESS", "CITY", "STATE", "COUNTY", "ZIP", "LAT", "LON"), _address_parts),
    ),
)
_OWN: Final = _Format(
    "voiceassist-db",
    ("patient_id",),
    (
        _Field("patient_id", ("patient_id",), _patient_id),
        _Field("ssn", ("ssn",), _ssn),
        _Field("mrn", ("mrn",), _mrn),
        _Field("name", ("name",), _name),
        _Field("date_of_birth", ("date_of_birth",), _date),
        _Field("address", ("address",), _address_json),
    ),
)
EXPECTED: Final = (
    f"Synthea's patients.csv ({', '.join(_SYNTHEA.required)}, and more), or a header of "
    f"{', '.join(each.name for each in _OWN.fields)}, of which patient_id must be there"
)


class _Source(NamedTuple):
    """A field of the patient in one file, as messages call it, what picks its cells of a row and an empty one, and its reader."""

    field: str
    label: str
    pick: Callable[[Sequence[str]], tuple[str, ...]]
    read: Read


@dataclass(frozen=True, slots=True)
class Layout:
    """One file's columns.

    Attributes:
        format: Name of the format.
        width: Number of columns.
        fields: Fields of a patient that the file has columns for; nothing is said about the others.
        ignored_columns: Columns that are not imported.
    """

    format: str
    width: int
    fields: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    _sources: tuple[_Source, ...]

    def patient(self, cells: Sequence[str]) -> Patient:
        """Make the patient of a row; an empty cell is None.

        Raises:
            BadRowError: The row is not one, with everything that is wrong with it.
        """
        if len(cells) != self.width:
            raise BadRowError(f"has {len(cells):,} columns, where the header has {self.width:,}")
        values: dict[str, Any] = {}
        problems: list[str] = []
        row = (*cells, "")
        for field, label, pick, read in self._sources:
            given = pick(row)
            if not any(given) and field != "patient_id":
                continue
            try:
                values[field] = read(given)
            except ValueError as error:
                problem = f"{label} {error.args[0]}"
                if problem not in problems:
                    problems.append(problem)
        if problems:
            raise BadRowError("; ".join(problems))
        return Patient(**values)


def recognise(header: Sequence[str]) -> Layout:
    """Recognise a file's format by its header.

    Raises:
        ImportFileError: It is of no known format, or names a column twice. The message does not show what was found: a
            file without a header begins with a patient.
    """
    columns = [column.strip() for column in header]
    found = next((each for each in (_SYNTHEA, _OWN) if set(each.required) <= set(columns)), None)
    if found is None:
        raise ImportFileError(f"the first line is not a header that is known: expected {EXPECTED}")
    used = {column for field in found.fields for column in field.columns}
    if twice := sorted(column for column in used if columns.count(column) > 1):
        raise ImportFileError(f"the header names a column twice: {', '.join(twice)}")
    position = {column: number for number, column in enumerate(columns) if column in used}
    sources = tuple(
        _Source(
            field.name,
            "/".join(column for column in field.columns if column in position),
            _picking([position.get(column, len(columns)) for column in field.columns]),
            field.read,
        )
        for field in found.fields
        if any(column in position for column in field.columns)
    )
    ignored = tuple(
        column if column and column.isprintable() else f"(column {number})"
        for number, column in enumerate(columns, start=1)
        if column not in used
    )
    return Layout(found.name, len(columns), tuple(each.field for each in sources), ignored, sources)


def _picking(positions: Sequence[int]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    if len(positions) > 1:
        return itemgetter(*positions)
    (position,) = positions
    return lambda row: (row[position],)


def differing(layout: Layout, one: Patient, other: Patient) -> list[str]:
    """Return the names of the fields in which two patients differ, among those that the file has."""
    return [name for name in layout.fields if _comparable(getattr(one, name)) != _comparable(getattr(other, name))]


def _comparable(value: Any) -> Any:
    # As JSON, because to Python 1, 1.0 and True are equal.
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
