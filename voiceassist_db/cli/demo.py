"""What ``voiceassist-db demo`` shows, step by step."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
from sqlalchemy import text

from voiceassist_db import config
from voiceassist_db.cli import verify_command
from voiceassist_db.cli.local import ROTATOR_URL, local_deployment
from voiceassist_db.cli.output import say
from voiceassist_db.cli.sample import sample_csv
from voiceassist_db.database import Database
from voiceassist_db.engine import create_engine
from voiceassist_db.importing import import_patients
from voiceassist_db.repositories import Patient
from voiceassist_db.rotation import Pace, Progress, rotate
from voiceassist_db.verification import verify

PATIENTS: Final = 5000
_SLOWLY: Final = Pace(max_rows_per_second=5000)
"""So that a reader has the time to meet rows of both key versions."""


def demonstrate() -> bool:
    """Show everything on servers of its own, and say whether every value was well at the end."""
    started = time.monotonic()
    with _step("Starting PostgreSQL and OpenBao, making roles, tables and keys"):
        deployment = local_deployment()
        environment = deployment.__enter__()
    try:
        with _connect(environment) as application, _connect(environment, ROTATOR_URL) as rotator:
            _import(application)
            _read(application)
            _search(application)
            _rotate(rotator, application)
            well = _verify(rotator)
    finally:
        deployment.__exit__(*sys.exc_info())
    say("")
    say(f"Done in {time.monotonic() - started:.0f} s; the servers are stopped and their data is gone.")
    return well


@contextmanager
def _step(title: str) -> Iterator[None]:
    say("")
    say(f"▸ {title}", bold=True)
    started = time.monotonic()
    yield
    say(f"  {time.monotonic() - started:.1f} s", dim=True)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise click.ClickException(f"the demo did not do what it says: {otherwise}")


def _connect(environment: dict[str, str], address: str = config.DATABASE_URL) -> Database:
    """Return a database as a process of its own would have it: with its role's connections and its own keyring."""
    url = config.database_url(environment | {config.DATABASE_URL: environment[address]})
    return Database(create_engine(url), config.key_provider(environment))


def _import(application: Database) -> None:
    with _step(f"Importing {PATIENTS:,} made-up patients from CSV"):
        report = import_patients(application, sample_csv(PATIENTS))
        say(f"  {report.imported:,} imported, {report.bad:,} broken lines")
        _require(report.imported == PATIENTS, "not every patient was imported")


def _read(application: Database) -> None:
    with _step("One patient, as the application sees it"), application.transaction() as tx:
        patient = tx.patients.get("PT-001")
        say(f"  tx.patients.get('PT-001').ssn  →  {patient.ssn!r}")
        say(f"  .name {patient.name!r}, .date_of_birth {patient.date_of_birth}, .address {patient.address}")
        say("  and when it is printed or logged:")
        for line in textwrap.wrap(repr(patient), 110, initial_indent="    ", subsequent_indent="    "):
            say(line)
    with _step("The same patient, as the table stores it"), application.engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT patient_id, key_version, ssn_encrypted, ssn_index, name_encrypted FROM patient_data "
                "WHERE patient_id OPERATOR(pg_catalog.=) 'PT-001'"
            )
        ).one()
        say(f"  patient_id {row.patient_id}, key_version {row.key_version}")
        for column in ("ssn_encrypted", "ssn_index", "name_encrypted"):
            value: bytes = getattr(row, column)
            say(f"  {column:<15} {len(value):>3} bytes  {value.hex()[:64]}…")


def _search(application: Database) -> None:
    with _step("Searching by SSN, without any SSN in the query"), application.transaction() as tx:
        wanted = tx.patients.get("PT-001", fields=["ssn"]).ssn or ""
        found = tx.patients.find_by_ssn(wanted.replace("-", " "))
        say(f"  tx.patients.find_by_ssn({wanted.replace('-', ' ')!r})  →  {[each.patient_id for each in found]}")
        _require({each.patient_id for each in found} == {"PT-001", "PT-007"}, "the search did not find both patients")


def _rotate(rotator: Database, application: Database) -> None:
    """Rotate in one process's name while another one, which was never restarted, goes on reading and writing."""
    seen: list[tuple[int, Patient]] = []

    def on_progress(now: Progress) -> None:
        if seen or not 0 < now.rows < now.total:
            return
        say(
            f"  {now.rows:,} of {now.total:,} rows are under the new key; meanwhile the application, never restarted, reads"
        )
        for version, patient_id in _first_and_last(application):
            with application.transaction() as tx:
                patient = tx.patients.get(patient_id)
            seen.append((version, patient))
            say(f"    {patient_id}, under key version {version}: ssn {patient.ssn!r}, name {patient.name!r}")

    with _step("Rotating the key: a new one in Vault, every row re-encrypted inside the database"):
        done = rotate(rotator.engine, rotator.keys, pace=_SLOWLY, on_progress=on_progress)
        say(
            f"  key version {done.from_version} → {done.to_version}: {done.rows:,} rows, {done.rows_per_second:,.0f}/s, "
            f"{done.remaining} remaining"
        )
        _require({version for version, _ in seen} == {1, 2}, "not both key versions were read on the way")
        _require(done.done and done.rows == PATIENTS, "not every row was rotated")


def _first_and_last(application: Database) -> list[tuple[int, str]]:
    with application.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT DISTINCT ON (key_version) key_version, patient_id FROM patient_data ORDER BY key_version DESC, id"
            )
        )
        return [(row.key_version, row.patient_id) for row in rows]


def _verify(rotator: Database) -> bool:
    with _step("Verifying every encrypted value"):
        reports = verify(rotator.engine, rotator.keys)
        verify_command.show(reports)
        return not any(each.failed for each in reports)
