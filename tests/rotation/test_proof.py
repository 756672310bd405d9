"""`verified` means that the proof read every row that the table has, whatever happened to the table while it read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from tests.rotation.shapes import Shape
from voiceassist_db import Database, Patient
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import DatabaseError
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.moments import Moment
from voiceassist_db.pgcrypto.codec import prefix
from voiceassist_db.rotation import Progress, RotationReport, rotate, work
from voiceassist_db.rotation.batches import Batches
from voiceassist_db.rotation.relations import Relation

ROWS = 600
DAMAGE = "set_byte({0}, 40, get_byte({0}, 40) # 1)"

PARTS = """
CREATE TABLE visits_2021 PARTITION OF visits FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE visits_2022 PARTITION OF visits FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
"""
VISITS = Shape(
    key={"visit": "bigint", "day": "date"},
    keys=[(n, date(2021, 1, 1) + timedelta(days=n)) for n in range(700)],
    options="PARTITION BY RANGE (day)",
    then=PARTS,
)

Meanwhile = Callable[[Connection], None]


@pytest.fixture
def filled(database: Database) -> Database:
    """Patients on several pages."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n:04d}", name=f"Zoë {n}") for n in range(ROWS))
    return database


@pytest.fixture
def rotated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Database, Meanwhile], tuple[RotationReport, int]]:
    """A function that rotates, does something once the proof has read the first page, and says how many rows it read."""
    monkeypatch.setattr(work, "PROOF_PAGES", 1)
    prove = Batches.prove

    def run(database: Database, meanwhile: Meanwhile) -> tuple[RotationReport, int]:
        seen: list[Progress] = []
        done: list[object] = []

        def proved(self: Batches, part: object) -> tuple[int, int]:
            found: tuple[int, int] = prove(self, part)  # type: ignore[arg-type]
            if not done:
                done.append(part)
                with database.engine.begin() as connection:
                    meanwhile(connection)
            return found

        monkeypatch.setattr(Batches, "prove", proved)
        report = rotate(database.engine, KeyringSource(database.keys.provider), on_progress=seen.append)
        assert done
        return report, [each.rows for each in seen if each.phase == "verifying"][-1]

    return run


def fill_visits(database: Database) -> None:
    """Make a partitioned table with rows."""
    with database.engine.begin() as connection:
        VISITS.create(connection)
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        VISITS.fill(connection, database.keys.keyring(connection), table)


def execute(connection: Connection, *statements: str) -> None:
    """Execute statements."""
    for each in statements:
        connection.execute(text(each))


def test_a_row_that_is_damaged_behind_the_proof_is_seen(
    filled: Database, rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]]
) -> None:
    """A row on a page that was read already is written again, and does not open: not verified."""
    damage = f"UPDATE patient_data SET name_encrypted = {DAMAGE.format('name_encrypted')} WHERE ctid < '(1,0)'"
    report, _ = rotated(filled, lambda connection: execute(connection, damage))
    assert (report.verified, report.done, report.remaining) == (False, False, 0)


def test_a_table_that_shrinks_and_grows_is_verified(
    filled: Database, rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]]
) -> None:
    """Rows that the application adds, changes and deletes behind the proof, and rows of an open transaction, accuse nobody."""
    other = filled.engine.connect()
    insert = text("INSERT INTO patient_data (id, patient_id, key_version) VALUES (gen_random_uuid(), :id, 2)")

    def meanwhile(connection: Connection) -> None:
        with filled.transaction() as tx:
            tx.patients.add_many(Patient(patient_id=f"NEW-{n:04d}", name="Zoë") for n in range(ROWS))
            tx.patients.update("PT-0000", name="Zoé")
            tx.patients.delete("PT-0001")
        other.execute(insert, {"id": "OPEN"})

    report, _ = rotated(filled, meanwhile)
    other.rollback()
    other.close()
    assert (report.verified, report.done) == (True, True)


def attached(connection: Connection, damaged: str | None) -> None:
    """Attach a partition to the visits, with one row under the current key, damaged or not."""
    copy = "CREATE TABLE visits_2023 AS SELECT * FROM visits ORDER BY day DESC LIMIT 1"
    attach = "ALTER TABLE visits ATTACH PARTITION visits_2023 FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')"
    rest = [
        "ALTER TABLE visits_2023 ALTER key_version SET NOT NULL",
        "ALTER TABLE visits_2023 ADD PRIMARY KEY (visit, day)",
    ]
    harm = [f"UPDATE visits_2023 SET {damaged}"] if damaged else []
    execute(connection, copy, "UPDATE visits_2023 SET day = '2023-06-01'", *harm, *rest, attach)


@pytest.mark.parametrize(
    ("damaged", "is_verified"),
    [
        # Its values are bound to another day, so that they are in the wrong place; without values there is nothing wrong.
        ("visit = visit", False),
        ("note_encrypted = NULL, scan_encrypted = NULL", True),
    ],
)
def test_a_partition_that_is_attached_is_read_too(
    database: Database,
    rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]],
    damaged: str,
    is_verified: bool,
) -> None:
    """Beside a dropped one, so that the numbers of rows alone would agree."""
    fill_visits(database)
    rows = []

    def meanwhile(connection: Connection) -> None:
        attached(connection, damaged)
        execute(connection, "DROP TABLE visits_2022")
        rows.append(connection.execute(text("SELECT count(*) FROM visits")).scalar_one())

    report, read = rotated(database, meanwhile)
    assert report.verified is is_verified
    assert report.remaining == 0
    assert not is_verified or read >= rows[0]


