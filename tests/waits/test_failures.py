"""Every failure of a server names its cause and its remedy, provoked on a real server; no message names another cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from tests.cli.conftest import Run
from tests.waits.conftest import ROLES, Spoilt, changed
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.cli.rotating import exit_code
from voiceassist_db.errors import DatabaseError, DatabaseUnavailableError, TransactionConflictError
from voiceassist_db.execution import execute
from voiceassist_db.models import PatientRow
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.sessions import connection_of

pytestmark = pytest.mark.wide

At = Callable[[str], Database]
Env = Callable[[str], dict[str, str]]

WRONG_CAUSES = ("check the login", "ask for the grant", "voiceassist-db migrate", "could not be read")


def told(message: str, *parts: str) -> None:
    """Check that a message has these parts, and no cause that is another one's."""
    assert not [part for part in parts if part not in message], message
    assert not [cause for cause in WRONG_CAUSES if cause in message], message


def test_a_server_that_is_full(spoilt: Spoilt, at: At, env: Env, run: Run) -> None:
    """53300: no connection is left; the login is right, and the message says so, in a command and in the library."""
    at(ROLES.app).close()
    with spoilt.admin() as admin:
        admin.execute(f"ALTER ROLE {ROLES.app} CONNECTION LIMIT 0")
        told(run("verify", env=env(ROLES.app)).error, "SQLSTATE 53300", "no connection left", "are right")
        admin.execute(f"ALTER ROLE {ROLES.app} CONNECTION LIMIT -1")
    with ExitStack() as stack:
        with suppress(psycopg.OperationalError):
            for _ in range(30):
                stack.enter_context(spoilt.admin())
        with pytest.raises(DatabaseUnavailableError) as caught, at(ROLES.app).transaction() as tx:
            tx.patients.get("PT-1")
    told(str(caught.value), "SQLSTATE 53300", "max_connections", "CONNECTION LIMIT")


@pytest.mark.parametrize("command", ["import", "rotate"])
def test_a_server_without_writes(spoilt: Spoilt, clinic: str, env: Env, run: Run, tmp_path: Path, command: str) -> None:
    """25006: a read-only server is no bad grant; the key store is not touched."""
    file = tmp_path / "patients.csv"
    file.write_text("patient_id\nPT-X\n")
    on = f"ALTER DATABASE {clinic} SET default_transaction_read_only = on"
    with changed(spoilt, clinic, on, f"ALTER DATABASE {clinic} RESET default_transaction_read_only"):
        if command == "import":
            done = run("import", str(file), env=env(ROLES.app))
        else:
            done = run(env=env(ROLES.rotator), command=rotate_command)
    told(done.error, "SQLSTATE 25006", "standby", "default_transaction_read_only", "primary", "Nothing was changed")


@contextmanager
def full_disk(spoilt: Spoilt, clinic: str, table: str) -> Iterator[None]:
    """Let the disk be full for an empty table: its file leads to a device that has no room."""
    with spoilt.admin(clinic) as admin:
        directory = admin.execute("SHOW data_directory").fetchone()
        path = admin.execute("SELECT pg_relation_filepath(%s)", [table]).fetchone()
        assert directory is not None
        assert path is not None
    file = Path(str(directory[0])) / str(path[0])
    assert file.stat().st_size == 0
    file.unlink()
    file.symlink_to("/dev/full")
    yield
    file.unlink()
    file.touch()
    os.chown(file, file.parent.stat().st_uid, file.parent.stat().st_gid)


def test_a_full_disk(spoilt: Spoilt, clinic: str, env: Env, run: Run, tmp_path: Path) -> None:
    """53100: the message names the table, and what to free."""
    file = tmp_path / "patients.csv"
    file.write_text("patient_id,name\nPT-001,Zoë\n")
    with spoilt.admin(clinic) as admin:
        admin.execute("TRUNCATE patient_data CASCADE")
    with full_disk(spoilt, clinic, "patient_data"):
        message = run("import", str(file), env=env(ROLES.app)).error
    told(message, "SQLSTATE 53100", "on patient_data", "Free space", "run it again")


def test_too_little_memory(spoilt: Spoilt, at: At) -> None:
    """53200: the server cannot serve the statement, and lives on."""
    database = at(ROLES.app)
    with pytest.raises(DatabaseError) as caught, database.transaction() as tx:
        pid = connection_of(tx.session, PatientRow).scalar(text("SELECT pg_backend_pid()"))
        limit = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + (16 << 20)
        with spoilt.admin() as admin:  # by the server's own user, who may lower it
            admin.execute(f"COPY (SELECT 1) TO PROGRAM 'prlimit --pid {pid} --as={limit}'")
        tx.patients.add(Patient(patient_id="PT-X", name="Z" * (8 << 20)))
    told(str(caught.value), "SQLSTATE 53200", "memory", "on patient_data", "run it again")


def test_too_many_locks(spoilt: Spoilt, env: Env, run: Run) -> None:
    """53200 of another kind: the server's table of locks is full, and more memory for statements would not help."""
    with spoilt.admin() as admin:
        with pytest.raises(psycopg.errors.OutOfMemory):
            admin.execute("SELECT pg_advisory_lock(n) FROM generate_series(1, 100000) n")
        message = run(env=env(ROLES.rotator), command=rotate_command).error
        admin.execute("SELECT pg_advisory_unlock_all()")  # the end of a session frees them a moment later
    told(message, "SQLSTATE 53200", "max_locks_per_transaction")


