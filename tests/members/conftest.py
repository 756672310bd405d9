"""Three databases on one secret: patients that must be readable at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import URL, Engine, text

from tests.conftest import drop
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KeyProvider
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.verification import verify

PATIENTS = 3


@dataclass
class Clinic:
    """A database of the fleet."""

    number: int
    url: URL
    engine: Engine
    provider: KeyProvider

    @property
    def keys(self) -> KeyringSource:
        """The keys, as a process that starts now finds them."""
        return KeyringSource(self.provider)

    @property
    def name(self) -> str:
        """What it is called in the key store."""
        return f"{self.url.database} on {self.url.host}:{self.url.port}"

    def fill(self) -> None:
        """Add patients, whom one search finds."""
        with Database(self.engine, self.provider).transaction() as tx:
            tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=self._ssn(n)) for n in range(PATIENTS))

    def _ssn(self, number: int) -> str:
        return f"9{self.number:07d}{number}"

    def assert_readable(self) -> None:
        """Assert that a process that starts now reads and finds every patient."""
        with Database(self.engine, self.provider).transaction() as tx:
            for number in range(PATIENTS):
                assert tx.patients.get(f"PT-{number}").ssn == self._ssn(number)
                assert [each.patient_id for each in tx.patients.find_by_ssn(self._ssn(number))] == [f"PT-{number}"]

    def end_leases(self) -> None:
        """Let the time of a dead process's lease pass."""
        with self.engine.begin() as connection:
            connection.execute(
                text("UPDATE key_rotations SET lease_until = clock_timestamp() WHERE lease_until IS NOT NULL")
            )

    def assert_verified(self) -> None:
        """Assert that `verify` finds nothing wrong."""
        assert [0, 0] == [each.failed for each in verify(self.engine, self.keys)]


NewClinic = Callable[..., Clinic]


@pytest.fixture
def new_clinic(
    new_database: Callable[[str | None], URL],
    server_url: URL,
    template: str,
    new_provider: Callable[..., VaultKeyProvider],
) -> Iterator[NewClinic]:
    """A function that makes a migrated database for the test's secret; its keys are registered unless told otherwise."""
    made: list[Clinic] = []

    def make(*, join: bool = True, registers: bool = True) -> Clinic:
        url = new_database(template)
        clinic = Clinic(len(made), url, create_engine(url), new_provider())
        made.append(clinic)
        if registers:
            with clinic.engine.begin() as connection:
                initialise_keys(clinic.provider, connection, join=join)
            clinic.fill()
        return clinic

    yield make
    for clinic in made:
        clinic.engine.dispose()
        drop(clinic.url, server_url)


@pytest.fixture
def fleet(new_clinic: NewClinic) -> list[Clinic]:
    """Three databases whose keys are those of one secret."""
    return [new_clinic() for _ in range(3)]


@pytest.fixture
def secret(new_provider: Callable[..., VaultKeyProvider]) -> VaultKeyProvider:
    """The secret that they share."""
    return new_provider()
