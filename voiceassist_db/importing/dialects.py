"""What kind of file this is: CSV with which delimiter, or something else that has a name.

Owns the recognition of other formats by their first bytes, and the choice of the delimiter. Knows no field of a patient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from voiceassist_db.errors import ImportFileError
from voiceassist_db.importing.rows import Row, RowReader

DELIMITERS: Final = ",;\t|"

_PIPED: Final = "FILE | voiceassist-db import -"
_FROM_EXCEL: Final = "save it as “CSV UTF-8 (Comma delimited)”"
_FHIR: Final = "export its patients as CSV with the columns patient_id, ssn, mrn, name, date_of_birth and address, or as Synthea's patients.csv"
_KINDS: Final = (
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", f"convert it: iconv -f UTF-32 -t UTF-8 {_PIPED}"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", f"{_FROM_EXCEL}, or convert it: iconv -f UTF-16 -t UTF-8 {_PIPED}"),
    (rb"(?:[^\x00]\x00){2}", "UTF-16", f"{_FROM_EXCEL}, or convert it: iconv -f UTF-16LE -t UTF-8 {_PIPED}"),
    (rb"(?:\x00[^\x00]){2}", "UTF-16", f"{_FROM_EXCEL}, or convert it: iconv -f UTF-16BE -t UTF-8 {_PIPED}"),
    (rb"\x1f\x8b", "compressed with gzip", f"decompress it: gunzip -c {_PIPED}"),
    (rb"BZh[1-9]", "compressed with bzip2", f"decompress it: bunzip2 -c {_PIPED}"),
    (rb"\xfd7zXZ\x00", "compressed with xz", f"decompress it: xz -dc {_PIPED}"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", f"decompress it: zstd -dc {_PIPED}"),
    (rb"PK\x03\x04", "a zip archive or an Excel workbook (.xlsx)", f"extract it, or {_FROM_EXCEL}"),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", _FROM_EXCEL),
    (rb"PAR1", "Parquet", "export it as CSV"),
    (rb"%PDF", "PDF", "export its source as CSV"),
    (rb"\s*[{\[].*\"resourceType\"", "JSON (FHIR)", _FHIR),
    (rb"\s*(?:\{|\[\s*[{\[\]])", "JSON", _FHIR),
    (rb"\s*<.*http://hl7\.org/fhir", "XML (FHIR)", _FHIR),
    (rb"\s*<", "XML or HTML", _FHIR),
    (rb"(?:MSH|FHS|BHS)\|", "an HL7 version 2 message", _FHIR),
)
HEAD_BYTES: Final = 1 << 16
"""Most bytes of the file that are searched, 64 KiB."""

_COMPILED: Final = [(re.compile(pattern, re.DOTALL), name, advice) for pattern, name, advice in _KINDS]


def first_row(reader: RowReader, known: Callable[[Sequence[str]], int]) -> Row:
    """Return the header of a file, and set the delimiter of its reader by it.

    Args:
        reader: The reader of a file of which nothing was read yet. The header is the row that it gives next.
        known: Says how many cells of a header are names of columns that are known.

    Raises:
        ImportFileError: The file is empty, is no text in UTF-8 that is divided into cells, or its header cannot be read.
    """
    _require_text(b"".join(reader.head())[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf"))
    rows = reader.first_row(DELIMITERS)
    if not rows:
        raise ImportFileError("the file is empty")
    readable = {delimiter: row for delimiter, row in rows.items() if not row.problem}
    if not readable:
        row = rows[","]
        raise ImportFileError(f"line {row.line}, which should be the header, {row.problem}")
    # Of equals the first: a comma. Most cells decide only where no name is known, so that the error names the columns.
    names = {delimiter: known(row.cells) for delimiter, row in readable.items()}
    counts = names if any(names.values()) else {delimiter: len(row.cells) for delimiter, row in readable.items()}
    reader.delimiter = max(counts, key=lambda each: counts[each])
    return readable[reader.delimiter]


def _require_text(head: bytes) -> None:
    for pattern, name, advice in _COMPILED:
        if pattern.match(head):
            raise ImportFileError(f"the file is {name}, not CSV in UTF-8: {advice}")
