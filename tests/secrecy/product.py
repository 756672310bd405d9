"""Everything that the product does with keys and patients, from its installation to the end of a key."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy
from sqlalchemy import Engine, event, exists, text
from sqlalchemy.orm import Session

from tests.cli.conftest import COMMAND, ROTATE
from tests.safety.pooler import BINARY, Pooler
from tests.secrecy.printing import Printed
from tests.secrecy.server import ROLES, Server
from tests.secrecy.values import Secrets
from voiceassist_db import AsyncDatabase, Database, Patient, Repositories, create_async_engine, create_engine
from voiceassist_db.errors import DuplicateError
from voiceassist_db.models import ClinicalNoteRow, PatientRow
from voiceassist_db.pgcrypto.binding import Keys
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, retire, rotate, rotate_index_key
from voiceassist_db.schema import migrate
from voiceassist_db.verification import verify

PREPARED: Final = 7
"""Executions after which psycopg has prepared a statement, and the server has a plan for all of its parameters."""

NOTHING_IMPORTED, SKIPPED, QUARANTINED = 3, 4, 4
"""Exit codes."""

HEADER: Final = ["patient_id", "ssn", "mrn", "name", "date_of_birth", "address"]


class Product:
    """The product on a server.

    Args:
        server: The server.
        new_provider: Makes a client of a place in the key store.
        environment: What leads commands to the key store.
        directory: An empty directory.
        printed: Gets what the product shows.
        secrets: Gets what it must not show.
    """

    def __init__(
        self,
        server: Server,
        new_provider: Callable[[str], VaultKeyProvider],
        environment: dict[str, str],
        directory: Path,
        printed: Printed,
        secrets: Secrets,
    ) -> None:
        self.server = server
        self.new_provider = new_provider
        self.provider = new_provider("")
        self.printed = printed
        self.secrets = secrets
        self.workplace = directory / "workplace"
        self.workplace.mkdir()
        self._file = directory / "patients.csv"
        self._environment = environment
        self._engines: list[Engine] = []

    # --- ways to it ----------------------------------------------------------------------------------------------------

    def known(self, engine: Engine) -> Engine:
        """Remember an engine, and listen to what the server tells its connections."""
        event.listen(
            engine, "connect", lambda _, record: record.driver_connection.add_notice_handler(self.printed.notice)
        )
        self._engines.append(engine)
        return engine

    def database(self, role: str = ROLES.app, **options: Any) -> Database:
        """Return the database as one of the roles."""
        return Database(self.known(create_engine(self.server.url(role), **options)), self.provider)

    def command(self, role: str, *command: str, given: str = "", expected: int = 0) -> None:
        """Run a command, and keep what it says."""
        url = self.server.url(role).set(drivername="postgresql").render_as_string(hide_password=False)
        env = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "TMPDIR": str(self.workplace), **self._environment}
        done = subprocess.run(
            command, input=given.encode(), env=env, cwd=self.workplace, capture_output=True, check=False, timeout=120
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (expected, False), (command, done.stdout, done.stderr)
        self.printed.keep("standard output of commands", done.stdout)
        self.printed.keep("standard error of commands", done.stderr)

    @contextmanager
    def failing(self, kind: type[BaseException]) -> Iterator[None]:
        """Expect an exception, and keep what it shows."""
        with pytest.raises(kind) as caught:
            yield
        self.printed.error(caught.value)

    def fail(self, kind: type[BaseException], database: Database, *attempts: Callable[[Repositories], object]) -> None:
        """Expect it of each of these, in a transaction of its own."""
        for attempt in attempts:
            with self.failing(kind), database.transaction() as tx:
                attempt(tx)

    # --- what it does ----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Bring tables and keys into being."""
        migrate(self.database(ROLES.owner).engine)
        self.server.provision()
        self.command(ROLES.owner, *COMMAND, "init-keys")
        self.secrets.store(self.provider.fetch())

    def import_file(self) -> None:
        """Import patients 100 to 139 of a file with broken lines."""
        patients = [self.secrets.patient(number) for number in range(100, 140)]
        rows: list[list[Any]] = [
            [*(getattr(each, name) for name in HEADER[:-1]), json.dumps(each.address)] for each in patients
        ]
        refused = self.secrets.refused
        bad: list[list[Any]] = [
            ["PT-0140", refused("917-54-91x3-broken"), "", "", "", ""],
            ["PT-0141", "", "", "", refused("1811-13-40-broken"), ""],
            ["PT-0142", "", "", "", "", '{"street": "' + refused("9142 Bróken Street")],
            ["PT-0143", "", "", "", "", "", refused("9143 a cell too many")],
            ["PT-0144", "", patients[0].mrn, refused("Ængus of the same number"), "", ""],
            [patients[1].patient_id, "", "", refused("Ængus of another name"), "", ""],
        ]
        with self._file.open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([HEADER, *rows, *bad])
        self.command(ROLES.app, *COMMAND, "import", str(self._file), expected=NOTHING_IMPORTED)
        self.command(ROLES.app, *COMMAND, "import", "--skip-bad", "--json", str(self._file), expected=SKIPPED)

    def use(self) -> None:
        """Write, find, read, change and delete, through every kind of engine and connection."""
        self._use(self.database(echo="debug"), 1000)
        foreign = sqlalchemy.create_engine(self.server.url(ROLES.app), echo=True)
        self._use(Database(self.known(foreign), self.provider), 1100, times=2)
        self._use(self.database(connect_args={"options": "-c client_min_messages=log"}), 1200, times=2)
        asyncio.run(self._use_async(1300))
        if BINARY is not None:  # else the surface of its log is skipped, and says why
            with Pooler(self.server.url(ROLES.app).set(port=self.server.postgres.port, query={})) as pooler:
                self._use(Database(self.known(create_engine(pooler.url)), self.provider), 1400, times=2)
                self.printed.keep("pgbouncer's log", pooler.log.read_bytes())

    def _use(self, database: Database, first: int, *, times: int = PREPARED) -> None:
        many = [self.secrets.patient(first + number) for number in range(times)]
        for patient in many:
            with database.transaction() as tx:
                tx.patients.add(patient)
                tx.clinical_notes.add(self.secrets.note(patient, lines=40))
        for number, patient in enumerate(many):
            with database.transaction() as tx:
                self._read(tx, patient)
                changed = self.secrets.patient(first + 50 + number)
                tx.patients.update(patient.patient_id, ssn=changed.ssn, mrn=changed.mrn, name=changed.name)
                tx.patients.update(patient.patient_id, address=changed.address, date_of_birth=None)
                self._keep_session(tx)
        with database.transaction() as tx:
            assert isinstance(tx.session, Session)
            tx.patients.add_many(self.secrets.patient(first + 20 + number) for number in range(20))
            with self.failing(DuplicateError), tx.session.begin_nested():
                tx.patients.add(self.secrets.patient(first + 90, patient_id=many[0].patient_id))
            tx.clinical_notes.add_many(self.secrets.note(many[0]) for _ in range(4))
            assert len(tx.clinical_notes.of_patient(many[0].id)) == 5
            assert len(tx.clinical_notes.page(limit=1000)) >= PREPARED
            tx.patients.delete(f"PT-{first + 20:04d}")
            for each in (tx, tx.patients, tx.session):
                self.printed.thing(each)

    def _read(self, tx: Repositories, patient: Patient) -> None:
        assert tx.patients.get(patient.patient_id) == patient
        assert patient in tx.patients.find_by_ssn(str(patient.ssn))
        assert tx.patients.find_by_mrn(str(patient.mrn)) == patient
        assert patient in tx.patients.find_by_name(str(patient.name))
        assert tx.patients.find(name=patient.name, ssn=patient.ssn, mrn=[patient.mrn]) == [patient]
        of_patient = (
            PatientRow.patient_id.in_([patient.patient_id]),
            exists().where(ClinicalNoteRow.patient == PatientRow.id),
        )
        assert tx.patients.select(*of_patient, order_by=PatientRow.created_at.desc()) == [patient]
        assert (tx.patients.count(*of_patient), tx.patients.exists(*of_patient)) == (1, True)
        assert tx.patients.get_many([patient.patient_id])
        assert len(tx.patients.page(limit=1000)) >= PREPARED  # decoded while the server reads
        assert len(tx.clinical_notes.of_patient(patient.id)) == 1

    def _keep_session(self, tx: Repositories) -> None:
        self.printed.session(lambda query: tx.session.execute(text(query)).all())

    async def _use_async(self, first: int) -> None:
        patients = [self.secrets.patient(first + number) for number in range(2)]
        async with AsyncDatabase(create_async_engine(self.server.url(ROLES.app)), self.provider) as database:
            for _ in patients:
                async with database.transaction() as tx:
                    await tx.run(lambda tx: tx.patients.page(limit=1000))
            async with database.transaction() as tx:
                await tx.run(lambda tx: tx.patients.add_many(patients))
            with self.failing(DuplicateError):
                async with database.transaction() as tx:
                    await tx.run(lambda tx: tx.patients.add(patients[0]))
            for each in (database, database.engine, tx):
                self.printed.thing(each)

    def rotate(self) -> None:
        """Rotate with an interruption, with a row that cannot be read, by function and by command; end the old key."""
        owner, rotator = self.database(ROLES.owner), self.database(ROLES.rotator, echo="debug", pool_size=6)
        stop = threading.Event()
        stop.set()
        with self.server.damaged(
            "PT-0101", "ssn_encrypted = set_byte(ssn_encrypted, 40, get_byte(ssn_encrypted, 40) # 1)"
        ):
            assert rotate(rotator.engine, rotator.keys, stop=stop).interrupted
            self.secrets.store(self.provider.fetch())
            self.command(ROLES.rotator, *ROTATE, "--json", expected=QUARANTINED)
            self.printed.keep("key_rotation_failures", self.server.asked("SELECT t::text FROM key_rotation_failures t"))
            self.command(ROLES.owner, *COMMAND, "verify", expected=1)
        assert rotate(rotator.engine, rotator.keys, pace=Pace(workers=2)).done
        assert not any(each.failed for each in verify(rotator.engine, rotator.keys))
        retire(owner.engine, owner.keys, grace_days=0)
        assert rotate_index_key(rotator.engine, rotator.keys).done
        self.secrets.store(self.provider.fetch())
        self.command(ROLES.rotator, *ROTATE)
        self.secrets.store(self.provider.fetch())
        self.command(ROLES.owner, *COMMAND, "status", "--json")

    def show(self) -> None:
        """Print all that it holds, and end its connections."""
        database, stored = self.database(), self.provider.fetch()
        with database.engine.connect() as connection:
            keyring = database.keys.keyring(connection)
        with database.transaction() as tx:
            patients, repositories = tx.patients.page(limit=1000), (type(tx.patients), type(tx.clinical_notes))
        statements = [kind._statements for kind in repositories]
        for prepared in (
            each for of in statements for kept in (of._prepared, of._of_criteria) for each in kept.values()
        ):
            self.printed.keep("compiled statements: text", prepared.sql)
            self.printed.keep("compiled statements: parameters", vars(prepared))
        for key in (stored, stored.key, stored.index_key, keyring, keyring.current, Keys([stored.key])):
            self.printed.key(key)
        new = [dataclasses.replace(each, created_at=None, updated_at=None) for each in patients]
        rows = repositories[0]._rows.many(new, keyring)
        things = (database, database.keys, self.provider, database.engine)
        for thing in (patients, patients[0], rows, list(rows.values()), stored.versions(), keyring.memory, *things):
            self.printed.thing(thing)
        for thing in things:
            self.printed.thing(vars(thing))
        for engine in self._engines:
            self.printed.cache(engine)
            engine.dispose()
