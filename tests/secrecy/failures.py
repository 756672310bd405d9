"""Every way in which the product's work with keys and patients fails: values, rows, connections and others in the way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.secrecy.product import Product
from voiceassist_db import Database, Patient, Repositories, create_engine
from voiceassist_db.embedded.process import poll
from voiceassist_db.errors import (
    BindingError,
    ConstraintError,
    DatabaseUnavailableError,
    DecryptionError,
    DuplicateError,
    TransactionConflictError,
    TransactionFailedError,
    UnknownKeyVersionError,
    UnsafeConnectionError,
    ValueFormatError,
    WrongKeyError,
)
from voiceassist_db.keys import KeySet
from voiceassist_db.pgcrypto.binding import Keys
from voiceassist_db.pgcrypto.expressions import OPTIONS

PATIENCE_S: Final = 20.0

_DAMAGES: Final[dict[str, type[Exception]]] = {
    "ssn_encrypted = set_byte(ssn_encrypted, 40, get_byte(ssn_encrypted, 40) # 1)": DecryptionError,
    "ssn_encrypted = (SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-0103')": BindingError,
    "key_version = 9": UnknownKeyVersionError,
}


def fail_in_every_way(product: Product) -> None:
    """Let it fail."""
    database = product.database()
    _refuse_values(product, database)
    _refuse_rows(product, database)
    _refuse_connections(product)
    _read_damaged(product, database)
    _meet_others(product, database)
    _deadlock(product, database)
    _stop_in_the_midst(product, database)


def _refuse_values(product: Product, database: Database) -> None:
    """Values that are not of their field's type."""
    refused = product.secrets.refused
    values: list[dict[str, Any]] = [
        {"ssn": refused("917-54-91x4-refused")},
        {"name": refused("Žofie with NUL") + "\x00"},
        {"name": refused("Žofie with half a character") + "\ud800"},
        {"date_of_birth": refused("1811-13-41-refused")},
        {"address": {"street": refused("9201 Refused Street"), "codes": {1, 2}}},
        {"mrn": refused("Mrn-refused-as-bytes").encode()},
    ]
    for given in values:
        patient = Patient(patient_id="PT-0200", **given)
        product.fail(
            ValueError,
            database,
            lambda tx, patient=patient: tx.patients.add(patient),  # type: ignore[misc]  # the loop's
            lambda tx, patient=patient: tx.patients.add_many([product.secrets.patient(201), patient]),  # type: ignore[misc]
            lambda tx, given=given: tx.patients.update("PT-0100", **given),  # type: ignore[misc]
        )
    sought = refused("917-54-91x5-refused")
    product.fail(ValueError, database, lambda tx: tx.patients.find_by_ssn(sought))


def _refuse_rows(product: Product, database: Database) -> None:
    """Rows that a constraint of the server refuses."""
    known = product.secrets.patient(100)
    with product.server.naive() as admin:
        admin.execute("ALTER TABLE patient_data ADD CONSTRAINT odd CHECK (patient_id <> 'PT-0210')")
    duplicate, odd = product.secrets.patient(211, mrn=known.mrn), product.secrets.patient(210)
    product.fail(
        DuplicateError,
        database,
        lambda tx: tx.patients.add(duplicate),
        lambda tx: tx.patients.add_many([product.secrets.patient(212), duplicate]),
        lambda tx: tx.patients.update("PT-0101", mrn=known.mrn),
    )
    strange = product.secrets.note(known)
    absent = replace(product.secrets.note(known), note=None)  # type: ignore[arg-type]  # to be refused
    product.fail(
        ConstraintError,
        database,
        lambda tx: tx.patients.add(odd),
        lambda tx: tx.patients.add_many([product.secrets.patient(212), odd]),
        lambda tx: tx.clinical_notes.add(strange),
        lambda tx: tx.clinical_notes.add_many([strange]),
        lambda tx: tx.clinical_notes.add(absent),
        lambda tx: tx.clinical_notes.add_many([absent]),
    )


def _refuse_connections(product: Product) -> None:
    """A role without the settings that keep parameters out of logs, and another database's keys."""
    unsafe = Database(product.known(create_engine(product.server.postgres.url("secrecy"))), product.provider)
    other = product.new_provider("-other")
    other.create(KeySet.generate())
    product.secrets.store(other.fetch())
    strange = Database(product.database().engine, other)
    patient = product.secrets.patient(220)
    for database, kind in ((unsafe, UnsafeConnectionError), (strange, WrongKeyError)):
        product.fail(
            kind,
            database,
            lambda tx: tx.patients.add(patient),
            lambda tx: tx.patients.add_many([patient]),
            lambda tx: tx.patients.get("PT-0100"),
            lambda tx: tx.patients.find_by_ssn(str(patient.ssn)),
            lambda tx: tx.patients.page(),
            lambda tx: tx.patients.update("PT-0100", name=patient.name),
        )


