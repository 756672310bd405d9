"""Records go in and come out equal; what cannot be is refused by its own error, and nothing half-done is left."""

from __future__ import annotations

import gc
import inspect
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from uuid_utils.compat import uuid7

from voiceassist_db import ClinicalNote, Database, Patient, Repositories, blind_index
from voiceassist_db.errors import (
    ConstraintError,
    DuplicateError,
    FieldNotLoadedError,
    NotFoundError,
)
from voiceassist_db.models import PatientRow
from voiceassist_db.repositories import PatientRepository, Record, Repository, bulk, record

ALICE = Patient(
    patient_id="PT-001",
    ssn="123-45-6789",
    mrn="MRN-12345",
    name="José Núñez",
    date_of_birth=date(1980, 2, 29),
    address={"street": "1 Main St", "city": "Española", "tags": [1, None, {"é": True}]},
)
BARE = Patient(patient_id="PT-002")

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def is_searchable(name: str) -> bool:
    """Say whether anything is left of a name when white space and what cannot be seen is left out."""
    try:
        return bool(blind_index.name(name))
    except ValueError:
        return False


NAMES = TEXT.filter(is_searchable)
PATIENTS = st.builds(
    Patient,
    patient_id=st.uuids().map(str),
    ssn=st.none() | st.from_regex(r"[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}", fullmatch=True),
    mrn=st.none() | st.uuids().map(str),
    name=st.none() | NAMES,
    date_of_birth=st.none() | st.dates(),
    address=st.none() | st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT)),
)


@pytest.fixture
def tx(database: Database) -> Iterator[Repositories]:
    """Repositories in a transaction that is rolled back."""
    with database.engine.connect() as connection, connection.begin() as transaction:
        yield database.using(connection)
        transaction.rollback()


def test_a_record_comes_back_equal(tx: Repositories) -> None:
    """Every field survives, accents and nested JSON included; the database adds the dates."""
    tx.patients.add(ALICE)
    read = tx.patients.get("PT-001")
    assert read == ALICE
    assert read.created_at is not None
    assert read.updated_at == read.created_at


def test_absent_fields_stay_absent(tx: Repositories) -> None:
    """A record with nothing but its key has NULL in every other column, and reads back as None."""
    tx.patients.add(BARE)
    assert tx.patients.get("PT-002") == BARE
    row = tx.session.execute(text("SELECT * FROM patient_data")).mappings().one()
    assert {name for name, value in row.items() if value is not None} == {
        "id",
        "patient_id",
        "key_version",
        "created_at",
        "updated_at",
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patients=st.lists(PATIENTS, max_size=20, unique_by=(lambda each: each.patient_id, lambda each: each.mrn or each.id))
)
def test_bulk_and_single_writes_store_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch, patients: list[Patient]
) -> None:
    """Whatever patients there are, adding them in bulk or one by one reads back equal, by get, get_many and pages."""
    monkeypatch.setattr(bulk, "BATCH_ROWS", 7)
    for add in ("bulk", "single"):
        with database.engine.connect() as connection, connection.begin() as transaction:
            tx = database.using(connection)
            if add == "bulk":
                assert tx.patients.add_many(iter(patients)) == len(patients)
            else:
                for each in patients:
                    tx.patients.add(each)
            wanted = {each.patient_id: each for each in patients}
            assert wanted == tx.patients.get_many([*wanted, "nobody"])
            assert wanted == {key: tx.patients.get(key) for key in wanted}
            assert sorted(patients, key=lambda each: each.id) == _all_pages(tx.patients, 6)
            transaction.rollback()


def _all_pages(patients: PatientRepository, limit: int) -> list[Patient]:
    found: list[Patient] = []
    while page := patients.page(after=found[-1] if found else None, limit=limit):
        assert len(page) <= limit
        found += page
    return found


def test_only_the_fields_asked_for_are_decrypted(tx: Repositories) -> None:
    """A record read with some fields gives those, and refuses the others rather than calling them None."""
    tx.patients.add(ALICE)
    read = tx.patients.get("PT-001", fields=["name"])
    assert read.name == ALICE.name
    assert read.patient_id == "PT-001"
    with pytest.raises(FieldNotLoadedError, match="read without 'ssn'"):
        _ = read.ssn
    # A damaged value that was not asked for does not matter: it is not touched.
    tx.session.execute(text("UPDATE patient_data SET ssn_encrypted = overlay(ssn_encrypted placing '\\x00' from 30)"))
    assert tx.patients.get("PT-001", fields=["name"]).name == ALICE.name
    assert tx.patients.get("PT-001", fields=[]).id == ALICE.id


