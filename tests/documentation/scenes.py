"""What each page presupposes: the reader's own files, tables and names, and which block is a part of which file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.documentation.blocks import ROOT
from tests.documentation.session import Session
from voiceassist_db.schema import migrations_directory


def nothing(_: Session) -> None:
    """Presuppose nothing."""


@dataclass(frozen=True)
class Scene:
    """What a page presupposes.

    Attributes:
        prepare: Called before the first block.
        before: Called before the block whose first line begins so.
        after: Called after the last block.
        files: Blocks, by the beginning of their first line, that are added to a file and not run.
        is_empty: Whether the database has no tables and no keys yet.
    """

    prepare: Callable[[Session], None] = nothing
    before: dict[str, Callable[[Session], None]] = field(default_factory=dict)
    after: Callable[[Session], None] = nothing
    files: dict[str, str] = field(default_factory=dict)
    is_empty: bool = False


BASE: Final = """
from datetime import date, datetime, UTC
from decimal import Decimal
from typing import Annotated
from uuid import UUID
from sqlalchemy import DateTime, ForeignKey, Identity, exists, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from voiceassist_db import *
from voiceassist_db.models import EncryptedInPlace, EncryptedRow, Kind, blind_index_column, encrypted_column

class Base(DeclarativeBase):
    pass
"""
AS_OWNER: Final = """
import os
os.environ["DATABASE_URL"] = os.environ["OWNER_DATABASE_URL"]
db = Database.from_env()
"""
TRANSACTION: Final = """
Base.metadata.create_all(db.engine)
entered = db.transaction()
tx = entered.__enter__()
"""

# --- README


def readme(session: Session) -> None:
    """The checkout, and addresses of a deployment."""
    (session.folder / ".venv").symlink_to(ROOT / ".venv")
    (session.folder / "examples").symlink_to(ROOT / "examples")
    address = (
        "postgresql://voiceassist_owner@db.example.org/voiceassist?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem"
    )
    session.words |= {
        address: session.environment["OWNER_DATABASE_URL"],
        "https://vault.example.org:8200": session.environment["VAULT_ADDR"],
        "VAULT_TOKEN=…": f"VAULT_TOKEN={session.environment['VAULT_TOKEN']}",
    }


def guide(session: Session) -> None:
    """The guide's table, and a session of an application that follows it."""
    session.python(
        """
import os, sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session
from voiceassist_db.addresses import plain
engine = sqlalchemy.create_engine(os.environ["SUPERUSER_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
session, ssn, key = Session(engine), "123-45-6789", "a key"
session.execute(text("CREATE TEMPORARY TABLE patient_data (ssn_encrypted bytea)"))
session.execute(text("SET search_path = pg_temp, pgcrypto, public"))
"""
    )


def copied_ssn(session: Session) -> None:
    """Another patient, over whose SSN somebody copies the first one's."""
    session.python("session.close(); engine.dispose()")
    session.python('with db.transaction() as tx: tx.patients.add(Patient(patient_id="PT-002", ssn="900-00-0002"))')
    session.as_superuser(
        "UPDATE patient_data SET ssn_encrypted = (SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-001') "
        "WHERE patient_id = 'PT-002'"
    )


def session_of_the_application(session: Session) -> None:
    """A session of the application's own, and a patient less: nobody can read what was copied."""
    session.python('with db.transaction() as tx: tx.patients.delete("PT-002")')
    session.python("session = Session(db.engine)")


def closed(session: Session) -> None:
    """What was opened so far is closed."""
    session.python("session.close(); db.close()")


# --- docs/importing.md


def files_to_import(session: Session) -> None:
    """The files of patients that the page names."""
    session.write("patients.csv", (ROOT / "examples/patients.csv").read_text())
    session.write("beneficiaries.csv", "DESYNPUF_ID,BENE_BIRTH_DT\n00013D2EFD8E45D1,19230501\n")
    session.write("clinic.csv", "patient_id,FirstName,LastName,Town,Shoes\nPT-901,Ann,Lee,Leeds,41\n")


# --- docs/migrations.md

