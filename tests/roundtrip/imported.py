"""The import: a CSV file that Python's own module writes, of patients who must come in, and of lines that must be refused."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, timedelta
from typing import Any, Final

from tests.roundtrip import oracle
from tests.roundtrip.searched import unsearchable
from tests.roundtrip.tables import Held, Row
from tests.roundtrip.trial import Trial
from tests.roundtrip.values import DEPTH, DIGITS, NOTHING, OBJECTS, Sample, by_chance, nested
from tests.roundtrip.writing import hold
from voiceassist_db.importing import import_patients

EARLIEST: Final = date(1850, 1, 1)
BIRTHS: Final = (
    EARLIEST,
    date(1900, 2, 28),
    date(2000, 2, 29),
    date(1969, 12, 31),
    date(2001, 2, 3),
    date(2012, 12, 12),
)
ADDRESSES: Final = (
    *(each for values in OBJECTS.values() for each in values if isinstance(each, dict) and "\x00" not in each),
    *({"a": values} for values in OBJECTS["floats"] + OBJECTS["integers"] + OBJECTS["true or 1"]),
    *({"a": nested(DEPTH - 1)}, {"a": 10**DIGITS - 1}, {"a": "1" * 1000, "\u2028": "\x01\x7f"}),
)
REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "date_of_birth": (
        *("1849-12-31", "0001-01-01", "2999-01-01", "infinity", "2026-02-30", "20260102", "2026-W01-1", "02.01.2026"),
        *("2026-01-02T00:00:00", "2026-01-02 BC", "12026-01-02"),
    ),
    "address": (
        *("[1]", '"a"', "1", "null", "{", "{'a': 1}", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1} x'),
        *('{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": "\\ud800"}'),
        *(json.dumps({"a": nested(levels)}) for levels in (DEPTH, 400)),
        *('{"a": ' + f"{10**DIGITS}" + "}", '{"a": ' * 100_000 + "1" + "}" * 100_000),
    ),
    **{
        name: tuple(
            each for _, each in unsearchable(name) if isinstance(each, str) and each.strip() and each.isprintable()
        )
        for name in ("ssn", "mrn", "name")
    },
}
"""Cells that no field can have."""


def import_file(trial: Trial, rows: int) -> None:
    """Import patients, and hold them beside the other tables; a file with broken lines imports nothing."""
    held = Held.of_patients(trial.chance)
    patients = [held.new(_importable(trial, trial.pool.cells(held.fields), at)) for at in range(rows + len(ADDRESSES))]
    report = import_patients(trial.database, _file(trial, held, [_line(row) for row in patients]))
    assert (report.imported, report.bad) == (len(patients), 0), f"seed {trial.seed}: {report.bad_lines[:5]}"
    with oracle.connect(trial.dsn) as connection:
        ids = dict(connection.execute("SELECT patient_id, id FROM patient_data").fetchall())
        for row in patients:
            row.key = (ids[row.code],)
        hold(trial, "import", held, patients)
        trial.held.append(held)
        before = connection.execute(oracle.digest(held.shape.name)).fetchone()
        _refuse_file(trial, held)
        assert before == connection.execute(oracle.digest(held.shape.name)).fetchone(), "a broken file was imported"


def _refuse_file(trial: Trial, held: Held) -> None:
    """Import a file that has a sound line between lines with one broken cell each."""
    lines, broken = [], []
    for name, cells in REFUSED.items():
        for cell in cells:
            lines += [_line(_sound(trial, held)), _line(_sound(trial, held)) | {name: cell}]
            broken.append((len(lines) + 1, name, cell))  # the header is line 1
            trial.counts["refused import", f"{held.fields[name].kind.value}: {name}"] += 1
    found: list[int] = []
    report = import_patients(trial.database, _file(trial, held, lines), on_bad=lambda bad: found.append(bad.line))
    missed = [(name, cell[:100]) for line, name, cell in broken if line not in found]
    assert not missed, f"seed {trial.seed}: the import took {missed}"
    assert (report.imported, len(found)) == (0, len(broken)), f"seed {trial.seed}: sound lines were refused"


def _sound(trial: Trial, held: Held) -> Row:
    """Return a patient whose record is one line of the file."""
    while True:
        row = held.new(_importable(trial, trial.pool.cells(held.fields), None))
        if not any(ending in cell for cell in _line(row).values() for ending in "\r\n"):
            return row


def _importable(trial: Trial, cells: dict[str, Sample], position: int | None) -> dict[str, Sample]:
    """Return the samples of a patient, with a birth and an address as a file may have them: special ones at first."""
    if position is not None and position < len(ADDRESSES):
        birth, address = BIRTHS[position % len(BIRTHS)], ADDRESSES[position]
        return cells | {
            "date_of_birth": Sample("special", birth, birth, is_special=True),
            "address": Sample("special", address, address, is_special=True),
        }
    birth = EARLIEST + timedelta(days=trial.chance.randrange(64_000))
    address = {f"part {at}": by_chance("json", trial.chance).value for at in range(trial.chance.randrange(4))}
    return cells | {
        "date_of_birth": trial.chance.choice((NOTHING, *[Sample("a birth", birth, birth)] * 9)),
        "address": trial.chance.choice((NOTHING, *[Sample("an address", address, address)] * 9)),
    }


def _line(row: Row) -> dict[str, str]:
    return {"patient_id": row.code} | {name: _cell(each.given) for name, each in row.cells.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _file(trial: Trial, held: Held, lines: list[dict[str, str]]) -> io.BytesIO:
    target = io.StringIO(newline="")
    dialect = trial.chance.choice((csv.excel, csv.unix_dialect))  # quotes where it must, and everywhere
    writer = csv.DictWriter(target, [held.code, *held.fields], dialect=dialect)
    writer.writeheader()
    writer.writerows(lines)
    return io.BytesIO(target.getvalue().encode())