def test_an_unknown_field_is_refused(tx: Repositories) -> None:
    """A misspelt field is an error in every method that takes fields, not a silently empty record."""
    attempts: list[Callable[[], object]] = [
        lambda: tx.patients.get("PT-001", fields=["snn"]),
        lambda: tx.patients.page(fields=["ssn_encrypted"]),
        lambda: tx.patients.find_by_mrn("MRN-1", fields=["snn"]),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"has no field ss?n.*\. Patient has address, created_at,.* ssn"):
            attempt()
    for changes in ({"snn": "1"}, {"id": uuid4()}, {"key_version": 2}, {"created_at": None}, {}):
        with pytest.raises(
            ValueError,
            match=r"cannot change.*\. update\(\) changes address, date_of_birth, mrn, name, patient_id, ssn$",
        ):
            tx.patients.update("PT-001", **changes)


@pytest.mark.parametrize("given", ["x", None, {"patient_id": "PT-001"}, SimpleNamespace(patient_id="PT-001")])
def test_what_is_no_record_is_refused_by_name(tx: Repositories, given: Any) -> None:
    """The error says which class is expected, and not which attribute something else lacks; the value is not shown."""
    told = f"^patient_data stores Patient, not {type(given).__name__}: give records of that class$"
    for attempt in (lambda: tx.patients.add(given), lambda: tx.patients.add_many([BARE, given])):
        with pytest.raises(ValueError, match=told):
            attempt()
    if given is not None:
        with pytest.raises(
            ValueError, match=f"^after is the last record of the page before, a Patient, not {type(given).__name__}$"
        ):
            tx.patients.page(after=given)


def test_one_key_is_no_list_of_keys(tx: Repositories) -> None:
    """Its letters would be looked for one by one, and nobody found."""
    with pytest.raises(ValueError, match=r"^get_many takes a list of keys; get\(\) reads one row$"):
        tx.patients.get_many("PT-001")


@pytest.mark.parametrize("ssn", ["123-45-6789", "123456789", " 123 45 6789 ", "１２３-４５-６７８９"])
def test_an_ssn_is_found_in_any_spelling(tx: Repositories, ssn: str) -> None:
    """Hyphens, spaces and full-width digits find the same patients, all of those that share the number."""
    twin = replace(BARE, ssn="123 45 6789")
    tx.patients.add_many([ALICE, twin, Patient(patient_id="PT-003", ssn="123-45-6780")])
    assert {"PT-001", "PT-002"} == {each.patient_id for each in tx.patients.find_by_ssn(ssn)}


def test_names_and_record_numbers_are_found(tx: Repositories) -> None:
    """Case, composition of accents and runs of spaces do not matter to a name, case and spaces not to a number."""
    tx.patients.add_many([ALICE, BARE])
    assert [ALICE] == tx.patients.find_by_name("  jose\u0301   NU\u0301n\u0303EZ ")
    assert ALICE == tx.patients.find_by_mrn("mrn - 12345".replace(" - ", "-"))
    assert tx.patients.find_by_mrn("MRN-99999") is None
    assert tx.patients.find_by_name("Jose Nunez") == []
    found = tx.patients.find_by_mrn("MRN-12345", fields=["name"])
    assert found is not None
    assert found.name == ALICE.name
    with pytest.raises(FieldNotLoadedError):
        _ = found.mrn


def test_many_record_numbers_are_found_at_once(tx: Repositories) -> None:
    """One statement finds the patients of many numbers, in any spelling, and none for numbers that nobody has."""
    tx.patients.add_many([ALICE, replace(BARE, mrn="M-2"), Patient(patient_id="PT-003", mrn="M-3")])
    found = tx.patients.with_mrns(["mrn-12345", "m-2", "M-404"], fields=["mrn"])
    assert {"PT-001", "PT-002"} == {each.patient_id for each in found}
    assert tx.patients.with_mrns([]) == []


