"""Where statements on encrypted tables go on to other servers, no key is sent, and no rotation begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from tests.conftest import plain
from tests.safety.conftest import ROLES, Deployment, use
from voiceassist_db import create_engine
from voiceassist_db.checking import Verdict, check
from voiceassist_db.errors import RotationError, UnsafeConnectionError
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KeySet
from voiceassist_db.models import REGISTRY_ROWS
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key

CITUS = """
    CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass NOT NULL, partmethod "char" NOT NULL, partkey text,
        colocationid integer NOT NULL DEFAULT 0, repmodel "char" NOT NULL DEFAULT 'c', autoconverted boolean NOT NULL DEFAULT false);
    GRANT SELECT ON pg_catalog.pg_dist_partition TO PUBLIC
"""
"""The extension's own catalogue table, as its version 13.2 creates it. A stand-in: Citus itself is not in Debian or on PyPI."""


class NoStore:
    """A key store that nobody may ask."""

    def fetch(self) -> KeySet:
        """Fail."""
        raise AssertionError("the key store was asked")

    def create(self, keys: KeySet) -> None:
        """Fail."""
        self.fetch()

    def replace(self, old: KeySet, new: KeySet) -> None:
        """Fail."""
        self.fetch()


@pytest.fixture
def citus(deployment: Deployment) -> Iterator[Callable[[str], None]]:
    """A database that looks as if it had Citus; gives a function that lists a table as distributed."""
    with psycopg.connect(plain(deployment.server.url()), autocommit=True) as superuser:
        superuser.execute("SET allow_system_table_mods = on")
        superuser.execute(CITUS)

        def distribute(table: str) -> None:
            insert = "INSERT INTO pg_dist_partition (logicalrelid, partmethod) VALUES (%s::regclass, 'h')"
            superuser.execute(insert, [table])

        yield distribute
        superuser.execute("DROP TABLE pg_catalog.pg_dist_partition")


def subjects(engine: Engine) -> dict[str, Verdict]:
    """Return what check says of each subject."""
    with engine.connect() as connection:
        return {each.subject: each.verdict for each in check(connection)}


@pytest.mark.parametrize(
    "table",
    ["patient_data", "clinical_notes", *(row.__tablename__ for row in REGISTRY_ROWS)],
)
def test_a_distributed_table_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine], citus: Callable[[str], None], table: str
) -> None:
    """Encrypted tables and the registry: no key is sent, check names the table, and the error says what undoes it."""
    citus(table)
    engine = engine_of()
    with pytest.raises(UnsafeConnectionError, match=f"table public.{table}: is distributed by Citus") as refused:
        use(engine, deployment)
    assert f"SELECT undistribute_table('public.{table}');" in str(refused.value)
    assert subjects(engine)[f"table public.{table}"] is Verdict.UNSAFE


@pytest.mark.parametrize("work", [plan, rotate, rotate_index_key, retire])
@pytest.mark.parametrize("allow_unsafe", [False, True])
def test_no_rotation_touches_the_key_store(
    deployment: Deployment, citus: Callable[[str], None], work: Callable[..., object], *, allow_unsafe: bool
) -> None:
    """It is refused before, by name, whatever else is allowed."""
    citus("patient_data")
    rotator = create_engine(deployment.url(ROLES.rotator), allow_unsafe=allow_unsafe)
    with pytest.raises(RotationError, match=r"Citus is not supported. table public.patient_data"):
        work(rotator, KeyringSource(NoStore()))
    rotator.dispose()


def test_other_tables_may_be_distributed(
    deployment: Deployment, engine_of: Callable[..., Engine], citus: Callable[[str], None]
) -> None:
    """Citus may be there, with tables that hold nothing of ours."""
    deployment.admin.execute("CREATE TABLE visits_per_day (day date, visits int)")
    try:
        citus("visits_per_day")
        use(engine_of(), deployment)
        assert subjects(engine_of())["search path"] is Verdict.OK
    finally:
        deployment.admin.execute("DROP TABLE visits_per_day")


@pytest.mark.parametrize("work", [plan, rotate, rotate_index_key])
def test_no_rotation_begins_over_a_connection_that_may_not_send_keys(
    deployment: Deployment, work: Callable[..., object]
) -> None:
    """The key store would get a key that no row could be written under."""
    deployment.admin.execute(f"ALTER ROLE {ROLES.rotator} SET plan_cache_mode = auto")
    rotator = create_engine(deployment.url(ROLES.rotator))
    try:
        with pytest.raises(UnsafeConnectionError, match="plan_cache_mode: is auto"):
            work(rotator, KeyringSource(NoStore()))
    finally:
        rotator.dispose()
        deployment.admin.execute(f"ALTER ROLE {ROLES.rotator} SET plan_cache_mode = force_generic_plan")


def test_a_foreign_table_with_encrypted_columns_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine]
) -> None:
    """Its wrapper may send parameters on, over a connection that nobody checked; one without such columns is no obstacle."""
    admin = deployment.admin
    admin.execute("CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    try:
        admin.execute("CREATE FOREIGN TABLE visits (day date) SERVER far")
        use(engine_of(), deployment)
        admin.execute("CREATE FOREIGN TABLE far_notes (id uuid, note_encrypted bytea) SERVER far")
        with pytest.raises(UnsafeConnectionError, match="table public.far_notes: is a foreign table"):
            use(engine_of(), deployment)
        assert subjects(engine_of())["table public.far_notes"] is Verdict.UNSAFE
        admin.execute("DROP FOREIGN TABLE far_notes")
        admin.execute(
            "CREATE TABLE parted (id uuid, note bytea) PARTITION BY HASH (id); CREATE FOREIGN TABLE far_part PARTITION OF parted "
            "FOR VALUES WITH (MODULUS 1, REMAINDER 0) SERVER far; COMMENT ON COLUMN far_part.note IS 'encrypted parted.note as text'"
        )
        with pytest.raises(UnsafeConnectionError, match="table public.far_part: is a foreign table"):
            use(engine_of(), deployment)
        admin.execute("DROP TABLE parted")
    finally:
        admin.execute("DROP EXTENSION postgres_fdw CASCADE")
