"""Libraries that bring SQLAlchemy a column type which encrypts: sqlalchemy-utils and advanced-alchemy.

Neither knows of rotation: rows are read through a mapping with the old key and written through one with the new key, by the
ORM's fastest means, the bulk UPDATE by primary key.
"""

from __future__ import annotations

import importlib.metadata
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Column, DateTime, String, Table, Uuid, func, insert, select, text, update
from sqlalchemy.orm import Session, registry
from sqlalchemy.types import TypeEngine

from benchmarking.deployment import Deployment
from benchmarking.peers.peer import FIELDS, PAGE_ROWS, as_text
from benchmarking.ways import Copied
from voiceassist_db import Patient

EncryptedType = Callable[[str], TypeEngine[Any]]
"""A function of a key that gives a column type."""

SEARCH_PATH: Final = "-c search_path=public,pgcrypto"


def sqlalchemy_utils_aes(key: str) -> TypeEngine[Any]:
    """Return sqlalchemy-utils' type with its default engine, whose values can be searched for."""
    from sqlalchemy_utils import StringEncryptedType
    from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine

    made: TypeEngine[Any] = StringEncryptedType(String, key, AesEngine, "pkcs5")
    return made


def advanced_alchemy_fernet(key: str) -> TypeEngine[Any]:
    """Return advanced-alchemy's type with its default backend."""
    from advanced_alchemy.types.encrypted_string import EncryptedString, FernetBackend

    made: TypeEngine[Any] = EncryptedString(key, backend=FernetBackend)
    return made


def advanced_alchemy_pgcrypto(key: str) -> TypeEngine[Any]:
    """Return advanced-alchemy's type that encrypts inside the database."""
    from advanced_alchemy.types.encrypted_string import EncryptedString, PGCryptoBackend

    made: TypeEngine[Any] = EncryptedString(key, backend=PGCryptoBackend)
    return made


class SqlAlchemyPeer(Copied):
    """One such type, in the ORM.

    Args:
        deployment: The database.
        distribution: The library's name on PyPI.
        encrypted: Its type.
        rows: How many rows to re-encrypt.
        what: What sets it apart from others of the same library.
        note: What a reader must know to judge its figures.
        can_find: Whether equal values are equal ciphertexts, so that they can be searched for.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        distribution: str,
        encrypted: EncryptedType,
        rows: int,
        what: str,
        note: str = "",
        can_find: bool = False,
    ) -> None:
        self.name = f"{distribution} ({what})"
        self.version = importlib.metadata.version(distribution)
        self.note = note
        self.table = encrypted.__name__
        self.rows = rows
        super().__init__(deployment, self.table)
        self._encrypted = encrypted
        self._can_find = can_find
        self._engine = sqlalchemy.create_engine(deployment.url, connect_args={"options": SEARCH_PATH})
        self._old, self._new = (self._mapped(secrets.token_urlsafe(32)) for _ in range(2))

    def _mapped(self, key: str) -> type[Any]:
        """Return a class that is mapped to the table under one key."""
        encrypted = [Column(name, self._encrypted(key)) for name in ("a", "b")]
        created = Column("created_at", DateTime(timezone=True), server_default=func.now(), nullable=False)
        return _mapped(self.table, "plain", [*encrypted, created])

    def create(self) -> None:
        """Create the table by the library's own types, and fill it through them."""
        self._old.metadata.create_all(self._engine)
        with Session(self._engine) as session:
            session.execute(
                insert(self._old),
                [{"id": ordered_id(n), "plain": str(n), "a": f"123-45-{n}", "b": f"MRN-{n}"} for n in range(self.rows)],
            )
            session.commit()
        self._engine.dispose()
        self.keep()

    def run(self) -> float:
        """Read a page under the old key, write it under the new key, commit; and so on."""
        started = time.perf_counter()
        old, after = self._old, uuid.UUID(int=0)
        with Session(self._engine) as session:
            page = select(old.id, old.a, old.b).order_by(old.id).limit(PAGE_ROWS)
            while rows := session.execute(page.where(old.id > after)).all():
                session.execute(update(self._new), [{"id": row.id, "a": row.a, "b": row.b} for row in rows])
                session.commit()
                after = rows[-1].id
        seconds = time.perf_counter() - started
        self._engine.dispose()
        return seconds

    def prove(self) -> None:
        """Read all values under the new key."""
        new = self._new
        with Session(self._engine) as session:
            rows = session.execute(select(new.plain, new.a, new.b)).all()
        self._engine.dispose()
        assert len(rows) == self.rows
        assert all((f"123-45-{plain}", f"MRN-{plain}") == (a, b) for plain, a, b in rows)

    def store(self) -> SqlAlchemyStore:
        """Create its table of patients."""
        key = secrets.token_urlsafe(32)
        columns = [Column(name, self._encrypted(key), unique=self._can_find and name == "mrn") for name in FIELDS]
        mapped = _mapped(f"{self.table}_patients", "patient_id", columns)
        mapped.metadata.create_all(self._engine)
        return SqlAlchemyStore(self.name, self._engine, mapped, can_find=self._can_find)