def _read_damaged(product: Product, database: Database) -> None:
    """Rows that somebody changed in the database."""
    for damage, kind in _DAMAGES.items():
        with product.server.damaged("PT-0104", damage):
            product.fail(kind, database, lambda tx: tx.patients.get("PT-0104"), lambda tx: tx.patients.page(limit=1000))
    context = "patient_data.date_of_birth"
    value = f"'{context}\\:' || id || '\\:' || CAST(:value AS text)"
    encrypted = f"pgcrypto.pgp_sym_encrypt({value}, (CAST(:keys AS text[]))[1], '{OPTIONS}')"
    update = text(f"UPDATE patient_data SET date_of_birth_encrypted = {encrypted} WHERE patient_id = 'PT-0102'")
    given = {
        "value": product.secrets.refused("1811-13-42-no-date"),
        "keys": Keys([product.provider.fetch().key.derive(context)]),
    }
    with database.transaction() as tx:
        tx.session.execute(update, given)
    product.fail(ValueFormatError, database, lambda tx: tx.patients.get("PT-0102"))
    with database.transaction() as tx:
        tx.patients.update("PT-0102", date_of_birth=None)


@contextmanager
def _when_it_waits(product: Product, act: Callable[[str], object]) -> Iterator[None]:
    """Look at the server once a statement of the block waits for a lock, and then do something about that process of it."""

    def wait() -> None:
        for _ in poll(PATIENCE_S):
            if pid := product.server.asked("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                product.server.watch.look()
                act(pid.decode())
                return
            threading.Event().wait(0.01)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield
    finally:
        waiting.join()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _meet_others(product: Product, database: Database) -> None:
    """Statements that wait for another transaction, and are ended in every way."""
    held, patient = product.secrets.patient(100), product.secrets.patient(230)

    def update(tx: Repositories) -> None:
        tx.patients.update(held.patient_id, name=patient.name, address=patient.address)

    def limited(setting: str) -> Callable[[Repositories], None]:
        return lambda tx: update((tx.session.execute(text(f"SET LOCAL {setting} = '300ms'")), tx)[1])

    main, before = threading.get_ident(), signal.signal(signal.SIGALRM, _interrupt)
    with product.server.naive() as holder, holder.transaction():
        holder.execute("SELECT FROM patient_data WHERE patient_id = %s FOR UPDATE", [held.patient_id])
        product.fail(TransactionConflictError, database, limited("statement_timeout"), limited("lock_timeout"))
        with _when_it_waits(product, lambda pid: product.server.asked(f"SELECT pg_cancel_backend({pid})")):
            product.fail(TransactionConflictError, database, update)
        with _when_it_waits(product, lambda pid: product.server.asked(f"SELECT pg_terminate_backend({pid})")):
            product.fail(DatabaseUnavailableError, database, update)
        with _when_it_waits(product, lambda _: signal.pthread_kill(main, signal.SIGALRM)):
            product.fail(KeyboardInterrupt, database, update)
    signal.signal(signal.SIGALRM, before)


def _deadlock(product: Product, database: Database) -> None:
    meet, one, other = threading.Barrier(2), product.secrets.patient(105), product.secrets.patient(106)

    def update(first: Patient, second: Patient) -> None:
        try:
            with database.transaction() as tx:
                tx.patients.update(first.patient_id, name=first.name)
                meet.wait(PATIENCE_S)
                tx.patients.update(second.patient_id, name=second.name)
        except TransactionConflictError as error:
            product.printed.error(error)

    threads = [threading.Thread(target=update, args=order) for order in ((one, other), (other, one))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _stop_in_the_midst(product: Product, database: Database) -> None:
    """Transactions that end between statements, and bulk inserts of more than the server's work_mem that end in their midst."""

    def interrupted() -> Iterator[Patient]:
        yield from (product.secrets.patient(2000 + number) for number in range(150))
        raise KeyboardInterrupt

    def go_on(tx: Repositories) -> None:
        with product.failing(DuplicateError):
            tx.patients.add(product.secrets.patient(240, patient_id="PT-0100"))
        tx.patients.get("PT-0100")

    product.fail(KeyboardInterrupt, database, lambda tx: tx.patients.add_many(interrupted()))
    product.fail(TransactionFailedError, database, go_on)
    many = [product.secrets.patient(3000 + number, address={"note": product.secrets.text(100)}) for number in range(20)]
    with database.transaction() as first:
        assert isinstance(first.session, Session)
        first.patients.add(replace(many[-1], patient_id="PT-2999", id=uuid4()))
        with _when_it_waits(product, lambda _: first.session.commit()):
            product.fail(DuplicateError, database, lambda tx: tx.patients.add_many(many))
