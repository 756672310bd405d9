"""Rows come out as they were written, or are reported; no file makes the reader lose its place or its memory."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Iterator
from typing import BinaryIO, Literal, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing.columns import BY_HEADER
from voiceassist_db.importing.patients import BATCH_LINES, _batches, _layout, _lines
from voiceassist_db.importing.rows import MAX_ROW_BYTES, Row, RowReader
from voiceassist_db.repositories import Patient

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
RECORDS = st.lists(st.lists(CELLS, min_size=1, max_size=5), max_size=8)


def rows(content: bytes) -> list[Row]:
    """Return the rows of a file with this content."""
    return list(RowReader(io.BytesIO(content)))


def written(records: list[list[str]], line_end: str) -> bytes:
    """Return what Python's own writer makes of these records.

    Between bare newlines it leaves a carriage return unquoted, which at the end of a line looks like the line's; so there it
    is told to quote every cell.
    """
    text = io.StringIO(newline="")
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
    csv.writer(text, lineterminator=line_end, quoting=quoting).writerows(records)
    return text.getvalue().encode()


@given(RECORDS, st.sampled_from(["\r\n", "\n"]))
@example([["\ufeffa", "b"], ["\r"]], "\n")
def test_what_a_csv_writer_writes_is_read_back(records: list[list[str]], line_end: str) -> None:
    """Every record comes back equal, whatever quotes, commas and line breaks its cells hold."""
    read = rows(b"header\n" + written(records, line_end))[1:]
    assert [row.cells for row in read] == [record for record in records if record]


@given(RECORDS)
@example([["\r", "\n"]])
def test_a_carriage_return_that_is_not_quoted_is_reported(records: list[list[str]]) -> None:
    """As a writer leaves it between bare newlines, inside a line: the record is equal, or its line is broken.

    Of cells without line breaks of their own: of a broken record that spans two lines, both are reported.
    """
    records = [[cell.replace("\n", " ") for cell in record] for record in records]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([[*record, "end"] for record in records])
    read = rows(text.getvalue().encode())
    assert len(read) == len(records)
    for row, record in zip(read, records, strict=True):
        assert row.cells == [*record, "end"] or (row.problem is not None and any("\r" in cell for cell in record))


@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b"\xff", b"\x00", b"\xc3\xa9", b'x,"y"\n'])))
def test_no_bytes_whatsoever_make_the_reader_fail(parts: list[bytes]) -> None:
    """Line numbers rise, cells hold no NUL and no half character, and a row has either cells or a problem."""
    read = rows(b"".join(parts))
    numbers = [row.line for row in read]
    assert numbers == sorted(set(numbers))
    for row in read:
        assert bool(row.cells) != bool(row.problem)
        assert "\x00" not in "".join(row.cells)
        "".join(row.cells).encode()  # fails where half a character is left


def test_line_numbers_are_those_of_the_file() -> None:
    """A row is named by the physical line where it starts, whatever line breaks its fields hold; blank lines count."""
    read = rows(b'a,b\r\n\r\n1,"x\r\ny\n"\r\n2,z\n')
    assert [(row.line, row.last_line, row.cells) for row in read] == [
        (1, 1, ["a", "b"]),
        (3, 5, ["1", "x\r\ny\n"]),
        (6, 6, ["2", "z"]),
    ]


def test_the_last_line_needs_no_line_break() -> None:
    """A file may end without one."""
    assert [row.cells for row in rows(b"a\nb")] == [["a"], ["b"]]


@pytest.mark.parametrize("bad", [b"x,\xff\n", b'"x\n\xff",y\n', b"\xed\xa0\x80,x\n", b"\xc3\n"])
def test_bad_utf8_breaks_one_row(bad: bytes) -> None:
    """The rows before and after it are read, and a multi-line row stays one row."""
    read = rows(b"1\n" + bad + b"2\n")
    assert [row.cells for row in read] == [["1"], [], ["2"]]
    assert read[1].problem == "is not UTF-8"


def test_a_nul_character_breaks_one_row() -> None:
    """PostgreSQL could not store it."""
    read = rows(b"1\na\x00b\n2\n")
    assert [row.cells for row in read] == [["1"], [], ["2"]]
    assert "NUL" in (read[1].problem or "")


@pytest.mark.parametrize("bad", [b'"x"y,z\n', b"x\ry\n", b'x,"y\n'])
def test_a_row_that_is_no_csv_breaks_alone(bad: bytes) -> None:
    """Text after a closing quote, a bare carriage return, a quote that is never closed: the next line is read again."""
    read = rows(b"1\n" + bad + b"2\n3\n")
    assert [row.cells for row in read] == [["1"], [], ["2"], ["3"]]
    assert (read[1].line, read[2].line) == (2, 3)
    assert "not well-formed" in (read[1].problem or "")


class Generated(io.RawIOBase):
    """A file of any length that exists nowhere: lines made as they are read."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._rest = b""

    def readline(self, limit: int | None = -1, /) -> bytes:
        """Return the next line."""
        line = self._rest or next(self._lines, b"")
        if limit is None or limit < 0:
            limit = len(line)
        self._rest = line[limit:]
        return line[:limit]