def test_a_token_alone_does_not_make_a_match(tx: Repositories) -> None:
    """Somebody who puts one patient's token on another's row does not make that one appear in a search."""
    tx.patients.add_many([ALICE, replace(BARE, ssn="999-99-9999")])
    tx.session.execute(
        text("UPDATE patient_data SET ssn_index = (SELECT ssn_index FROM patient_data WHERE patient_id = 'PT-001')")
    )
    assert ["PT-001"] == [each.patient_id for each in tx.patients.find_by_ssn("123-45-6789")]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("ssn", "12-34", "ssn must have 9 digits"),
        ("ssn", 123456789, "ssn must be a str"),
        ("mrn", "  ", "mrn must not be empty"),
        ("name", "SECRET\x00", "name holds a NUL"),
        ("date_of_birth", "1980-01-01", "date_of_birth must be a datetime.date"),
        ("address", {"SECRET": {1}}, "address is not a valid json"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(
    tx: Repositories, field: str, value: Any, problem: str
) -> None:
    """Each way of writing refuses a bad value with the field's name, without the value, and leaves the row alone."""
    tx.patients.add(ALICE)
    bad: Patient = replace(BARE, **{field: value})
    for attempt in (
        lambda: tx.patients.add(bad),
        lambda: tx.patients.add_many([bad]),
        lambda: tx.patients.update("PT-001", **{field: value}),
    ):
        with pytest.raises(ValueError, match=problem) as caught:
            attempt()
        assert "SECRET" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert [ALICE] == tx.patients.page()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (replace(BARE, patient_id="PT-001"), "patient_id"),
        (replace(BARE, mrn="mrn-12345"), "mrn"),
        (replace(BARE, id=ALICE.id), "id"),
    ],
)
def test_duplicates_are_refused_by_name(database: Database, other: Patient, field: str) -> None:
    """The same external id, record number (in another spelling) or id says which, and shows no value."""
    with database.transaction() as tx:
        tx.patients.add(ALICE)
    for add in ("add", "add_many"):
        with pytest.raises(DuplicateError) as caught, database.transaction() as tx:
            tx.patients.add(other) if add == "add" else tx.patients.add_many([other])
        assert (caught.value.table, caught.value.field) == ("patient_data", field)
        assert "12345" not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None


def test_an_update_changes_what_it_names_and_nothing_else(tx: Repositories) -> None:
    """Changed fields read back and are found by their new value; the others' ciphertexts are the same bytes."""
    tx.patients.add(ALICE)
    select = text("SELECT name_encrypted, name_index, ssn_index, updated_at > created_at FROM patient_data")
    before = tx.session.execute(select).one()
    tx.session.execute(text("UPDATE patient_data SET created_at = created_at - interval '1 day'"))
    tx.patients.update("PT-001", ssn="999-99-9999", date_of_birth=None, patient_id="PT-100")
    after = tx.session.execute(select).one()
    changed = replace(ALICE, ssn="999-99-9999", date_of_birth=None, patient_id="PT-100")
    assert changed == tx.patients.get("PT-100")
    assert [changed] == tx.patients.find_by_ssn("999999999")
    assert tx.patients.find_by_ssn("123-45-6789") == []
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    assert after[3]


def test_what_is_not_there_is_an_error(tx: Repositories) -> None:
    """Reading, changing and deleting a row that does not exist says which, by the id that was asked for."""
    for attempt in (
        lambda: tx.patients.get("PT-404"),
        lambda: tx.patients.update("PT-404", name="X"),
        lambda: tx.patients.delete("PT-404"),
    ):
        with pytest.raises(NotFoundError, match="PT-404") as caught:
            attempt()
        assert caught.value.row_id == "PT-404"


def test_a_deleted_row_is_gone(tx: Repositories) -> None:
    """Deleting removes that row only."""
    tx.patients.add_many([ALICE, BARE])
    tx.patients.delete("PT-001")
    assert [BARE] == tx.patients.page()


