"""What becomes of each line: a new patient, one who is there, a change to one, a row without any value, or a broken line.

Owns the comparison with the patients who are already there. Earlier batches are visible to their own transaction, so duplicates
within the file are found in the same way, and no list of what was seen grows with it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

from voiceassist_db import blind_index
from voiceassist_db.database import Repositories
from voiceassist_db.importing.columns import Layout, differing
from voiceassist_db.importing.ids import Spellings, forms_stored_otherwise, others
from voiceassist_db.importing.report import BadLine, ImportReport
from voiceassist_db.models import PatientRow
from voiceassist_db.repositories import Patient
from voiceassist_db.sessions import connection_of

MAX_BAD_LINES: Final = 1000
"""Broken lines that a report holds; ``on_bad`` is told of all."""

OnBad = Callable[[BadLine], None]
Line = tuple[int, Patient | str | None, str]
"""The number of a line; its patient, what is wrong with it, or None where it has no value; and the id as the file spells it."""

_WHERE: Final = "the database or an earlier line has this patient with another"


class Update(enum.Enum):
    """What a line may change of a patient who is already there."""

    NONE = "none"
    EMPTY = "empty"
    ANY = "any"


class Tally:
    """Writes batches and counts what became of their lines.

    Args:
        layout: The file's columns.
        update: What a line may change of a patient who is already there.
        on_bad: Called with each broken line.
    """

    def __init__(self, layout: Layout, update: Update, on_bad: OnBad | None) -> None:
        self.lines = 0
        self.bad = 0
        self._layout = layout
        self._update = update
        self._on_bad = on_bad
        self._imported = 0
        self._unchanged = 0
        self._updated = 0
        self._empty = 0
        self._spellings = Spellings()
        self._stored_otherwise: frozenset[str] | None = None
        self._changes: Counter[str] = Counter()
        self._bad_lines: list[BadLine] = []

    def write(self, tx: Repositories, batch: list[Line], *, meanwhile: Callable[[], object]) -> None:
        """Add a batch's new patients and change those who are there, after a look at who is there and whose MRNs are taken."""
        if self._stored_otherwise is None:
            self._stored_otherwise = forms_stored_otherwise(connection_of(tx.session, PatientRow))
        patients = [patient for _, patient, _ in batch if isinstance(patient, Patient)]
        work = _Batch(tx, self._layout, self._there(tx, batch, patients), self._stored_otherwise)
        work.owners = _owners(tx, [each.mrn for each in patients if each.mrn and work.is_new_mrn(each)])
        for line, patient, spelled in batch:
            self.lines += 1
            if patient is None:
                self._empty += 1
            elif isinstance(patient, str):
                self._broken(line, patient)
            elif known := work.there.get(patient.patient_id):
                self._again(work, line, patient, known)
            elif problem := work.problem(patient, spelled):
                self._broken(line, problem)
            else:
                work.add(patient)
        self._imported += tx.patients._add_many(list(work.new.values()), meanwhile)  # noqa: SLF001  # nobody else may

    def _there(self, tx: Repositories, batch: list[Line], patients: list[Patient]) -> dict[str, Any]:
        """Return the patients who are there already, and those whose ids are other spellings of the batch's, by id."""
        asked = {each.patient_id for each in patients}
        other = self._spellings.to_ask(
            (patient.patient_id, spelled) for _, patient, spelled in batch if isinstance(patient, Patient)
        )
        there: dict[str, Any] = dict(tx.patients.get_many(asked | other, fields=self._layout.fields))
        self._spellings.found(there.keys() - asked)
        if self._update is not Update.NONE:
            changed = {
                each.patient_id
                for each in patients
                if (known := there.get(each.patient_id)) and self._changes_of(each, known)
            }
            # Read again under a lock: what another transaction has written meanwhile is no empty field any more.
            there |= tx.patients.get_many(changed, fields=self._layout.fields, for_update=True)
        return there

    def _changes_of(self, patient: Patient, known: Any) -> dict[str, Any]:
        """Return the fields that a line would change, and their values, as far as it may."""
        return {
            name: value
            for name in differing(self._layout.fields, patient, known)
            if (value := getattr(patient, name)) is not None
            and (self._update is Update.ANY or getattr(known, name) is None)
        }

    def _again(self, work: _Batch, line: int, patient: Patient, known: Any) -> None:
        """Compare a line with the patient who is there already, and change that one as far as it may."""
        fields = differing(self._layout.fields, patient, known)
        if not fields:
            self._unchanged += 1
            return
        changes = self._changes_of(patient, known)
        if self._update is Update.NONE:
            hint = f"; --update would fill {', '.join(changes)}" if changes else ""
            self._broken(line, f"duplicate patient_id: {_WHERE} {', '.join(fields)}{hint}")
            return
        kept = [name for name in fields if name not in changes and getattr(patient, name) is not None]
        if kept:
            self._broken(line, f"duplicate patient_id: {_WHERE} {', '.join(kept)}; --overwrite would replace it")
        elif not changes:
            self._unchanged += 1
        elif "mrn" in changes and (problem := work.mrn_problem(patient)):
            self._broken(line, problem)
        else:
            work.change(patient.patient_id, known, changes)
            self._updated += 1
            self._changes.update(changes.keys())

    def _broken(self, line: int, problem: str) -> None:
        bad = BadLine(line, problem)
        self.bad += 1
        if len(self._bad_lines) < MAX_BAD_LINES:
            self._bad_lines.append(bad)
        if self._on_bad is not None:
            self._on_bad(bad)

    def report(self, *, committed: bool) -> ImportReport:
        """Return the result."""
        return ImportReport(
            format=self._layout.format,
            lines=self.lines,
            imported=self._imported if committed else 0,
            unchanged=self._unchanged,
            updated=self._updated if committed else 0,
            changes=dict(self._changes),
            empty=self._empty,
            bad=self.bad,
            bad_lines=tuple(self._bad_lines),
            columns=self._layout.columns,
            ignored_columns=self._layout.ignored_columns,
            missing_columns=self._layout.missing_columns,
            committed=committed,
        )


