"""Patients and their notes."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from uuid import UUID

from voiceassist_db.models import ClinicalNoteRow, PatientRow
from voiceassist_db.repositories.queries import PAGE_ROWS
from voiceassist_db.repositories.records import ClinicalNote, Patient
from voiceassist_db.repositories.repository import Repository
from voiceassist_db.spelling import require_patient_id


class PatientRepository(Repository[Patient]):
    """Patients, named by their external ``patient_id``.

    A new ``patient_id`` must have the form of ``voiceassist_db.spelling``, so that ids which look alike are one patient. Reading,
    changing and deleting take an id exactly as it is stored: a row of an earlier version is named by the id that it has, and
    ``update(old, patient_id=new)`` gives it another.
    """

    model = PatientRow
    record = Patient
    lookup = ("patient_id",)
    forms = MappingProxyType({"patient_id": require_patient_id})

    def find_by_ssn(self, ssn: str, *, fields: Iterable[str] | None = None) -> list[Patient]:
        """Return the patients with a social security number, in any spelling; real exports have duplicates.

        Args:
            ssn: The number.
            fields: As for :meth:`get`.

        Raises:
            ValueError: It is no number of nine digits.
        """
        return self.find(ssn=ssn, fields=fields)

    def find_by_mrn(self, mrn: str, *, fields: Iterable[str] | None = None) -> Patient | None:
        """Return the patient with a medical record number, or None.

        Args:
            mrn: The number, in any spelling.
            fields: As for :meth:`get`.

        Raises:
            ValueError: It is no such number.
        """
        return next(iter(self.find(mrn=mrn, fields=fields)), None)

    def with_mrns(self, mrns: Iterable[str], *, fields: Iterable[str] | None = None) -> list[Patient]:
        """Return the patients who have one of these medical record numbers, in one statement.

        Args:
            mrns: The numbers, in any spelling.
            fields: As for :meth:`get`.

        Raises:
            ValueError: One is no such number.
        """
        return self.find(mrn=list(mrns), fields=fields)

    def find_by_name(self, name: str, *, fields: Iterable[str] | None = None) -> list[Patient]:
        """Return the patients with a full name: ``José`` alone does not find ``José Núñez``.

        Case, runs of white space, the kind of dash and the kind of apostrophe do not matter. Accents do: ``José`` is not ``Jose``. A name
        with more than two apostrophes is found if all of them are the same sign, or if it is spelled as it was stored.

        Args:
            name: The whole name.
            fields: As for :meth:`get`.

        Raises:
            ValueError: It is empty.
        """
        return self.find(name=name, fields=fields)


class ClinicalNoteRepository(Repository[ClinicalNote]):
    """Clinical notes, named by their patient's ``id`` and their own."""

    model = ClinicalNoteRow
    record = ClinicalNote

    def of_patient(
        self,
        patient: UUID,
        *,
        after: ClinicalNote | None = None,
        limit: int = PAGE_ROWS,
        fields: Iterable[str] | None = None,
    ) -> list[ClinicalNote]:
        """Return a patient's notes, oldest first; the next page begins after the last note of this one.

        Args:
            patient: The patient's ``id``.
            after: The last note of the page before; None for the first page.
            limit: Most notes to return.
            fields: As for :meth:`get`.
        """
        return self._page({"patient": patient}, after, limit, fields)
