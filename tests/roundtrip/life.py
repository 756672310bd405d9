"""The life of a database: adopted, written, changed, rotated, indexed anew, dumped and restored, with everything compared on the way."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import text

from tests.roundtrip.imported import import_file
from tests.roundtrip.oracle import BOUND
from tests.roundtrip.reading import check, check_stored
from tests.roundtrip.refusing import check_refusals
from tests.roundtrip.tables import Shape
from tests.roundtrip.trial import Trial
from tests.roundtrip.writing import create, fill, insert_bound, insert_directly, update
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.rotation import Pace, Progress, retire, rotate, rotate_index_key
from voiceassist_db.schema import allow_direct_format, require_bound_format

SETTINGS: Final[tuple[dict[str, str], ...]] = (
    {},
    {
        "DateStyle": "ISO, DMY",
        "TimeZone": "<+14>-14",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
        "array_nulls": "off",
        "transform_null_equals": "on",
        "work_mem": "64kB",
    },
    {
        "DateStyle": "ISO, MDY",
        "TimeZone": "<-12>+12",
        "IntervalStyle": "iso_8601",
        "quote_all_identifiers": "on",
        "enable_seqscan": "off",
        "enable_indexscan": "off",
        "enable_bitmapscan": "off",  # costs are beyond all bounds then, at which JIT would compile each statement
        "jit": "off",
        "default_transaction_isolation": "repeatable read",
        "lc_numeric": "C",
    },
    {
        "DateStyle": "ISO, YMD",
        "TimeZone": "<+0545>-5:45",
        "IntervalStyle": "postgres_verbose",
        "enable_hashjoin": "off",
        "enable_sort": "off",
        "enable_material": "off",
        "from_collapse_limit": "1",
        "default_toast_compression": "pglz",
        "xmlbinary": "hex",
        "synchronous_commit": "off",
        "row_security": "off",
    },
)
"""Settings of sessions that change how values are written, read or planned."""

WRITING: Final[tuple[dict[str, str], ...]] = (
    {"DateStyle": "SQL, DMY", "standard_conforming_strings": "off", "escape_string_warning": "off"},
    {"DateStyle": "German", "backslash_quote": "on"},
    {"DateStyle": "Postgres, MDY", "statement_timeout": "9min"},
)
"""What a transaction that writes sets besides. Under these styles psycopg reads no timestamps, so no record can be read that has some."""


STEPS: Final = (
    "adoption",
    "half a rotation",
    "direct to bound",
    "bound to bound",
    "the index key's rotation",
    "dump and restore",
)
"""What a database goes through."""


@dataclass(frozen=True)
class Size:
    """How much there is to compare.

    Attributes:
        shapes: The tables.
        rows: Rows by chance that each operation writes into a table.
        patients: Rows by chance that are imported.
        share: Which part of all rows is changed, and read one by one.
        compared: The steps after which everything is compared.
    """

    shapes: Sequence[Shape]
    rows: int = 2
    patients: int = 10
    share: float = 0.1
    compared: Sequence[str] = STEPS


def live(trial: Trial, size: Size, settings: dict[str, str], copied: Callable[[Trial], None]) -> None:
    """Let a database whose version 1 is of scheme ``direct`` go through everything, and compare everything after each step.

    Args:
        trial: The trial.
        size: How much to write and compare.
        settings: What every session of the database, and every transaction, has set.
        copied: Dumps the database and goes on with the restored copy.
    """

    def compare(after: str) -> None:
        if after in size.compared:
            check(trial, after, size.share)
        trial.progress(after)

    set_for_database(trial, settings)
    local = trial.chance.choice(WRITING)
    _adopt(trial, size, local)
    compare("adoption")
    with trial.under(local):
        update(trial, size.share)
        check_refusals(trial)
    rotate_in_part(trial)
    compare("half a rotation")
    with trial.under(local):
        update(trial, size.share)
    rotate_fully(trial, 2)
    compare("direct to bound")
    fill(trial, size.rows)
    insert_bound(trial, size.rows, 2)
    check_stored(trial, "writing bound")
    rotate_fully(trial, 3)
    update(trial, size.share)
    compare("bound to bound")
    rotate_index(trial)
    compare("the index key's rotation")
    copied(trial)
    compare("dump and restore")


def _adopt(trial: Trial, size: Size, local: dict[str, str]) -> None:
    """Create the tables, and fill them by every operation that writes rows."""
    create(trial, size.shapes)
    with trial.database.engine.begin() as connection:
        allow_direct_format(connection)
    insert_directly(trial, size.rows)
    with trial.under(local):
        fill(trial, size.rows)
    import_file(trial, size.patients)


def set_for_database(trial: Trial, settings: dict[str, str]) -> None:
    """Set what every new session has, and what every transaction of the trial sets again."""
    with trial.database.engine.begin() as connection:
        for name, value in settings.items():
            command = "SELECT format('ALTER DATABASE %I SET %I = %L', current_database(), CAST(:name AS text), CAST(:value AS text))"
            connection.exec_driver_sql(
                connection.scalar(text(command), {"name": name, "value": value}).replace("%", "%%")
            )
    trial.settings = {name: value for name, value in settings.items() if name != "default_transaction_isolation"}
    trial.forget_connections()


def rotate_in_part(trial: Trial) -> None:
    """Begin a rotation to version 2 and stop after its first batches, so that rows are under both versions."""
    stop = threading.Event()

    def end_soon(now: Progress) -> None:
        if now.rows:
            stop.set()

    report = rotate(
        trial.database.engine, trial.database.keys, pace=Pace(target_batch_s=0.001), stop=stop, on_progress=end_soon
    )
    assert not report.done, "the rotation ended before it could be stopped"
    trial.schemes = {1: trial.schemes[1], 2: BOUND}


def rotate_fully(trial: Trial, new: int) -> None:
    """Rotate to a version, or finish that rotation, and retire the older one."""
    engine, keys = trial.database.engine, trial.database.keys
    report = rotate(engine, keys)
    assert (report.done, report.quarantined, report.to_version) == (True, 0, new), f"seed {trial.seed}: {report}"
    assert retire(engine, keys, grace_days=0).floor == new, (
        f"seed {trial.seed}: the key of version {new - 1} is still there"
    )
    with engine.begin() as connection:
        require_bound_format(connection)
    trial.schemes = {new: BOUND}


def rotate_index(trial: Trial) -> None:
    """Rotate the index key, which gives a token to every row that has none."""
    report = rotate_index_key(trial.database.engine, trial.database.keys)
    assert report.done, f"seed {trial.seed}: {report}"
    for row in (row for held in trial.held for row in held.held.values()):
        row.without_token.clear()


def dump(dsn: str, file: Path) -> None:
    """Dump a database with the server's own pg_dump."""
    _run("pg_dump", "--format=custom", "--no-owner", f"--file={file}", f"--dbname={dsn}")


def restore(dsn: str, file: Path) -> None:
    """Restore a dump into an empty database."""
    _run("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={dsn}", str(file))


def _run(program: str, *arguments: str) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    command = [str(find_postgres().directory / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, f"{program}: {done.stderr}"
