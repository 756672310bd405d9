"""A role of its own can rotate, with the rights that the runbook names and no more; only the owner can retire."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.errors import DatabaseError
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import retire, rotate, rotate_index_key

GRANTS = """
    GRANT USAGE ON SCHEMA pgcrypto TO {role};
    GRANT SELECT, UPDATE ON patient_data, clinical_notes TO {role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON database_identity, encryption_keys, index_keys, key_rotations, key_rotation_failures TO {role}
"""


@pytest.fixture
def rotator(engine: Engine) -> Iterator[Engine]:
    """An engine whose role has the runbook's grants."""
    role, password = f"voiceassist_rotator_{secrets.token_hex(4)}", secrets.token_hex(16)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'"))
        for grant in GRANTS.format(role=role).split(";"):
            connection.execute(text(grant))
    made = create_engine(engine.url.set(username=role, password=password))
    yield made
    made.dispose()
    with engine.begin() as connection:
        for grant in GRANTS.format(role=role).split(";"):
            connection.execute(text(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM ")))
        connection.execute(text(f"DROP ROLE {role}"))


def test_a_rotator_rotates_both_keys_and_cannot_retire(
    rotator: Engine, database: Database, provider: VaultKeyProvider
) -> None:
    """Rotation needs no ownership. Retirement sets constraints, and says that it may not, with nothing changed."""
    patients = [Patient(patient_id=f"PT-{n:03d}", ssn=f"9{n:08d}") for n in range(300)]
    with database.transaction() as tx:
        tx.patients.add_many(patients)
    keys = Database(rotator, provider).keys
    report = rotate(rotator, keys)
    assert (report.rows, report.done) == (300, True)
    assert rotate_index_key(rotator, keys).done
    with pytest.raises(DatabaseError, match="may not do that to clinical_notes") as refused:
        retire(rotator, keys, grace_days=0)
    assert refused.value.sqlstate == "42501"
    assert list(provider.fetch().versions()) == [2, 1]
    assert retire(database.engine, keys, grace_days=0).version == 1
    with database.transaction() as tx:
        assert [each.ssn for each in patients] == [each.ssn for each in tx.patients.page()]