class _Batch:
    """The lines that are written together.

    Attributes:
        there: The patients who are there already, by id; those of the batch come to it.
        owners: Who has a medical record number: id by its normal form.
        new: The patients to be added, by id.
    """

    def __init__(
        self, tx: Repositories, layout: Layout, there: dict[str, Any], stored_otherwise: frozenset[str]
    ) -> None:
        self.there = there
        self.owners: dict[str, str] = {}
        self.new: dict[str, Patient] = {}
        self._tx = tx
        self._layout = layout
        self._folded: dict[str, str] = {}
        self._known_ids = set(there)
        self._stored_otherwise = stored_otherwise

    def is_new_mrn(self, patient: Patient) -> bool:
        """Say whether the medical record number of a line's patient may be another's."""
        known = self.there.get(patient.patient_id)
        return known is None or known.mrn != patient.mrn

    def problem(self, patient: Patient, spelled: str) -> str | None:
        """Say why a patient who is not there cannot be added."""
        form = patient.patient_id
        is_known = self._known_ids and not self._known_ids.isdisjoint(others(form, spelled))
        is_known = is_known or form.casefold() in self._stored_otherwise
        if is_known or self._folded.get(form.casefold(), form) != form:
            return (
                "patient_id is another spelling of one that the database or an earlier line has: case or blanks differ"
            )
        return self.mrn_problem(patient) if patient.mrn else None

    def mrn_problem(self, patient: Patient) -> str | None:
        """Say whether another patient has the medical record number; else it is this one's from now on."""
        if self.owners.setdefault(blind_index.mrn(patient.mrn or ""), patient.patient_id) != patient.patient_id:
            return "duplicate mrn: another patient has it, in the database or on an earlier line"
        return None

    def add(self, patient: Patient) -> None:
        """Add a patient, with the batch."""
        form = patient.patient_id
        self.new[form] = self.there[form] = patient
        self._folded[form.casefold()] = form

    def change(self, patient_id: str, known: Any, changes: dict[str, Any]) -> None:
        """Change a patient who is there, or is to be added with this batch."""
        if changes.get("mrn") and known.mrn:  # the former number is free from now on
            taken = blind_index.mrn(changes["mrn"])
            self.owners = {mrn: owner for mrn, owner in self.owners.items() if owner != patient_id or mrn == taken}
        if patient_id in self.new:
            self.add(replace(self.new[patient_id], **changes))
            return
        self._tx.patients.update(patient_id, **changes)
        values = {name: getattr(known, name) for name in self._layout.fields}
        self.there[patient_id] = SimpleNamespace(**values | changes)


def _owners(tx: Repositories, mrns: list[str]) -> dict[str, str]:
    """Return who has these medical record numbers: patient_id by normalised MRN."""
    found = tx.patients.with_mrns(mrns, fields=["mrn"])
    return {blind_index.mrn(each.mrn): each.patient_id for each in found if each.mrn}
