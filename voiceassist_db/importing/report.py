"""What an import did. Holds line numbers, problems and names of columns and fields, never a patient's value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BadLine:
    """A broken line.

    Attributes:
        line: Number of the line in the file, from 1, where the record starts: a quoted field may hold line breaks.
        problem: What is wrong with it.
    """

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The result of an import.

    Attributes:
        format: Name of the format that the file's header was recognised as.
        lines: Records in the file, without header and blank lines; ``imported + unchanged + updated + empty + bad`` where
            committed.
        imported: Patients that were added; 0 where nothing was committed.
        unchanged: Patients who were already there with equal values.
        updated: Lines that changed a patient who was already there; 0 where nothing was committed.
        changes: How many lines change each field, or would, by field.
        empty: Rows without any value, which are passed over.
        bad: Broken lines.
        bad_lines: The broken lines in the file's order, at most the first 1,000.
        columns: Columns of the file that are imported, in the file's order.
        ignored_columns: Columns of the file that are not imported, in the file's order.
        missing_columns: Columns that a file of this format usually has, and this one lacks.
        committed: False where broken lines made the import do nothing.
    """

    format: str
    lines: int
    imported: int
    unchanged: int
    updated: int
    changes: Mapping[str, int]
    empty: int
    bad: int
    bad_lines: tuple[BadLine, ...]
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    missing_columns: tuple[str, ...]
    committed: bool
