"""A table that got encrypted columns in place stays as large as it is, rotation after rotation."""

from __future__ import annotations

from typing import Final

import pytest
from sqlalchemy import text

from tests.repositories.test_in_place import OldBase, PersonSecrets, add_columns
from tests.test_alembic_plugin import PLUGINS
from voiceassist_db import Database
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import gaps
from voiceassist_db.rotation import retire, rotate

pytestmark = pytest.mark.wide

ROWS: Final = 4000
SHARE: Final = 2
"""One row in so many gets values."""


def vacuum(database: Database, *, full: bool = False) -> None:
    """Do what autovacuum does, which is off here; or rewrite the table."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM {'FULL' if full else ''} persons"))


@pytest.mark.parametrize("is_rewritten", [False, True], ids=["filled", "rewritten"])
def test_rotations_of_a_table_in_place_are_hot(database: Database, is_rewritten: bool) -> None:
    """Its pages were full when the columns came; rows without values are not touched."""
    OldBase.metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE persons SET (autovacuum_enabled = off)"))
        connection.execute(
            text(
                f"INSERT INTO persons (phone, joined_at) SELECT 'a phone number', now() FROM generate_series(1, {ROWS})"
            )
        )
        add_columns(connection, autogenerate_plugins=PLUGINS)
        assert [gap for each in encrypted_tables(connection) for gap in gaps(connection, each)] == []
    with database.transaction() as tx:
        for n in range(1, ROWS + 1, SHARE):
            tx.repository(PersonSecrets).update(n, ssn=f"9{n:08d}", note=f"a note of some length, {n}")
    vacuum(database, full=is_rewritten)
    for _ in range(3):
        report = rotate(database.engine, database.keys)
        assert (report.done, report.rows) == (True, ROWS // SHARE)
        assert report.hot_ratio is not None
        assert report.hot_ratio >= 0.95
        assert report.table_growth <= 1.03
        assert report.index_growth <= 1.03
        retire(database.engine, database.keys, grace_days=0)
        vacuum(database)
