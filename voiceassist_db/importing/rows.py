"""The rows of a CSV file (RFC 4180), from bytes: a broken row costs itself and no other, in bounded memory.

Owns decoding, line numbers and the bounds. Knows no column and no patient.
"""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from voiceassist_db.errors import ImportFileError

MAX_ROW_BYTES: Final = 1 << 20
"""Longest row, 1 MiB: a quote that is never closed must not read the rest of the file into memory."""

HEAD_LINES: Final = 8
"""Lines that :meth:`RowReader.head` returns."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One row.

    Attributes:
        line: Number of the physical line where it starts, from 1.
        last_line: Number of the physical line where it ends.
        size: Length in bytes.
        cells: Its cells; empty where the row could not be read.
        problem: Why it could not be read; None where it could.
    """

    line: int
    last_line: int
    size: int
    cells: list[str]
    problem: str | None = None


class _Line(NamedTuple):
    number: int
    size: int
    text: str
    problem: str | None


class _TooLongError(Exception):
    """The row has outgrown :data:`MAX_ROW_BYTES`."""


class RowReader:
    """Reads the rows of a file, one at a time. Lines without any character are no rows.

    A row that is not well-formed CSV ends with its first physical line, and reading goes on at the next one: so a stray
    quote breaks the line that it stands in, and not all lines up to the next quote.

    Args:
        source: The file, open for reading bytes.

    Attributes:
        bytes_read: How many bytes were read so far.
        delimiter: The character between two cells.
    """

    def __init__(self, source: BinaryIO) -> None:
        self.bytes_read = 0
        self.delimiter = ","
        self._source = source
        self._lines_read = 0
        self._ahead: deque[bytes] = deque()
        self._again: deque[_Line] = deque()

    def head(self) -> list[bytes]:
        """Return the first lines of the file, with their line ends, as bytes; they are read as rows all the same."""
        while len(self._ahead) < HEAD_LINES and (raw := self._fetch(MAX_ROW_BYTES + 1)):
            self._ahead.append(raw)
        return list(self._ahead)

    def first_row(self, delimiters: str) -> dict[str, Row]:
        """Return the next row as each of these delimiters divides it; it remains the next row."""
        while (line := self._next_line()) is not None:
            if line.problem or line.text.strip():
                break
        found: dict[str, Row] = {}
        if line is None:
            return found
        for self.delimiter in delimiters:
            taken = [line]
            found[self.delimiter] = self._parsed(taken)
            self._again.extendleft(reversed(taken[1:]))
        self._again.appendleft(line)
        return found

    def __iter__(self) -> Iterator[Row]:
        while (line := self._next_line()) is not None:
            row = self._row(line)
            if row.cells or row.problem:
                yield row

    def _row(self, first: _Line) -> Row:
        taken = [first]
        row = self._parsed(taken)
        if row.last_line == first.number:  # the lines after it, if any were read, are no part of it
            self._again.extendleft(reversed(taken[1:]))
        return row

    def _parsed(self, taken: list[_Line]) -> Row:
        """Return the row that begins with the line in a list, which is left with the lines of the row."""
        first = taken[0]
        try:
            cells = next(csv.reader(self._texts(taken), strict=True, delimiter=self.delimiter))
        except (csv.Error, _TooLongError) as error:
            return Row(first.number, first.number, first.size, [], _malformed(error, spread=len(taken) > 1))
        if len(taken) == 1:
            return Row(first.number, first.number, first.size, [] if first.problem else cells, first.problem)
        problem = next((line.problem for line in taken if line.problem), None)
        size = sum(line.size for line in taken)
        return Row(first.number, taken[-1].number, size, [] if problem else cells, problem)

    def _texts(self, taken: list[_Line]) -> Iterator[str]:
        """Give the first line, and the next one whenever the csv module finds that a quote is still open."""
        line: _Line | None = taken[0]
        size = 0
        while line is not None:
            size += line.size
            if size > MAX_ROW_BYTES:
                raise _TooLongError
            yield line.text
            if (line := self._next_line()) is not None:
                taken.append(line)

    def _next_line(self) -> _Line | None:
        if self._again:
            return self._again.popleft()
        raw = self._read(MAX_ROW_BYTES + 1)
        if not raw:
            return None
        self._lines_read += 1
        size = len(raw)
        if self._lines_read == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if size > MAX_ROW_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = self._read(MAX_ROW_BYTES)
            return _Line(self._lines_read, size, "", None)
        return _decoded(self._lines_read, size, raw)

    def _read(self, limit: int) -> bytes:
        return self._ahead.popleft() if self._ahead else self._fetch(limit)

    def _fetch(self, limit: int) -> bytes:
        try:
            raw = self._source.readline(limit)
        except OSError as error:
            raise ImportFileError(
                f"the file cannot be read beyond line {self._lines_read}: {os.strerror(error.errno or 0)}"
            ) from None
        self.bytes_read += len(raw)
        return raw


def _decoded(number: int, size: int, raw: bytes) -> _Line:
    problem = None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        # The bytes of quote, comma and line break are never part of another character, so the row's shape is right.
        text = raw.decode(errors="surrogateescape")
        problem = "is not UTF-8"
    if "\x00" in text:
        problem = "holds a NUL character, which PostgreSQL's text cannot hold"
    return _Line(number, size, text, problem)


def _malformed(error: Exception, *, spread: bool) -> str:
    if isinstance(error, _TooLongError):
        problem = f"is longer than {MAX_ROW_BYTES:,} bytes"
    elif str(error).startswith("field larger"):
        problem = f"has a field longer than {csv.field_size_limit():,} characters"
    else:
        problem = "is not well-formed CSV: a quote or a carriage return is out of place"
    return f"{problem}; a quote that opens here is not closed properly" if spread else problem