def test_a_patient_with_notes_is_not_deleted(database: Database) -> None:
    """The foreign key keeps a patient whose notes exist, and a note without its patient out."""
    with database.transaction() as tx:
        tx.patients.add(ALICE)
        tx.clinical_notes.add(ClinicalNote(patient=ALICE.id, note="SECRET"))
    with pytest.raises(ConstraintError, match="fk_clinical_notes_patient"), database.transaction() as tx:
        tx.patients.delete("PT-001")
    with pytest.raises(ConstraintError) as caught, database.transaction() as tx:
        tx.clinical_notes.add(ClinicalNote(patient=uuid4(), note="SECRET"))
    assert "SECRET" not in str(caught.value)


def test_notes_of_a_patient_come_in_pages(tx: Repositories) -> None:
    """Notes are read by patient, oldest first, a page at a time, and long ones survive exactly."""
    tx.patients.add_many([ALICE, BARE])
    notes = [ClinicalNote(patient=ALICE.id, note=f"{n}\r\n" + "é" * n * 1000, metadata={"n": n}) for n in range(7)]
    assert tx.clinical_notes.add_many([*notes, ClinicalNote(patient=BARE.id, note="")]) == 8
    first = tx.clinical_notes.of_patient(ALICE.id, limit=5)
    assert notes == first + tx.clinical_notes.of_patient(ALICE.id, limit=5, after=first[-1])
    wanted = {(each.patient, each.id): each for each in notes[:3]}
    assert wanted == tx.clinical_notes.get_many(wanted)
    assert notes[6] == tx.clinical_notes.get(ALICE.id, notes[6].id)
    tx.clinical_notes.update(ALICE.id, notes[6].id, note="short")
    assert tx.clinical_notes.get(ALICE.id, notes[6].id).note == "short"
    with pytest.raises(ValueError, match="named by patient, id"):
        tx.clinical_notes.get(ALICE.id)


def test_a_failed_bulk_add_leaves_nothing(database: Database) -> None:
    """One duplicate among thousands undoes the whole transaction."""
    patients = [Patient(patient_id=f"P{n}", mrn=f"M{n % 2500}") for n in range(3000)]
    with pytest.raises(DuplicateError), database.transaction() as tx:
        tx.patients.add_many(patients)
    with database.transaction() as tx:
        assert tx.patients.page() == []


