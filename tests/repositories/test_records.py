"""Records show no patient's value."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import traceback

import pytest

from voiceassist_db import ClinicalNote, Patient
from voiceassist_db.errors import FieldNotLoadedError

PATIENT = Patient(patient_id="PT-001", ssn="SECRET", name="SECRET", address={"SECRET": "SECRET"})


def test_a_printed_record_shows_its_id_and_which_fields_are_set() -> None:
    """What is needed to find the patient is there; every value is masked, and absent ones are told apart."""
    assert f"{PATIENT!r}".startswith(
        "Patient(patient_id='PT-001', ssn=•••, mrn=None, name=•••, date_of_birth=None, address=•••"
    )
    assert "SECRET" not in f"{PATIENT} {PATIENT!s} {[PATIENT]} {ClinicalNote(patient=PATIENT.id, note='SECRET')}"


def test_a_traceback_with_locals_shows_no_value() -> None:
    """Tools that print local variables print the mask."""
    patient = PATIENT
    try:
        raise RuntimeError
    except RuntimeError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "ssn=•••" in shown
    assert "SECRET" not in shown
    assert patient.ssn == "SECRET"


def test_a_record_cannot_be_changed() -> None:
    """Changing a record in memory would look like changing the patient."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        PATIENT.ssn = "other"  # type: ignore[misc]  # on purpose
    with pytest.raises((AttributeError, TypeError)):
        PATIENT.surname = "other"  # type: ignore[attr-defined]  # on purpose


def test_ordinary_tools_work_on_records() -> None:
    """Copying, comparing and replacing work; a misspelt attribute is an ordinary AttributeError."""
    assert copy.copy(PATIENT) == PATIENT == copy.deepcopy(PATIENT)
    assert pickle.loads(pickle.dumps(PATIENT)) == PATIENT  # noqa: S301  # our own bytes
    assert dataclasses.replace(PATIENT, ssn=None).ssn is None
    assert not hasattr(PATIENT, "snn")


def _read(**values: object) -> Patient:
    """Return a patient as it is read with some fields only."""
    made = object.__new__(Patient)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def test_a_record_with_some_fields_can_be_compared_copied_and_pickled() -> None:
    """It is equal to its copies, and to no record with other fields or values; a copy has the same fields and refuses the others."""
    one = _read(id=PATIENT.id, patient_id="PT-001", name="SECRET")
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301  # our own bytes
        assert (one, hash(one)) == (other, hash(other))
        with pytest.raises(FieldNotLoadedError, match="add it to fields="):
            _ = other.ssn
    assert one != PATIENT
    assert one != _read(id=PATIENT.id, patient_id="PT-001", name="other")
    assert one != _read(id=PATIENT.id, patient_id="PT-001", name="SECRET", ssn=None)
    with pytest.raises(FieldNotLoadedError):
        dataclasses.replace(one, name="other")


def test_ids_are_made_in_order_of_time() -> None:
    """Ids are UUIDv7, so that new rows land at the end of the index."""
    ids = [Patient(patient_id="x").id for _ in range(100)]
    assert ids == sorted(ids)
    assert {each.version for each in ids} == {7}
