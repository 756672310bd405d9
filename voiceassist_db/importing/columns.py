"""Which columns of a file make which field of a patient: Synthea's, our own, and those that a caller maps.

Owns the recognition of a header and the reading of a row by it. Headers match without regard to case and outer blanks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from voiceassist_db.errors import ImportFileError
from voiceassist_db.escaping import escaped
from voiceassist_db.importing import cells as cell
from voiceassist_db.importing import headers
from voiceassist_db.importing.headers import key_of, listed
from voiceassist_db.repositories import Patient

_ADDRESS_PARTS: Final = ("street", "city", "state", "county", "zip", "latitude", "longitude")
OWN: Final = "voiceassist-db"
MAPPED: Final = "mapped columns"
FIELDS: Final = ("patient_id", "ssn", "mrn", "name", "date_of_birth", "address")
MAPPABLE: Final = (*FIELDS, *(f"address.{part}" for part in _ADDRESS_PARTS))
"""What a column can be mapped to; or to nothing."""


_NO_WORDS: Final[frozenset[str]] = frozenset()
_HEADER_AGAIN: Final = "repeats the header: another file begins here"
_WORD: Final = "is a word that may mean no value (NULL, N/A, nan, …): name those that do with --null-words"


class BadRowError(Exception):
    """A row is not a patient; the message says why and holds no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    r"""How a file is to be read, where its header and its cells do not tell.

    Args:
        columns: Pairs of a column's name and the field that it makes: one of :data:`MAPPABLE`, or an empty text to leave it out.
            A column may make two fields, and several make a name, in this order. Other columns are read by their names.
        date_format: How dates are written, in the directives of ``strptime``, such as ``%m/%d/%Y``; None for YYYY-MM-DD.
        null_words: Words that mean "no value", in any case; all other words are values then. None refuses a row with a word
            that may mean it (NULL, N/A, \N, nan, None).
        ignore_columns: Pass over columns of our own format that are not known, instead of refusing the file.

    Raises:
        ValueError: There is no such field, two columns make one, or the date format can be read in two ways.
    """

    columns: tuple[tuple[str, str], ...] = ()
    date_format: str | None = None
    null_words: tuple[str, ...] | None = None
    ignore_columns: bool = False

    def __post_init__(self) -> None:
        made = [field for _, field in self.columns if field]
        if unknown := [each for each in made if each not in MAPPABLE]:
            raise ValueError(f"there is no field {escaped(unknown[0])}: map a column to one of {', '.join(MAPPABLE)}")
        if twice := [each for each in made if made.count(each) > 1 and each != "name"]:
            raise ValueError(f"two columns are mapped to {twice[0]}")
        if "address" in made and any(each.startswith("address.") for each in made):
            raise ValueError("a column is mapped to address, and another to a part of it")
        if self.date_format is not None:
            cell.require_date_format(self.date_format)


