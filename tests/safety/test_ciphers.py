"""Every provisioned role that sees ciphertext can count what is not under AES; the others say that they cannot."""

from __future__ import annotations

import pytest

from tests.safety.conftest import ROLES, Deployment
from voiceassist_db import create_engine
from voiceassist_db.checking import Line, Verdict, check
from voiceassist_db.models.packets import CVE

FORGET = "ALTER TABLE patient_data DROP CONSTRAINT patient_data_name_encrypted_format"
KEEP = (
    "DELETE FROM patient_data WHERE patient_id = 'weak'",
    "ALTER TABLE patient_data ADD CONSTRAINT patient_data_name_encrypted_format CHECK "
    r"(substring(name_encrypted from 1 for 6) = '\xc30c04090108' AND substring(name_encrypted from 15 for 1) = '\xd2')",
)
WEAK = (
    "INSERT INTO patient_data (id, patient_id, name_encrypted, key_version) SELECT gen_random_uuid(), 'weak', "
    "pgcrypto.pgp_sym_encrypt('Secret', 'key', 'cipher-algo=3des'), max(version) FROM encryption_keys"
)


def line_of(deployment: Deployment, role: str) -> Line:
    """Return what a role's check says of ciphers."""
    engine = create_engine(deployment.url(role))
    try:
        with engine.connect() as connection:
            (line,) = (each for each in check(connection) if each.subject == CVE)
    finally:
        engine.dispose()
    return line


@pytest.mark.parametrize("role", [ROLES.owner, ROLES.app, ROLES.rotator, ROLES.auditor])
def test_every_role_counts(deployment: Deployment, role: str) -> None:
    """Owner, application, rotator and auditor find the same value, and none where there is none."""
    assert "no stored value names another cipher than AES" in line_of(deployment, role).detail
    deployment.admin.execute(FORGET)
    try:
        deployment.admin.execute(WEAK)
        line = line_of(deployment, role)
    finally:
        for each in KEEP:
            deployment.admin.execute(each)
    assert line.verdict is Verdict.UNSAFE
    assert "public.patient_data.name has values of this kind: 1 (Triple-DES)" in line.detail


def test_a_role_without_rights_says_so(deployment: Deployment) -> None:
    """It may see the catalogue, and claims nothing of the values."""
    deployment.admin.execute("REVOKE SELECT (name_encrypted) ON patient_data FROM voiceassist_auditor")
    try:
        line = line_of(deployment, ROLES.auditor)
    finally:
        deployment.admin.execute("GRANT SELECT (name_encrypted) ON patient_data TO voiceassist_auditor")
    assert "this role may not read every value of public.patient_data" in line.detail
    assert "no stored value" not in line.detail
