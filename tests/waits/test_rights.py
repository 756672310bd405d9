"""A role without rights stops no rotation; row-level security is found before a key is made, and provision and check agree about it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cli.conftest import Run
from tests.waits.conftest import ROLES, ROWS, Spoilt, changed
from voiceassist_db import Database, create_engine
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.errors import RotationError, SchemaNotMigratedError
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.provisioning import provision
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

At = Callable[[str], Database]
Env = Callable[[str], dict[str, str]]

THEIRS = f"""
    CREATE SCHEMA theirs AUTHORIZATION {ROLES.auditor};
    CREATE TABLE theirs.odd (id int, blob_encrypted bytea); ALTER TABLE theirs.odd OWNER TO {ROLES.auditor};
    CREATE TABLE theirs.broken (secret_encrypted bytea); ALTER TABLE theirs.broken OWNER TO {ROLES.auditor};
    COMMENT ON COLUMN theirs.broken.secret_encrypted IS 'encrypted theirs.secret as nonsense'
"""


def reprovisioned(spoilt: Spoilt, clinic: str) -> list[str]:
    """Provision the database again, as after any change."""
    engine = create_engine(spoilt.server.url(clinic))
    with engine.begin() as connection:
        made = provision(connection, ROLES)
    engine.dispose()
    return made


def test_tables_of_a_role_without_rights_are_listed_and_skipped(
    spoilt: Spoilt, clinic: str, at: At, env: Env, run: Run
) -> None:
    """Rotation, retirement, status, verify, check and provision do their work, and say what they leave alone and whose it is."""
    with changed(spoilt, clinic, THEIRS, "DROP SCHEMA theirs CASCADE"):
        reprovisioned(spoilt, clinic)
        done = run(env=env(ROLES.rotator), command=rotate_command)
        assert done.code == 0, done
        for table in ("odd", "broken"):
            skipped = f"theirs.{table} belongs to {ROLES.auditor}, who may not create schemas"
            assert f"skipped: {skipped}" in done.stderr
            assert f"skipped: {skipped}" in run("verify", env=env(ROLES.rotator)).stderr
            gaps = run("status", "--json", env=env(ROLES.auditor)).json["gaps"]
            assert f"theirs.{table}" in {each["table"] for each in gaps}
        assert f"theirs.odd: belongs to {ROLES.auditor}" in run("check", env=env(ROLES.app)).stdout
        owner = at(ROLES.owner)
        assert retire(owner.engine, owner.keys, grace_days=0).version == 1


def test_rows_of_a_skipped_table_keep_their_key(spoilt: Spoilt, clinic: str, at: At) -> None:
    """What may be a team's data is skipped, and yet its key is not thrown away; the message has the statement that decides."""
    rotator, owner = at(ROLES.rotator), at(ROLES.owner)
    mine = f"""
        CREATE TABLE others (id int PRIMARY KEY, key_version int, x_encrypted bytea); ALTER TABLE others OWNER TO {ROLES.app};
        GRANT SELECT ON others TO {ROLES.owner}; INSERT INTO others VALUES (1, 1)
    """
    with changed(spoilt, clinic, mine, "DROP TABLE others"):
        assert rotate(rotator.engine, rotator.keys).done
        with pytest.raises(
            RotationError, match=r"1 rows of public.others are under key version 1.*OWNER TO.*If not, drop it"
        ):
            retire(owner.engine, owner.keys, grace_days=0)
        assert sorted(owner.keys.provider.fetch().versions()) == [1, 2]


HIDDEN = {
    "by its policy": """
        GRANT USAGE ON SCHEMA theirs TO PUBLIC; GRANT SELECT ON theirs.odd TO PUBLIC;
        ALTER TABLE theirs.odd ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON theirs.odd USING (id / 0 = 1)
    """,
    "by its schema": "GRANT SELECT ON theirs.odd TO PUBLIC",
}


@pytest.mark.parametrize("how", HIDDEN)
def test_rows_of_a_skipped_table_that_cannot_be_counted(spoilt: Spoilt, clinic: str, at: At, how: str) -> None:
    """A role without rights grants what it likes: no grant turns into an error of the owner's rights, and nobody is to bypass a policy."""
    rotator, owner = at(ROLES.rotator), at(ROLES.owner)
    versions = "ALTER TABLE theirs.odd ADD key_version int; INSERT INTO theirs.odd (key_version) VALUES (1)"
    with changed(spoilt, clinic, f"{THEIRS}; {versions}; {HIDDEN[how]}", "DROP SCHEMA theirs CASCADE"):
        assert rotate(rotator.engine, rotator.keys).done
        if how == "by its policy":
            hides = r"^theirs.odd has row-level security, so that its rows under key version 1 cannot be counted.*If not, drop it"
            with pytest.raises(RotationError, match=hides):
                retire(owner.engine, owner.keys, grace_days=0)
            with spoilt.admin(clinic) as admin:
                admin.execute("DROP TABLE theirs.odd")
        assert retire(owner.engine, owner.keys, grace_days=0).version == 1


