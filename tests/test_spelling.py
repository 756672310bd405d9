"""A patient has one id, however somebody spells it: the rule in one place, and what the API makes of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import text

from voiceassist_db import Database, Patient
from voiceassist_db.errors import NotFoundError
from voiceassist_db.spelling import as_seen, patient_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SPELLINGS = {
    "a blank after it": "PS-1 ",
    "a no-break space before it": "\u00a0 PS-1",
    "a tab and a line break": "\tPS-1\r\n",
    "a zero-width space": "PS\u200b-1",
    "a byte order mark": "\ufeffPS-1",
    "a no-break hyphen": "PS\u20111",
    "a dash": "PS\u20131",
    "full-width letters": "ＰＳ－１",
    "a soft hyphen": "P\u00adS-1",
    "a variation selector": "PS-1\ufe0f",
}


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_ids_that_look_alike_have_one_form(spelled: str) -> None:
    """Blanks around it, characters that show nothing and the forms of Unicode make no other id."""
    assert patient_id(spelled) == "PS-1"


@pytest.mark.parametrize(("one", "other"), [("José", "Jose\u0301"), ("A 1", "A\u00a0\u00a01"), ("Å1", "\u212b1")])
def test_composed_and_decomposed_ids_have_one_form(one: str, other: str) -> None:
    """A letter with its accent is one character or two; a blank inside an id is one blank."""
    assert patient_id(one) == patient_id(other) == one


def test_case_makes_two_ids() -> None:
    """Other systems give out ids that differ in case only."""
    assert patient_id("ps-1") != patient_id("PS-1")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("", "is missing"),
        (" \u00a0\t", "is missing"),
        ("\u200b", "is missing"),
        ("SECRET\x1b[2J", "holds a control character"),
        ("SECRET\x9b", "holds a control character"),
        ("SECRET\x7f", "holds a control character"),
        ("SECRET" * 171, "is longer than 1,024 bytes"),
        ("é" * 513, "is longer than 1,024 bytes"),
    ],
)
def test_what_is_no_id_is_refused(bad: str, problem: str) -> None:
    """The message says what is wrong, and not with which id."""
    with pytest.raises(ValueError, match=problem) as caught:
        patient_id(bad)
    assert "SECRET" not in str(caught.value)


@given(TEXT)
@example("\u0345\u200d\u0301 \u0345")
@example("\u1e9b\u0323")
def test_a_form_is_its_own_and_shows_all_that_it_holds(value: str) -> None:
    """Whatever is accepted has no outer blank, no double one, nothing unseen; and taking its form again changes nothing."""
    try:
        form = patient_id(value)
    except ValueError:
        return
    assert patient_id(form) == form == " ".join(form.split())
    assert unicodedata.is_normalized("NFKC", form)
    assert not [each for each in form if unicodedata.category(each) in {"Cc", "Cf"}]


@given(TEXT, TEXT)
@example("a b", "a\u00a0b")
def test_two_ids_have_one_form_only_if_they_look_alike(one: str, other: str) -> None:
    """The form keeps every visible character in its order: only blanks, compatibility forms and unseen ones may differ."""
    try:
        same = patient_id(one) == patient_id(other)
    except ValueError:
        return
    assert same is (" ".join(as_seen(one).split()) == " ".join(as_seen(other).split()))


# --- the API ---------------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Database, Patient], object]] = {
    "add": lambda database, patient: in_transaction(database, lambda tx: tx.patients.add(patient)),
    "add_many": lambda database, patient: in_transaction(database, lambda tx: tx.patients.add_many([patient])),
    "update": lambda database, patient: in_transaction(
        database, lambda tx: tx.patients.update("PT-1", patient_id=patient.patient_id)
    ),
}


def in_transaction(database: Database, work: Callable[..., object]) -> None:
    """Do something in a transaction of its own."""
    with database.transaction() as tx:
        work(tx)


@pytest.fixture
def ward(database: Database) -> Database:
    """A database with two patients."""
    with database.transaction() as tx:
        tx.patients.add_many([Patient(patient_id="PS-1", name="Ana"), Patient(patient_id="PT-1", name="Bo")])
    return database


def ids(database: Database) -> set[str]:
    """Return the ids of all patients."""
    with database.transaction() as tx:
        return {each.patient_id for each in tx.patients.page()}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_no_new_id_has_another_form(ward: Database, write: Callable[..., object]) -> None:
    """Each way of writing refuses it, names the column, and holds the value nowhere."""
    for spelled in (*SPELLINGS.values(), "", " ", "PS-2\x1b[2J", "x" * 1025):
        with pytest.raises(ValueError, match=r"^patient_id ") as caught:
            write(ward, Patient(patient_id=spelled))
        assert "PS" not in f"{caught.value} {caught.value.__context__}"
    assert ids(ward) == {"PS-1", "PT-1"}


def test_another_spelling_finds_nobody(ward: Database) -> None:
    """Reading, changing and deleting take an id exactly: never another patient, and no change to one."""
    for spelled in SPELLINGS.values():
        with ward.transaction() as tx:
            assert tx.patients.get_many([spelled]) == {}
            for attempt in (
                partial(tx.patients.get, spelled),
                partial(tx.patients.update, spelled, name="Other"),
                partial(tx.patients.delete, spelled),
            ):
                with pytest.raises(NotFoundError):
                    attempt()
            assert tx.patients.get("PS-1").name == "Ana"


def test_an_id_of_an_earlier_version_stays_reachable(ward: Database) -> None:
    """A row with another spelling beside the right one is read, changed, renamed and deleted by its own id."""
    for spelled in (*SPELLINGS.values(), "", "PS-1\x1b[2J"):
        with ward.transaction() as tx:
            tx.patients.add(Patient(patient_id="OLD", name="Cy", mrn="M-1"))
            rename = text("UPDATE patient_data SET patient_id = :spelled WHERE patient_id = 'OLD'")
            tx.session.execute(rename, {"spelled": spelled})
        with ward.transaction() as tx:
            old = tx.patients.get(spelled)
            assert (old.patient_id, old.name) == (spelled, "Cy")
            assert tx.patients.get_many([spelled, "PS-1"]) == {spelled: old, "PS-1": tx.patients.get("PS-1")}
            assert tx.patients.find_by_mrn("M-1") == old
            tx.patients.update(spelled, name="Cyd")
            tx.patients.update(spelled, patient_id="PS-2")
            assert tx.patients.get("PS-2") == replace(old, patient_id="PS-2", name="Cyd")
            tx.patients.delete("PS-2")
    assert ids(ward) == {"PS-1", "PT-1"}
