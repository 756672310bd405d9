"""A file that is no CSV in UTF-8 is refused by its name and with a way out; the delimiter is what the header shows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing.columns import BY_HEADER, known
from voiceassist_db.importing.dialects import first_row
from voiceassist_db.importing.rows import RowReader

CSV = b"patient_id,ssn,mrn,name\nPT-1,,M-1,Ana\n"


def header(content: bytes) -> tuple[str, list[str]]:
    """Return the delimiter of a file and the cells of its header."""
    reader = RowReader(io.BytesIO(content))
    row = first_row(reader, known(BY_HEADER))
    assert next(iter(reader)) == row
    return reader.delimiter, row.cells


def zipped() -> bytes:
    """Return an archive, which an Excel workbook is as well."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("patients.csv", CSV)
    return content.getvalue()


OTHERS = {
    "UTF-16, little-endian": (
        "\ufeff".encode("utf-16-le") + CSV.decode().encode("utf-16-le"),
        "UTF-16",
        "iconv -f UTF-16 ",
    ),
    "UTF-16, big-endian": (
        "\ufeff".encode("utf-16-be") + CSV.decode().encode("utf-16-be"),
        "UTF-16",
        "iconv -f UTF-16 ",
    ),
    "UTF-16 without a mark": (CSV.decode().encode("utf-16-le"), "UTF-16", "iconv -f UTF-16LE"),
    "UTF-16 without a mark, big-endian": (CSV.decode().encode("utf-16-be"), "UTF-16", "iconv -f UTF-16BE"),
    "UTF-32": (CSV.decode().encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
    "gzip": (gzip.compress(CSV), "gzip", "gunzip -c FILE | voiceassist-db import -"),
    "bzip2": (bz2.compress(CSV), "bzip2", "bunzip2 -c"),
    "xz": (lzma.compress(CSV), "xz", "xz -dc"),
    "zip": (zipped(), "Excel workbook (.xlsx)", "CSV UTF-8"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "Excel workbook (.xls)", "CSV UTF-8"),
    "Parquet": (b"PAR1\x15\x04", "Parquet", "CSV"),
    "FHIR on one line": (b'{"resourceType":"Patient","id":"SECRET"}', "JSON (FHIR)", "patient_id, ssn"),
    "FHIR on many lines": (
        b'\xef\xbb\xbf{\n  "resourceType": "Bundle",\n  "id": "SECRET"\n}\n',
        "JSON (FHIR)",
        "patient_id, ssn",
    ),
    "FHIR, a list": (b'[{"id": "SECRET",\n"resourceType": "Patient"}]', "JSON (FHIR)", "patient_id, ssn"),
    "JSON": (b'[{"name": "SECRET"}]', "JSON,", "patient_id, ssn"),
    "FHIR in XML": (
        b'<?xml version="1.0"?>\n<Patient xmlns="http://hl7.org/fhir"><id value="SECRET"/>',
        "XML (FHIR)",
        "CSV",
    ),
    "HTML": (b"<table><tr><td>SECRET", "XML or HTML", "CSV"),
    "HL7": (b"MSH|^~\\&|SECRET|\rPID|1|", "HL7 version 2", "CSV"),
    "PDF": (b"%PDF-1.7\n", "PDF", "CSV"),
}


@pytest.mark.parametrize(("content", "name", "advice"), OTHERS.values(), ids=OTHERS.keys())
def test_another_format_is_refused_by_its_name(content: bytes, name: str, advice: str) -> None:
    """The error says what the file is and what to do, and nothing that stands in it."""
    with pytest.raises(ImportFileError) as caught:
        header(content)
    assert str(caught.value).startswith("the file is ")
    assert name in str(caught.value)
    assert advice in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("delimiter", ",;\t|")
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "marked"])
@pytest.mark.parametrize("quote", ["", '"'], ids=["", "quoted"])
def test_the_header_shows_the_delimiter(delimiter: str, mark: bytes, quote: str) -> None:
    """With a byte order mark, after blank lines, and where every cell is quoted."""
    cells = ["patient_id", "ssn", "Name"]
    line = delimiter.join(f"{quote}{cell}{quote}" for cell in cells)
    assert header(mark + f"\r\n \r\n{line}\r\nPT-1{delimiter}{delimiter}\r\n".encode()) == (delimiter, cells)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("patient_id", (",", ["patient_id"])),
        ('patient_id,"name;ssn;mrn"', (",", ["patient_id", "name;ssn;mrn"])),
        ("patient_id;a,b,c,d", (";", ["patient_id", "a,b,c,d"])),
        ("BENE ID;BIRTH DT", (";", ["BENE ID", "BIRTH DT"])),
    ],
)
def test_names_that_are_known_count_before_cells(line: str, expected: tuple[str, list[str]]) -> None:
    """A delimiter inside a name does not decide; where no name is known, the most cells do."""
    assert header(f"{line}\n".encode()) == expected


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t\n"])
def test_a_file_without_any_cell_is_empty(content: bytes) -> None:
    """There is no header to find."""
    with pytest.raises(ImportFileError, match="^the file is empty$"):
        header(content)


def test_a_header_that_is_no_csv_is_named_by_its_line() -> None:
    """A quote that is never closed, under any delimiter."""
    with pytest.raises(ImportFileError, match="^line 2, which should be the header, is not well-formed CSV"):
        header(b'\n"patient_id\nPT-1\n')