def test_a_restored_database_without_its_grant_is_not_skipped(spoilt: Spoilt, clinic: str, at: At) -> None:
    """The grant of CREATE is the database's and no part of a dump: to skip the registry owner's tables would lose them."""
    revoke = f"REVOKE CREATE ON DATABASE {clinic} FROM {ROLES.owner}"
    with (
        changed(spoilt, clinic, revoke, f"GRANT CREATE ON DATABASE {clinic} TO {ROLES.owner}"),
        at(ROLES.rotator).engine.connect() as connection,
        pytest.raises(SchemaNotMigratedError, match="GRANT CREATE ON DATABASE"),
    ):
        encrypted_tables(connection)


SECURE = "ALTER TABLE patient_data ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON patient_data USING (patient_id LIKE 'PT-1%')"
FORCED = f"{SECURE}; ALTER TABLE patient_data FORCE ROW LEVEL SECURITY"
OPEN = (
    "DROP POLICY own ON patient_data; ALTER TABLE patient_data DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"
)


def test_row_level_security_is_found_first(
    spoilt: Spoilt, clinic: str, at: At, env: Env, run: Run, keys: VaultKeyProvider
) -> None:
    """No key is made for a run that could not see all rows; what provision does then is what check asks for, and it is enough."""
    rotator, owner = at(ROLES.rotator), at(ROLES.owner)
    with changed(spoilt, clinic, FORCED, OPEN):
        for work in (plan, rotate, rotate_index_key):
            with pytest.raises(
                RotationError, match=f"row-level security of patient_data.*ALTER ROLE {ROLES.rotator} BYPASSRLS"
            ):
                work(rotator.engine, rotator.keys)
        with pytest.raises(RotationError, match=f"ALTER ROLE {ROLES.owner} BYPASSRLS"):
            retire(owner.engine, owner.keys, grace_days=0)
        assert list(keys.fetch().versions()) == [1]
        message = run("verify", env=env(ROLES.rotator)).error
        assert "BYPASSRLS" in message
        assert "No grant helps" in message
        found = [
            line
            for line in run("check", env=env(ROLES.rotator)).stdout.splitlines()
            if "row-level" in line or "BYPASS" in line or "role" in line
        ]
        assert f'        ALTER ROLE "{ROLES.rotator}" BYPASSRLS;' in found
        made = reprovisioned(spoilt, clinic)
        assert [each.split()[2].strip('"') for each in made if each.endswith(" BYPASSRLS")] == [
            ROLES.owner,
            ROLES.rotator,
        ]
        checked = run("check", env=env(ROLES.rotator)).stdout
        assert "ok      row-level security: hides no row" in checked
        assert "has BYPASSRLS" not in checked
        assert rotate(rotator.engine, rotator.keys).done
        assert sum(each.rows for each in verify(rotator.engine, rotator.keys)) == ROWS
        assert retire(owner.engine, owner.keys, grace_days=0).version == 1
    reprovisioned(spoilt, clinic)
    with changed(spoilt, clinic, SECURE, OPEN):
        made = reprovisioned(spoilt, clinic)
        assert [each.split()[2].strip('"') for each in made if each.endswith(" BYPASSRLS")] == [ROLES.rotator]
    assert not [each for each in reprovisioned(spoilt, clinic) if each.endswith(" BYPASSRLS")]


def test_a_detached_partition_is_led_back_to_its_table(spoilt: Spoilt, clinic: str, at: At) -> None:
    """Its values are bound to the table that it was part of, where its comments are: the message names it and its statement helps."""
    parts = f"""
        CREATE TABLE visits (id int, day date, key_version int, note_encrypted bytea, note_index bytea, PRIMARY KEY (id, day))
            PARTITION BY RANGE (day);
        COMMENT ON COLUMN visits.note_encrypted IS 'encrypted visits.note as text';
        COMMENT ON COLUMN visits.note_index IS 'blind index of visits.note by exact';
        CREATE TABLE visits_old PARTITION OF visits FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
        ALTER TABLE visits OWNER TO {ROLES.owner}; ALTER TABLE visits_old OWNER TO {ROLES.owner};
        ALTER TABLE visits DETACH PARTITION visits_old
    """
    owner = at(ROLES.owner)
    with changed(spoilt, clinic, parts, "DROP TABLE visits"):
        with owner.engine.connect() as connection, pytest.raises(SchemaNotMigratedError) as caught:
            encrypted_tables(connection)
        found = re.search(r"ALTER TABLE visits ATTACH PARTITION visits_old FOR VALUES", str(caught.value))
        assert found is not None
        for column, declares in (
            ("note_encrypted", "encrypted visits.note as text in a detached partition"),
            ("note_index", "blind index of visits.note by exact"),
        ):
            assert f"COMMENT ON COLUMN public.visits_old.{column} IS '{declares}';" in str(caught.value)
        with owner.engine.begin() as connection:
            connection.exec_driver_sql(f"{found[0]} FROM (MINVALUE) TO (MAXVALUE)")
        with owner.engine.connect() as connection:
            assert "visits" in {each.name for each in encrypted_tables(connection)}