ENV: Final = """
import os
from alembic import context
from tables import Base
from voiceassist_db import create_engine

connection = create_engine(os.environ["DATABASE_URL"]).connect()
"""
RUN: Final = """
with context.begin_transaction():
    context.run_migrations()
connection.close()
"""
VISITS: Final = """
class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
FIRST: Final = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels = "1975ea83b712", None, None

def upgrade(): op.create_table("visits", sa.Column("id", sa.Integer(), primary_key=True))
def downgrade(): op.drop_table("visits")
"""
SECOND: Final = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "added", {head!r}, None, None
"""


def own_history(session: Session) -> None:
    """An application with a model and an Alembic history of its own, and a schema for this package's tables."""
    session.write("tables.py", BASE + VISITS)
    session.write("alembic/versions/1975ea83b712_visits.py", FIRST)
    shutil.copy(migrations_directory() / "script.py.mako", session.folder / "alembic")
    session.environment["PYTHONPATH"] = str(session.folder)
    session.write(
        "alembic/env.py", f"{ENV}context.configure(connection=connection, target_metadata=Base.metadata){RUN}"
    )
    session.run_sh("voiceassist-db provision", "own_history")


def one_history(session: Session) -> None:
    """Another database, where nothing has run yet: the page says to use one way only."""
    session.environment["DATABASE_URL"] = session.environment["OWNER_DATABASE_URL"]
    without_tables(session)


def without_tables(session: Session) -> None:
    """A database that none of our migrations has seen."""
    session.as_superuser(
        "DROP TABLE IF EXISTS voiceassist_version, alembic_version, visits, patient_data, clinical_notes, encryption_keys, index_keys, key_rotation_failures, key_rotations, "
        "database_identity CASCADE; DROP SCHEMA pgcrypto CASCADE"
    )


def two_histories(session: Session) -> None:
    """A database that the other way was used in, and the application's own migration."""
    without_tables(session)
    session.run_sh("voiceassist-db migrate", "two_histories")


def with_the_plugin(session: Session) -> None:
    """An environment that names the plugin: the block stands for the call in it."""
    (session.folder / "alembic/env.py").write_text(ENV)


def added_columns(session: Session) -> None:
    """The rest of that environment, and the head of a revision."""
    session.write("alembic/env.py", RUN)
    made = next(path for path in (session.folder / "alembic/versions").glob("*_add_visits.py"))
    session.write("alembic/versions/added_columns.py", SECOND.format(head=made.name.partition("_")[0]))


def back_to_base(session: Session) -> None:
    """Encrypted columns that hold a value."""
    session.run_sh("alembic upgrade heads", "back_to_base")
    session.as_superuser(
        r"INSERT INTO visits (id, reason_encrypted, key_version) VALUES (1, '\xc30c040901082038206279746573d2', 1)"
    )


# --- docs/querying.md

QUERIED: Final = """
from datetime import timedelta
from voiceassist_db.models import PatientRow

class Doctor(Base):
    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    ward: Mapped[str]

class AppointmentRow(EncryptedRow, Base):
    __tablename__ = "appointments"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    room: Mapped[str | None]
    doctor: Mapped[int | None]
    reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    appointment: Mapped[UUID]

@record
class Appointment(Record):
    starts_at: datetime
    room: str | None = None
    doctor: int | None = None
    reason: str | None = None
    id: UUID = field(default_factory=uuid7)

class AppointmentRepository(Repository[Appointment]):
    model = AppointmentRow
    record = Appointment

now = moment = datetime.now(UTC)
"""


def queried(session: Session) -> None:
    """Appointments, doctors and invoices, and a transaction of the owner."""
    session.python(BASE + AS_OWNER + QUERIED + TRANSACTION)
    session.python(
        "tx.repository(AppointmentRepository).add_many([Appointment(starts_at=now + timedelta(days=each)) for each in range(3)])"
    )


def persons(session: Session) -> None:
    """A table for the class that the block declares, made as soon as it is used."""
    session.python(LAZY)


LAZY: Final = """
class Lazy:
    def __getattr__(self, name):
        Base.metadata.create_all(tx_of_reader.session.connection())
        return getattr(tx_of_reader, name)
tx_of_reader, tx = globals().get("tx_of_reader", tx), Lazy()
"""


def a_place(session: Session) -> None:
    """The place in a list, out of a request."""
    session.python("starts_at, id = now, uuid7()")


# --- docs/quickstart.md


def doctors(session: Session) -> None:
    """An application with a model, and an Alembic environment that names the plugin."""
    session.write("tables.py", BASE + DOCTORS)
    session.write("alembic.ini", "[alembic]\nscript_location = %(here)s/alembic\npath_separator = os\n")
    session.write("alembic/versions/.keep", "")
    shutil.copy(migrations_directory() / "script.py.mako", session.folder / "alembic")
    session.environment["PYTHONPATH"] = str(session.folder)
    told = 'autogenerate_plugins=["alembic.autogenerate.*", "voiceassist_db"]'
    session.write(
        "alembic/env.py", f"{ENV}context.configure(connection=connection, target_metadata=Base.metadata, {told}){RUN}"
    )