def test_a_partition_of_older_rows_that_comes_back_is_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that is detached when the proof lists what to read, and attached before its end, gets a round of its own."""
    fill_visits(database)
    relations_now = work.Work._relations_now
    read: list[set[str]] = []
    detach = "ALTER TABLE visits DETACH PARTITION visits_2022"
    attach = "ALTER TABLE visits ATTACH PARTITION visits_2022 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01')"

    def listed(self: work.Work) -> list[Relation]:
        with database.engine.begin() as connection:
            execute(connection, *([] if read else [detach]))
        found = relations_now(self)
        read.append({each.table.name for each in found})
        with database.engine.begin() as connection:
            execute(connection, *(["DROP TABLE visits_2021", attach] if len(read) == 1 else []))
        return found

    monkeypatch.setattr(work.Work, "_relations_now", listed)
    seen: list[Progress] = []
    report = rotate(database.engine, KeyringSource(database.keys.provider), on_progress=seen.append)
    assert report.verified
    assert "visits_2022" not in read[0]
    assert read[-1] == {"visits_2022"} | (read[0] & read[-1])
    with database.engine.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM visits")).scalar_one()
    assert [each.rows for each in seen if each.phase == "verifying"][-1] >= count > 300


def test_rows_that_move_to_pages_behind_the_proof_are_read(
    filled: Database, rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]]
) -> None:
    """VACUUM FULL in the midst: rows keep their transaction ids, and lie elsewhere."""
    with filled.engine.begin() as connection:
        execute(connection, "DELETE FROM patient_data WHERE ctid < '(5,0)' AND random() < 0.9")

    def meanwhile(connection: Connection) -> None:
        with filled.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            execute(other, "VACUUM FULL patient_data")

    report, read = rotated(filled, meanwhile)
    with filled.engine.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM patient_data")).scalar_one()
    assert report.verified
    assert read >= count


def test_rows_that_a_policy_hides_are_never_verified(
    filled: Database, rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]]
) -> None:
    """Row-level security that begins while the proof reads is an error, and not a proof of fewer rows."""
    policy = (
        "ALTER TABLE patient_data ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE patient_data FORCE ROW LEVEL SECURITY",
        "CREATE POLICY visible ON patient_data USING (patient_id < 'PT-0100')",
    )
    with pytest.raises(DatabaseError, match="42501"):
        rotated(filled, lambda connection: execute(connection, *policy))


@pytest.mark.usefixtures("old_ciphers")
def test_a_value_in_another_format_is_not_verified(
    filled: Database, rotated: Callable[[Database, Meanwhile], tuple[RotationReport, int]]
) -> None:
    """A Blowfish packet opens with any key on a server that has CVE-2026-14663: its format gives it away."""
    with filled.engine.begin() as connection:
        execute(connection, "ALTER TABLE patient_data DROP CONSTRAINT patient_data_name_encrypted_format")
        row = connection.execute(text("SELECT id FROM patient_data ORDER BY id LIMIT 1")).scalar_one()
    forged = text(
        "UPDATE patient_data SET name_encrypted = pgcrypto.pgp_sym_encrypt(:value, 'any key', 'cipher-algo=bf') WHERE id = :id"
    )
    value = prefix("patient_data.name", str(row)) + "somebody else"

    def meanwhile(connection: Connection) -> None:
        connection.execute(forged, {"value": value, "id": row})

    report, _ = rotated(filled, meanwhile)
    assert not report.verified


def test_a_moment_tells_older_rows_from_later_ones(engine: Engine) -> None:
    """Committed, running, later, of a subtransaction, rolled back, frozen: each row is on its side of the moment."""
    with engine.begin() as connection:
        execute(connection, "CREATE TABLE marks (mark text)", "INSERT INTO marks VALUES ('frozen')")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        execute(connection, "VACUUM FREEZE marks", "INSERT INTO marks VALUES ('committed')")
    running = engine.connect()
    execute(running, "INSERT INTO marks VALUES ('running')")
    with engine.begin() as connection:
        moment = Moment.now(connection)
    running.commit()
    running.close()
    with engine.begin() as connection:
        execute(
            connection, "INSERT INTO marks VALUES ('later')", "SAVEPOINT one", "INSERT INTO marks VALUES ('later too')"
        )
    with engine.connect() as connection:
        condition = moment.had_row().compile(compile_kwargs={"literal_binds": True})
        older = connection.execute(text(f"SELECT mark FROM marks WHERE {condition}")).scalars()
        assert set(older) == {"frozen", "committed"}


@pytest.mark.parametrize("first_later", [3, 10, 2**31, 2**32 - 2])
def test_a_moment_is_right_all_around_the_circle(engine: Engine, first_later: int) -> None:
    """Transaction ids wrap around: what is at most half a circle before is older."""
    moment = Moment(first_later, ((first_later - 2) % 2**32,))
    condition = str(moment.had_row().compile(compile_kwargs={"literal_binds": True}))
    given = "SELECT CAST(((:x % 4294967296) + 4294967296) % 4294967296 AS text) AS xmin"
    found = {}
    with engine.connect() as connection:
        for distance in (-(2**31) + 1, -3, -2, -1, 0, 1, 2**31 - 1):
            query = text(f"SELECT {condition} FROM ({given}) AS rows")
            xid = first_later + distance
            if xid % 2**32 >= 3:
                found[distance] = connection.execute(query, {"x": xid}).scalar_one()
    assert found == {each: each < 0 and each != -2 for each in found}