def patients(number: int) -> BinaryIO:
    """Return a file of that many patients."""

    def lines() -> Iterator[bytes]:
        yield b"patient_id,ssn,mrn,name,date_of_birth,address\n"
        for n in range(number):
            yield (
                b'PT-%d,987-65-%04d,MRN-%d,Zo\xc3\xab %d,1980-01-01,"{""street"": ""%d Main Street""}"\n'
                % (n, n % 10000, n, n, n)
            )

    return cast("BinaryIO", Generated(lines()))


def peak_bytes(source: BinaryIO, lines: int) -> int:
    """Return the most memory that parsing a file into batches of patients takes."""
    tracemalloc.start()
    try:
        reader = RowReader(source)
        layout = _layout(reader, BY_HEADER)
        found = iter(reader)
        next(found)
        parsed = 0
        for batch in _batches(_lines(layout, found)):
            parsed += sum(isinstance(patient, Patient) for _, patient, _ in batch)
        assert parsed == lines
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.wide
def test_memory_does_not_grow_with_the_file() -> None:
    """Six times as many lines take less than half as much memory again; the long form reads a million."""
    few, many = 3 * BATCH_LINES, 18 * BATCH_LINES
    small = peak_bytes(patients(few), few)
    assert peak_bytes(patients(many), many) < 1.5 * small


@pytest.mark.long
def test_memory_does_not_grow_with_a_million_lines() -> None:
    """The same ratio holds between 20,000 lines, 200,000 and a million."""
    small = peak_bytes(patients(20_000), 20_000)
    assert peak_bytes(patients(200_000), 200_000) < 1.5 * small
    assert peak_bytes(patients(1_000_000), 1_000_000) < 1.5 * small


def test_a_quote_that_is_never_closed_does_not_read_the_file_into_memory() -> None:
    """Its own line is reported, all 100,000 after it are read, in a few MiB."""

    def lines() -> Iterator[bytes]:
        yield b'1,"open\n'
        yield from (b"x,%d\n" % n for n in range(100_000))

    tracemalloc.start()
    try:
        found = iter(RowReader(cast("BinaryIO", Generated(lines()))))
        broken = next(found)
        assert broken.line == 1
        assert "quote" in (broken.problem or "")
        assert sum(row.problem is None for row in found) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_ROW_BYTES
    finally:
        tracemalloc.stop()


def test_a_line_without_end_is_bounded() -> None:
    """A line of 10 MiB is reported, without being kept, and the next one is read."""
    read = rows(b"1\n" + b"x" * (10 * MAX_ROW_BYTES) + b"\n2\n")
    assert [(row.line, row.cells) for row in read] == [(1, ["1"]), (2, []), (3, ["2"])]
    assert "longer than" in (read[1].problem or "")


def test_a_file_that_fails_while_it_is_read_is_an_error() -> None:
    """A disk or network failure is no broken line and no end of file."""

    class Failing(io.RawIOBase):
        def readline(self, _limit: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(ImportFileError, match="cannot be read beyond line 0: Input/output error"):
        next(iter(RowReader(cast("BinaryIO", Failing()))))
