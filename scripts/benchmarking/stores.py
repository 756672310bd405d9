"""Patients by our own repositories, and by psycopg alone with the same SQL, on one and the same connection.

A server process on the other core answers a third slower or faster than its neighbour, and which one it is changes from run to
run: so both share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from voiceassist_db import Database, Patient, Repositories
from voiceassist_db.keyring import Keyring
from voiceassist_db.pgcrypto.expressions import SLOTS, parameters
from voiceassist_db.repositories import PatientRepository
from voiceassist_db.repositories.freshness import CURRENT, written_with
from voiceassist_db.repositories.queries import PAGE_ROWS

STATEMENTS: Final = PatientRepository._statements
"""The same SQL is the point of the comparison."""

FIELDS: Final = tuple(STATEMENTS.table.fields.values())
_PATIENT_ID: Final = STATEMENTS.parameters.where("patient_id")

CHANGED: Final = ("name", "address")
"""The fields that an update changes: one that is searched by, and one that is not."""


def keyring_of(database: Database) -> Keyring:
    """Return the keyring that the repositories use."""
    with database.engine.connect() as connection:
        return database.keys.keyring(connection)


def exposed(keyring: Keyring) -> dict[str, Any]:
    """Return the versions and keys of a statement in their plainest form, as psycopg's own user would send them."""
    values = parameters(keyring, STATEMENTS.table, FIELDS)
    return {name: value.expose().decode() if name == "keys" else value for name, value in values.items()}


def driver_of(session: Session) -> psycopg.Connection[Any]:
    """Return psycopg's connection under a session's."""
    connection: Any = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


def truncate(database: Database) -> None:
    """Remove all patients."""
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE patient_data CASCADE"))


class OurStore:
    """Our repository, in a session."""

    name = "voiceassist-db"
    can_find = True

    def __init__(self, database: Database) -> None:
        self.session = Session(database.engine)
        self.tx: Repositories = database.using(self.session)

    def begin(self) -> None:
        """Begin a transaction."""
        self.session.execute(text("SELECT 1"))

    def rollback(self) -> None:
        """Undo it."""
        self.session.rollback()

    def commit(self) -> None:
        """Keep it."""
        self.session.commit()

    def add(self, patient: Patient) -> None:
        """Write a new patient."""
        self.tx.patients.add(patient)

    def get(self, patient: Patient) -> None:
        """Read a patient by ``patient_id``."""
        self.tx.patients.get(patient.patient_id)

    def find(self, patient: Patient) -> None:
        """Find a patient by medical record number."""
        assert patient.mrn is not None
        assert self.tx.patients.find_by_mrn(patient.mrn) is not None

    def update(self, patient: Patient) -> None:
        """Change a patient's name and address."""
        self.tx.patients.update(patient.patient_id, name=patient.name, address=patient.address)

    def add_many(self, patients: Sequence[Patient]) -> None:
        """Write many new patients."""
        assert self.tx.patients.add_many(patients) == len(patients)

    def page(self) -> int:
        """Read a thousand patients."""
        return len(self.tx.patients.page(limit=PAGE_ROWS))

    def close(self) -> None:
        """Give the connection back."""
        self.session.close()


class RawStore:
    """psycopg with the statements of our repository, and parameters that were made beforehand.

    Args:
        database: The database.
        ours: The store whose connection and transaction this one uses.
        patients: The patients whose parameters to make.
    """

    name = "psycopg, the same SQL"
    can_find = True

    def __init__(self, database: Database, ours: OurStore, patients: Sequence[Patient]) -> None:
        keyring = keyring_of(database)
        keys = exposed(keyring)
        rows = ours.tx.patients._rows
        schemes = dict.fromkeys(SLOTS, keyring.current.scheme)
        writes = keys | written_with(keyring, CURRENT)
        self._ours = ours
        self._raw = driver_of(ours.session)
        self._keys = keys
        self._insert = STATEMENTS.insert().sql
        self._get = STATEMENTS.get(FIELDS).sql
        self._find = STATEMENTS.find(("mrn_index",), FIELDS).sql
        self._update = STATEMENTS.update(frozenset(CHANGED), schemes).sql
        self._page = STATEMENTS.page(FIELDS, (), after=False).sql
        self._new = {each.patient_id: rows.new(each, keyring) | writes for each in patients}
        known = list(keyring.index_checks)
        self._wanted = {
            name: {
                STATEMENTS.parameters.where("mrn_index"): [values[STATEMENTS.parameters.token("mrn_index")]],
                "known": known,
                **keys,
            }
            for name, values in self._new.items()
        }
        self._changes = {
            each.patient_id: writes
            | rows.changed({name: getattr(each, name) for name in CHANGED}, keyring)
            | {_PATIENT_ID: each.patient_id}
            for each in patients
        }

    def begin(self) -> None:
        """Begin a transaction, on the connection that ours will take again."""
        self._ours.begin()
        self._raw = driver_of(self._ours.session)

    def rollback(self) -> None:
        """Undo it."""
        self._ours.rollback()

    def commit(self) -> None:
        """Keep it."""
        self._ours.commit()

    def add(self, patient: Patient) -> None:
        """Write a new patient."""
        assert self._raw.execute(self._insert, self._new[patient.patient_id]).rowcount == 1

    def get(self, patient: Patient) -> None:
        """Read a patient by ``patient_id``."""
        assert self._raw.execute(self._get, {**self._keys, _PATIENT_ID: patient.patient_id}).fetchone()

    def find(self, patient: Patient) -> None:
        """Find a patient by medical record number."""
        assert self._raw.execute(self._find, self._wanted[patient.patient_id]).fetchall()

    def update(self, patient: Patient) -> None:
        """Change a patient's name and address."""
        assert self._raw.execute(self._update, self._changes[patient.patient_id]).rowcount == 1

    def add_many(self, patients: Sequence[Patient]) -> None:
        """Write many new patients, by ``executemany``."""
        self._raw.cursor().executemany(self._insert, [self._new[each.patient_id] for each in patients])

    def page(self) -> int:
        """Read a thousand patients."""
        return len(self._raw.execute(self._page, {**self._keys, "limit": PAGE_ROWS}).fetchall())

    def close(self) -> None:
        """Do nothing: the connection is not its own."""