@pytest.mark.parametrize("position", [1, 4, 9])
def test_a_value_that_cannot_be_stored_ends_a_bulk_add(
    tx: Repositories, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """In whichever batch it stands: the error does not hold it, the batches before are written, the transaction goes on."""
    monkeypatch.setattr(bulk, "FIRST_BATCH_ROWS", 3)
    monkeypatch.setattr(bulk, "BATCH_ROWS", 3)
    patients = [Patient(patient_id=f"P{n}", ssn=f"9{n:08d}") for n in range(10)]
    patients[position] = replace(patients[position], ssn="SECRET")
    with pytest.raises(ValueError, match="ssn must have 9 digits") as caught:
        tx.patients.add_many(patients)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    written = [each.patient_id for each in tx.patients.page()]
    assert written == [each.patient_id for each in patients[: position // 3 * 3]]


@pytest.mark.parametrize("as_generator", [False, True])
def test_what_is_done_meanwhile_is_done_while_the_server_works(
    database: Database, monkeypatch: pytest.MonkeyPatch, as_generator: bool
) -> None:
    """Once, when the last records are sent and before they are written: here they wait for somebody else's row."""
    monkeypatch.setattr(bulk, "FIRST_BATCH_ROWS", 2)
    monkeypatch.setattr(bulk, "BATCH_ROWS", 2)
    monkeypatch.setattr(bulk, "GROUP_BATCHES", 2)
    patients = [Patient(patient_id=f"P{n}") for n in range(7)]
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%'")
    seen: list[int] = []
    with database.engine.connect() as connection, database.transaction() as other:
        other.patients.add(Patient(patient_id=patients[-1].patient_id))

        def meanwhile() -> None:
            give_up = time.monotonic() + 300
            while not (found := connection.scalar(waiting)) and time.monotonic() < give_up:
                connection.rollback()
                time.sleep(0.01)
            seen.append(found)
            other.session.rollback()

        with database.transaction() as tx:
            tx.session.execute(text("SET LOCAL lock_timeout = '20s'"))
            records = iter(patients) if as_generator else patients
            assert tx.patients._add_many(records, meanwhile) == 7
            assert tx.patients._add_many([], meanwhile) == 0
    assert seen == [1]


def test_records_may_be_read_from_the_same_session(tx: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that reads what it adds to may do so between any two records."""
    monkeypatch.setattr(bulk, "BATCH_ROWS", 3)
    monkeypatch.setattr(bulk, "FIRST_BATCH_ROWS", 3)
    tx.patients.add(replace(ALICE, mrn=None))

    def copies() -> Iterator[Patient]:
        for n in range(10):
            yield replace(
                tx.patients.get(ALICE.patient_id), id=uuid7(), created_at=None, updated_at=None, patient_id=f"P{n}"
            )

    assert tx.patients.add_many(copies()) == 10
    assert {each.name for each in tx.patients.page()} == {ALICE.name}


def test_a_page_needs_a_limit_of_one_or_more(tx: Repositories) -> None:
    """A limit of zero would look like the end of the table."""
    with pytest.raises(ValueError, match="limit"):
        tx.patients.page(limit=0)


def test_a_record_of_another_class_is_refused(tx: Repositories) -> None:
    """A repository stores its own records only."""
    with pytest.raises(ValueError, match="stores Patient"):
        tx.patients.add(ClinicalNote(patient=ALICE.id, note="SECRET"))  # type: ignore[arg-type]  # on purpose


def test_a_record_that_would_show_its_values_is_refused() -> None:
    """A plain dataclass, whose repr prints everything, cannot become a repository's record."""
    from dataclasses import dataclass

    from voiceassist_db.models import PatientRow

    @dataclass
    class Leaky(Record):
        ssn: str

    with pytest.raises(TypeError, match="made by @record"):

        class _LeakyRepository(Repository[Leaky]):
            model = PatientRow
            record = Leaky


def test_a_record_must_have_the_tables_fields() -> None:
    """A field that the record lacks, or has too much, is found when the class is made and not when a patient is read."""
    from voiceassist_db.models import PatientRow

    @record
    class Short(Record):
        patient_id: str
        surname: str

    with pytest.raises(TypeError, match="do not have the same fields: .*address.*surname"):

        class _ShortRepository(Repository[Short]):
            model = PatientRow
            record = Short


def test_add_many_calls_nothing_that_could_use_its_transaction(tx: Repositories) -> None:
    """What is done while the server works would wait for the connection that waits for it: only the importer may."""
    assert list(inspect.signature(PatientRepository.add_many).parameters) == ["self", "records"]


@pytest.mark.wide
@pytest.mark.parametrize("kind", [Patient, PatientRow, "patients"])
def test_what_is_no_repository_is_named(tx: Repositories, kind: Any) -> None:
    with pytest.raises(ValueError, match="is no repository: give its Repository class"):
        tx.repository(kind)


def test_a_finder_of_an_application_s_own_uses_the_session(tx: Repositories) -> None:
    """As its methods do: the repository says in which session it works."""

    class Counting(PatientRepository):
        def there_are(self) -> int:
            return self.session.execute(text("SELECT count(*) FROM patient_data")).scalar_one()  # type: ignore[no-any-return]

    before = tx.repository(Counting).there_are()
    tx.patients.add(Patient(patient_id="PT-counted"))
    assert tx.repository(Counting).there_are() == before + 1


def test_repository_classes_that_nobody_uses_are_freed(tx: Repositories) -> None:
    """Also after they have read and changed some fields; a thousand of them are made in a loop. What they declare goes with the keys."""
    tx.patients.add(Patient(patient_id="PT-001", name="Zoë"))
    made: list[weakref.ref[Any]] = []
    for number in range(1000):

        class Made(Repository[Patient]):
            model, record, lookup = PatientRow, Patient, ("patient_id",)

        if number % 100 == 0:
            repository = Made(tx.session, tx.patients._keys)
            repository.update("PT-001", name="Zoë")
            assert repository.get("PT-001", fields=["name"]).name == "Zoë"
            del repository
        made += [weakref.ref(Made), weakref.ref(Made._table)]
        del Made
    tx.patients._keys.forget()
    tx.patients.get("PT-001")
    gc.collect()
    assert [each for each in made if each() is not None] == []