def _mapped(table: str, unique: str, columns: Sequence[Column[Any]]) -> type[Any]:
    mappings = registry()
    made = type(table, (), {})
    plain = [Column("id", Uuid, primary_key=True), Column(unique, String, unique=True)]
    mappings.map_imperatively(made, Table(table, mappings.metadata, *plain, *columns))
    made.metadata = mappings.metadata  # type: ignore[attr-defined]  # as a declarative class has it
    return made


def ordered_id(number: int) -> uuid.UUID:
    """Return an id as UUIDv7s are: in the order of insertion."""
    return uuid.UUID(int=(0x0190 << 112) + (number << 80) + (7 << 76) + (8 << 60) + secrets.randbits(60))


class SqlAlchemyStore:
    """Patients in the ORM, by one statement for each call."""

    def __init__(self, name: str, engine: sqlalchemy.Engine, mapped: type[Any], *, can_find: bool) -> None:
        self.name = name
        self.can_find = can_find
        self._engine = engine
        self._mapped = mapped
        self._session = Session(engine)

    def begin(self) -> None:
        """Begin a transaction with an empty identity map."""
        self._session = Session(self._engine)
        self._session.execute(text("SELECT 1"))

    def rollback(self) -> None:
        """Undo it."""
        self._session.close()

    def commit(self) -> None:
        """Keep it."""
        self._session.commit()

    def add(self, patient: Patient) -> None:
        """Add an object and flush."""
        self._session.add(self._mapped(id=uuid.uuid4(), **as_text(patient)))
        self._session.flush()

    def get(self, patient: Patient) -> None:
        """Select an object by ``patient_id``."""
        self._session.scalars(select(self._mapped).where(self._mapped.patient_id == patient.patient_id)).one()

    def find(self, patient: Patient) -> None:
        """Select an object by the encrypted number."""
        self._session.scalars(select(self._mapped).where(self._mapped.mrn == patient.mrn)).one()

    def update(self, patient: Patient) -> None:
        """Update without a SELECT before."""
        values = as_text(patient)
        self._session.execute(
            update(self._mapped)
            .where(self._mapped.patient_id == patient.patient_id)
            .values(name=values["name"], address=values["address"]),
            execution_options={"synchronize_session": False},
        )

    def add_many(self, patients: Sequence[Patient]) -> None:
        """Insert in bulk."""
        self._session.execute(insert(self._mapped), [{"id": uuid.uuid4(), **as_text(each)} for each in patients])

    def page(self) -> int:
        """Select objects in the order of the primary key."""
        return len(self._session.scalars(select(self._mapped).order_by(self._mapped.id).limit(PAGE_ROWS)).all())

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        self._engine.dispose()