BY_HEADER: Final = Reading()
"""Nothing is said about the file but by its header."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    columns: tuple[str, ...]
    read: cell.Read


@dataclass(frozen=True, slots=True)
class _Format:
    """A kind of file: the fields that it can have, the columns that make it this kind, and those that it usually has."""

    name: str
    required: tuple[str, ...]
    usual: tuple[str, ...]
    fields: tuple[_Field, ...]

    def without(self, columns: Iterable[str], fields: Iterable[str]) -> tuple[_Field, ...]:
        """Return the fields that are left when some columns and fields are mapped otherwise."""
        taken, made = set(map(key_of, columns)), set(fields)
        rest = (
            _Field(each.name, tuple("" if key_of(column) in taken else column for column in each.columns), each.read)
            for each in self.fields
            if each.name not in made
        )
        return tuple(each for each in rest if any(each.columns))


def _readers(reading: Reading) -> dict[str, cell.Read]:
    birth = cell.birth_reader(reading.date_format, cell.latest_birth())
    return dict(zip(FIELDS, (cell.patient_id, cell.ssn, cell.mrn, cell.name, birth, cell.address_json), strict=True))


def _formats(readers: Mapping[str, cell.Read]) -> tuple[_Format, _Format]:
    synthea = _Format(
        "Synthea patients.csv",
        ("Id", "BIRTHDATE", "SSN", "FIRST", "LAST", "ADDRESS"),
        ("Id", "BIRTHDATE", "SSN", "FIRST", "LAST", "ADDRESS", "CITY", "STATE", "ZIP"),
        (
            _Field("patient_id", ("Id",), cell.patient_id),
            _Field("ssn", ("SSN",), cell.ssn),
            # Synthea's own FHIR export gives the Id as the patient's medical record number.
            _Field("mrn", ("Id",), cell.mrn),
            _Field("name", ("FIRST", "MIDDLE", "LAST", "SUFFIX"), cell.name),
            _Field("date_of_birth", ("BIRTHDATE",), readers["date_of_birth"]),
            _Field(
                "address",
                ("ADDRESS", "CITY", "STATE", "COUNTY", "ZIP", "LAT", "LON"),
                cell.address_reader(_ADDRESS_PARTS),
            ),
        ),
    )
    own = tuple(_Field(name, (name,), read) for name, read in readers.items())
    return synthea, _Format(OWN, ("patient_id",), FIELDS, own)


class _Source(NamedTuple):
    """A field of the patient in one file, as messages call it, what picks its cells of a row and an empty one, and its reader."""

    field: str
    label: str
    pick: Callable[[Sequence[str]], tuple[str, ...]]
    read: cell.Read


@dataclass(frozen=True, slots=True)
class Layout:
    """One file's columns.

    Attributes:
        format: Name of the format.
        fields: Fields of a patient that the file has columns for; nothing is said about the others.
        columns: Columns that are imported, as the file names them.
        ignored_columns: Columns that are not imported.
        missing_columns: Columns that a file of this format usually has, and this one lacks.
        id_position: Position of the column with the ``patient_id``.
    """

    format: str
    fields: tuple[str, ...]
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    missing_columns: tuple[str, ...]
    id_position: int
    _header: tuple[str, ...]
    _words: frozenset[str]
    _words_are_empty: bool
    _sources: tuple[_Source, ...]

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self._header)

    def patient(self, cells: Sequence[str]) -> Patient | None:
        """Make the patient of a row; an empty cell is None. A row without any value gives None.

        Raises:
            BadRowError: The row is not one, with everything that is wrong with it.
        """
        if not any(cells):
            return None
        row: Sequence[str] = (*cells, "")
        words = _NO_WORDS if self._words.isdisjoint(map(str.strip, cells)) else self._words
        if words and self._words_are_empty:
            row, words = ["" if each.strip() in words else each for each in row], _NO_WORDS
        if len(cells) != len(self._header):
            self._nobody(cells, [f"has {len(cells):,} columns, where the header has {self.width:,}"])
            return None
        values: dict[str, Any] = {}
        problems: list[str] = []
        for field, label, pick, read in self._sources:
            given = pick(row)
            if not any(given) and field != "patient_id":
                continue
            try:
                # An address in JSON says itself that null is none.
                if words and read is not cell.address_json and not words.isdisjoint(map(str.strip, given)):
                    raise ValueError(_WORD)
                values[field] = read(given)
            except ValueError as error:
                problem = f"{label} {error.args[0]}"
                if problem not in problems:
                    problems.append(problem)
        if problems:
            self._nobody(cells, problems)
            return None
        if values["patient_id"].casefold() == self._header[self.id_position] and self._is_header(cells):
            raise BadRowError(_HEADER_AGAIN)
        return Patient(**values)

    def _nobody(self, cells: Sequence[str], problems: Sequence[str]) -> None:
        """Pass over a row that holds nothing but blanks; raise what is wrong with any other."""
        if any(map(str.strip, cells)):
            raise BadRowError(_HEADER_AGAIN if self._is_header(cells) else "; ".join(problems))

    def _is_header(self, cells: Sequence[str]) -> bool:
        return tuple(map(key_of, cells)) == self._header


def known(reading: Reading) -> Callable[[Sequence[str]], int]:
    """Return a function that counts the cells of a header that are names of columns which can be read."""
    names = {key_of(column) for column, _ in reading.columns} | headers.KNOWN
    return lambda cells: sum(key_of(each) in names for each in cells)


def recognise(header: Sequence[str], reading: Reading = BY_HEADER) -> Layout:
    """Recognise a file's format by its header.

    Raises:
        ImportFileError: It is of no known format, lacks a column, names one twice, or has an unknown one of our own format. Cells
            of what may be a patient's row, in a file without a header, are not shown.
    """
    keys = tuple(map(key_of, header))
    readers = _readers(reading)
    fields = _mapped(header, keys, reading, readers)
    made = {each.name for each in fields}
    synthea, own = _formats(readers)
    base = next((each for each in (synthea, own) if set(map(key_of, each.required)) <= set(keys)), None)
    if base is None and "patient_id" not in made:
        raise headers.not_known(header)
    fields += (base or own).without([column for column, _ in reading.columns], made)
    fields = tuple(sorted(fields, key=lambda each: FIELDS.index(each.name)))
    if fields[0].name != "patient_id":
        raise ImportFileError(
            f"no column makes patient_id, because the one that does is mapped: add --map COLUMN=patient_id{headers.found(header)}"
        )
    used = {key_of(column) for each in fields for column in each.columns if column}
    if twice := sorted(
        {escaped(column.strip()) for column in header if key_of(column) in used and keys.count(key_of(column)) > 1}
    ):
        raise ImportFileError(f"the header names a column twice: {', '.join(twice)}")
    position = {key: number for number, key in enumerate(keys) if key in used}
    left_out = {"", *made, *(key_of(column) for column, field in reading.columns if not field)}
    others = [number for number, key in enumerate(keys) if key not in used]
    if base is own and not reading.ignore_columns:
        headers.require_known([(number, header[number]) for number in others if keys[number] not in left_out])
    sources = tuple(
        _source(each, header, position) for each in fields if any(key_of(column) in position for column in each.columns)
    )
    id_position = position[key_of(fields[0].columns[0])]
    return Layout(
        base.name if base else MAPPED,
        tuple(each.field for each in sources),
        tuple(escaped(header[number].strip()) for number in sorted(position.values())),
        tuple(_shown(number, header[number]) for number in others),
        tuple(each for each in base.usual if key_of(each) not in keys) if base else (),
        id_position,
        keys,
        cell.words(reading.null_words),
        reading.null_words is not None,
        sources,
    )


def _mapped(
    header: Sequence[str], keys: Sequence[str], reading: Reading, readers: Mapping[str, cell.Read]
) -> tuple[_Field, ...]:
    """Return the fields that are made of mapped columns."""
    if absent := [column for column, _ in reading.columns if key_of(column) not in keys]:
        raise ImportFileError(f"there is no column {listed(absent)} to map{headers.found(header)}")
    fields = []
    for name, read in readers.items():
        if columns := tuple(column for column, field in reading.columns if field == name):
            fields.append(_Field(name, columns, read))
    if parts := [(column, field) for column, field in reading.columns if field.startswith("address.")]:
        names = [field.removeprefix("address.") for _, field in parts]
        fields.append(_Field("address", tuple(column for column, _ in parts), cell.address_reader(names)))
    return tuple(fields)


def _shown(number: int, column: str) -> str:
    column = column.strip()
    return column if column and escaped(column) == column else f"(column {number + 1})"


def _source(field: _Field, header: Sequence[str], position: Mapping[str, int]) -> _Source:
    positions = [position.get(key_of(column), len(header)) for column in field.columns]
    label = "/".join(escaped(header[number].strip()) for number in positions if number < len(header))
    return _Source(field.name, label, _picking(positions), field.read)


def _picking(positions: Sequence[int]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    if len(positions) > 1:
        return itemgetter(*positions)
    (position,) = positions
    return lambda row: (row[position],)


def differing(fields: Iterable[str], one: Any, other: Any) -> list[str]:
    """Return the names of the fields, among these, in which two patients differ."""
    return [name for name in fields if _comparable(getattr(one, name)) != _comparable(getattr(other, name))]


def _comparable(value: Any) -> Any:
    # As JSON, because to Python 1, 1.0 and True are equal.
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