def test_a_publication_without_identity(spoilt: Spoilt, clinic: str, at: At) -> None:
    """55000: the table is published, and its rows cannot be identified; the statement that helps is in the message."""
    nothing = "ALTER TABLE patient_data REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE patient_data"
    back = "DROP PUBLICATION p; ALTER TABLE patient_data REPLICA IDENTITY DEFAULT"
    rotator = at(ROLES.rotator)
    with changed(spoilt, clinic, nothing, back), pytest.raises(DatabaseError) as caught:
        rotate(rotator.engine, rotator.keys)
    told(str(caught.value), "SQLSTATE 55000", "patient_data", "REPLICA IDENTITY DEFAULT", "publication")
    assert rotate(rotator.engine, rotator.keys).done


def test_a_transaction_that_takes_too_long(spoilt: Spoilt, at: At) -> None:
    """25P04: a limit of time is no lost server and no bad login; what exceeds it may be done in smaller parts."""
    with spoilt.admin() as admin:
        version = admin.info.server_version
    if version < 170000:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    with pytest.raises(TransactionConflictError) as caught, at(ROLES.app).transaction() as tx:
        connection = connection_of(tx.session, PatientRow)
        connection.execute(text("SET LOCAL transaction_timeout = '50ms'"))
        execute(connection, text("SELECT pg_sleep(60) FROM patient_data"), table="patient_data")
    told(str(caught.value), "SQLSTATE 25P04", "transaction_timeout", "patient_data", "try it again")


RAISING = """
    CREATE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'Hidden % is locked', OLD.patient_id; END $$;
    CREATE TRIGGER guard BEFORE UPDATE ON patient_data FOR EACH ROW EXECUTE FUNCTION public.guard()
"""
SKIPPING = RAISING.replace("RAISE EXCEPTION 'Hidden % is locked', OLD.patient_id", "RETURN NULL")
DROP = "DROP TRIGGER guard ON patient_data; DROP FUNCTION public.guard()"


@pytest.mark.parametrize(
    ("trigger", "parts"),
    [
        (RAISING, ("the function guard", "SQLSTATE P0001", "patient_data", "drop the trigger", "server's log")),
        (SKIPPING, ("the trigger guard", "patient_data", "skips rows", "returns NULL", "drop it")),
    ],
)
def test_a_trigger_that_refuses(
    spoilt: Spoilt, clinic: str, env: Env, run: Run, trigger: str, parts: tuple[str, ...]
) -> None:
    """P0001 and NULL: the message names the function or the trigger, never the text that it raised."""
    with changed(spoilt, clinic, trigger, DROP):
        message = run(env=env(ROLES.rotator), command=rotate_command).error
    told(message, *parts)
    assert "Hidden" not in message
    assert "PT-" not in message
    assert run(env=env(ROLES.rotator), command=rotate_command).code == 0


def test_a_check_of_somebody_else(spoilt: Spoilt, clinic: str, at: At, env: Env, run: Run) -> None:
    """23514: rows that a CHECK of another team refuses could be read well; the report names the constraint."""
    check = "ALTER TABLE patient_data ADD CONSTRAINT frozen CHECK (patient_id <> 'PT-7' OR key_version = 1)"
    with changed(spoilt, clinic, check, "ALTER TABLE patient_data DROP CONSTRAINT frozen"):
        rotator = at(ROLES.rotator)
        report = rotate(rotator.engine, rotator.keys)
        done = run(env=env(ROLES.rotator), command=rotate_command)
    assert (report.quarantined, exit_code(report), done.code) == (1, 4, 4)
    told(
        done.stdout,
        "1 rows were refused by the constraint frozen of patient_data (SQLSTATE 23514)",
        "changed or dropped",
    )


def test_a_search_path_that_leads_elsewhere(spoilt: Spoilt, clinic: str, env: Env, run: Run) -> None:
    """42P01: the database is migrated, and the message says in which schema and how to reach it."""
    wrong = f"ALTER ROLE {ROLES.auditor} IN DATABASE {clinic} SET search_path = 'elsewhere'"
    with changed(spoilt, clinic, wrong, f"ALTER ROLE {ROLES.auditor} IN DATABASE {clinic} RESET search_path"):
        message = run("status", env=env(ROLES.auditor)).error
    told(
        message,
        "schema public",
        "search_path of this role is elsewhere",
        f"ALTER ROLE {ROLES.auditor} SET search_path = public",
    )


def test_a_server_that_is_gone_and_a_wrong_login(spoilt: Spoilt, clinic: str, keys: VaultKeyProvider) -> None:
    """Nobody at the address, and a wrong database, are each named; a refused login alone is a refused login."""
    for url, part in (
        (spoilt.url(ROLES.app, clinic).set(port=1), "no server answers"),
        (spoilt.url(ROLES.app, "none"), "no database of this name"),
        (spoilt.url(ROLES.app, clinic).set(password="wrong"), "refused the login"),
    ):
        engine = create_engine(url)
        with pytest.raises(DatabaseUnavailableError, match=part), Database(engine, keys).transaction() as tx:
            tx.session.execute(text("SELECT 1"))
        engine.dispose()