DOCTORS: Final = """
class Doctor(Base):
    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
"""
VISIT: Final = """
from datetime import UTC, datetime
from tables import Visit, Doctor
from sqlalchemy.ext.asyncio import AsyncSession
"""


def asynchronous(session: Session) -> None:
    """The application's own module."""
    session.python(f"import sys\nsys.path.insert(0, {str(session.folder)!r})\n{VISIT}\nsys.path.pop(0)")


def a_visit(session: Session) -> None:
    """What the page's functions are for: a visit that is added and found, as the application's role."""
    session.run_python(USED, "a_visit")


USED: Final = """
async with AsyncSession(database.engine) as session, session.begin():
    session.add(doctor := Doctor())
    await session.flush()
    await add_visit(session, Visit(doctor=doctor.id, starts_at=datetime.now(UTC), patient="José Núñez", reason="cough"))
async with AsyncSession(database.engine) as session:
    (found,) = await visits_of(session, "josé núñez")
assert found.reason == "cough"
await database.close()
"""

# --- docs/rotation.md


def two_clinics(session: Session) -> None:
    """A second database on the same secret, and the list of both."""
    session.write("clinics", "clinic\nclinic_b\n")
    session.as_superuser("CREATE DATABASE clinic_b OWNER voiceassist_owner")
    other = {
        name: value.replace("/clinic", "/clinic_b") if name.endswith("DATABASE_URL") else value
        for name, value in session.environment.items()
    }
    session.environment, own = other, session.environment
    commands = ("provision", "migrate", "provision", "init-keys --join")
    session.run_sh("\n".join(f"voiceassist-db {each}" for each in commands), "two_clinics")
    session.environment = own


# --- docs/tables.md

ROOMS: Final = """
from dataclasses import field as field_of
class Room(Base):
    __tablename__ = "rooms"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
"""


def tables(session: Session) -> None:
    """A table of the application's own, and a transaction of the owner."""
    session.python(BASE + AS_OWNER + ROOMS + TRANSACTION + LAZY)


PATIENTS: Final = """
class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
"""


def patients(session: Session) -> None:
    """The application's patients."""
    session.python(PATIENTS)


def other_patients(session: Session) -> None:
    """Another application, which has not got that side table."""
    session.python(BASE)


# --- examples/clinic


def the_clinic(session: Session) -> None:
    """The example as it lies in the checkout."""
    shutil.copytree(ROOT / "examples/clinic", session.folder, dirs_exist_ok=True)


SCENES: Final[dict[str, Scene]] = {
    "README.md": Scene(
        readme,
        {
            "session.execute(": guide,
            'tx.patients.get("PT-002")': copied_ssn,
            "tx = db.using(session)": session_of_the_application,
            "from voiceassist_db import AsyncDatabase": closed,
            "class Appointment(": lambda session: session.python(BASE),
        },
    ),
    "docs/importing.md": Scene(files_to_import),
    "docs/migrations.md": Scene(
        own_history,
        {
            "[alembic]": one_history,
            "alembic stamp": two_histories,
            "context.configure(": with_the_plugin,
            "def upgrade():": added_columns,
            "alembic -x": back_to_base,
        },
        files={
            "[alembic]": "alembic.ini",
            "depends_on": "alembic/versions/1975ea83b712_visits.py",
            "context.configure(": "alembic/env.py",
            "def upgrade():": "alembic/versions/added_columns.py",
        },
        is_empty=True,
    ),
    "docs/querying.md": Scene(queried, {"class Person(": persons, "first = rows": a_place}),
    "docs/quickstart.md": Scene(
        doctors,
        {"from voiceassist_db import AsyncDatabase": asynchronous},
        a_visit,
        {"from datetime import": "tables.py"},
    ),
    "docs/rotation.md": Scene(before={"voiceassist-db retire --databases": two_clinics}),
    "docs/security.md": Scene(is_empty=True),
    "docs/tables.md": Scene(
        tables,
        {
            "class PatientSecrets(": patients,
            "from voiceassist_db import Record, Repository, record": other_patients,
            "class Visit(": other_patients,
        },
    ),
    "examples/clinic/README.md": Scene(the_clinic),
}

DEPLOYED: Final = Scene(the_clinic, is_empty=True)
"""An application that is finished, and a server that has nothing of it."""
