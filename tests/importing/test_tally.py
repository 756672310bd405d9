"""A line adds a patient, leaves one alone, completes one or is broken; never does it change what it was not told to change."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from voiceassist_db import Database, Patient
from voiceassist_db.importing import ImportReport, Reading, Update, ids, import_patients, patients

pytestmark = pytest.mark.wide

CASES = Path(__file__).parent / "cases"
HEADER = "patient_id,mrn,name"
AGAIN = "duplicate patient_id: the database or an earlier line has this patient with another"
State = dict[str, tuple[str | None, str | None]]


def load(database: Database, *lines: str, update: Update = Update.NONE, header: str = HEADER) -> ImportReport:
    """Import a file of these lines, and skip the broken ones."""
    content = "\n".join([header, *lines, ""]).encode()
    return import_patients(database, io.BytesIO(content), update=update, skip_bad=True)


def state(database: Database) -> State:
    """Return the record number and the name of every patient, by id."""
    with database.transaction() as tx:
        return {each.patient_id: (each.mrn, each.name) for each in tx.patients.page()}


def test_a_file_that_lost_columns_is_completed(database: Database) -> None:
    """Without --update the line says what would be filled; with it, exactly that is filled; then nothing is left to do."""
    with (CASES / "typo-header.csv").open("rb") as source:
        import_patients(database, source, reading=Reading(ignore_columns=True))
    before = whole(database)
    fixed = (CASES / "typo-fixed.csv").read_bytes()
    refused = import_patients(database, io.BytesIO(fixed))
    (bad,) = refused.bad_lines
    assert bad.problem == f"{AGAIN} mrn, date_of_birth; --update would fill mrn, date_of_birth"
    assert whole(database) == before
    report = import_patients(database, io.BytesIO(fixed), update=Update.EMPTY)
    assert (report.updated, report.changes, report.imported, report.bad) == (1, {"mrn": 1, "date_of_birth": 1}, 0, 0)
    after = whole(database)
    assert (after.mrn, str(after.date_of_birth)) == ("TY1", "1970-01-01")
    assert (after.id, after.ssn, after.name) == (before.id, before.ssn, before.name)
    with database.transaction() as tx:
        assert tx.patients.find_by_mrn("ty1") == after
    again = import_patients(database, io.BytesIO(fixed), update=Update.EMPTY)
    assert (again.updated, again.unchanged, whole(database).updated_at) == (0, 1, after.updated_at)


def whole(database: Database) -> Patient:
    """Return the only patient."""
    with database.transaction() as tx:
        (found,) = tx.patients.page()
        return found


def test_another_value_is_replaced_only_on_demand(database: Database) -> None:
    """--update alone refuses the line and changes nothing of it; --overwrite replaces; an empty cell clears nothing."""
    load(database, "P1,M1,Ana", "P2,,Bo")
    report = load(database, "P1,,Other", "P2,M2,Other", update=Update.EMPTY)
    assert [bad.problem for bad in report.bad_lines] == [f"{AGAIN} name; --overwrite would replace it"] * 2
    assert state(database) == {"P1": ("M1", "Ana"), "P2": (None, "Bo")}
    report = load(database, "P1,,Other", "P2,M2,Other", update=Update.ANY)
    assert (report.updated, report.changes, report.bad) == (2, {"name": 2, "mrn": 1}, 0)
    assert state(database) == {"P1": ("M1", "Other"), "P2": ("M2", "Other")}


def test_what_is_not_kept_is_still_told(database: Database) -> None:
    """A broken line undoes the updates; the report says which there would be."""
    load(database, "P1,,Ana")
    content = f"{HEADER}\nP1,M1,Ana\n,M2,Bo\n".encode()
    report = import_patients(database, io.BytesIO(content), update=Update.EMPTY)
    assert (report.committed, report.updated, report.changes) == (False, 0, {"mrn": 1})
    assert state(database) == {"P1": (None, "Ana")}


def test_a_record_number_of_another_patient_completes_nobody(database: Database) -> None:
    """Neither one in the database nor one of an earlier line; the message names no patient."""
    load(database, "P1,M1,", "P2,,", "P3,,")
    report = load(database, "P2,m 1,", "P3,M3,", "P2,M3,", update=Update.EMPTY)
    expected = "duplicate mrn: another patient has it, in the database or on an earlier line"
    assert [(bad.line, bad.problem) for bad in report.bad_lines] == [(2, expected), (4, expected)]
    assert state(database) == {"P1": ("M1", None), "P2": (None, None), "P3": ("M3", None)}


@pytest.mark.parametrize("batch_lines", [1, 2000])
def test_lines_of_one_file_complete_each_other(database: Database, batch_lines: int) -> None:
    """A patient whose fields stand on several lines, in one batch or in several."""
    with patch.object(patients, "BATCH_LINES", batch_lines):
        report = load(database, "P1,,", "P1,M1,", "P1,,Ana", "P1,M1,Ana", update=Update.EMPTY)
    assert (report.imported, report.updated, report.unchanged, report.bad) == (1, 2, 1, 0)
    assert state(database) == {"P1": ("M1", "Ana")}


def test_a_field_that_another_transaction_fills_is_not_replaced(database: Database) -> None:
    """The import waits for the row and then reads again: the field is not empty any more."""
    load(database, "P1,M1,", "P2,M2,")
    reports: list[ImportReport] = []
    importing = threading.Thread(
        target=lambda: reports.append(load(database, "P1,M1,Ana", "P2,M2,Bo", update=Update.EMPTY))
    )
    with database.transaction() as tx:
        tx.patients.update("P1", name="Other")
        importing.start()
        while not waiting(database) and importing.is_alive():
            time.sleep(0.01)
    importing.join()
    assert [bad.problem for bad in reports[0].bad_lines] == [f"{AGAIN} name; --overwrite would replace it"]
    assert state(database) == {"P1": ("M1", "Other"), "P2": ("M2", "Bo")}


def waiting(database: Database) -> bool:
    """Say whether a session of this database waits for a lock."""
    statement = text(
        "SELECT count(*) FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid "
        "WHERE NOT l.granted AND a.datname = pg_catalog.current_database()"
    )
    with database.engine.connect() as connection:
        return bool(connection.execute(statement).scalar_one())


# --- other spellings of an id ----------------------------------------------------------------------------------------


def test_an_id_in_another_case_is_a_broken_line(database: Database) -> None:
    """In the database or on an earlier line; both ids can be had through the API."""
    load(database, "ps-1,,Ana")
    report = load(database, "PS-1,,Bo", "Pt-2,,Cy", "pT-2,,Di")
    expected = "patient_id is another spelling of one that the database or an earlier line has: case or blanks differ"
    assert [(bad.line, bad.problem) for bad in report.bad_lines] == [(2, expected), (4, expected)]
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PS-1", name="Bo"))
    assert set(state(database)) == {"ps-1", "PS-1", "Pt-2"}
    assert load(database, "PS-1,,Bo", "ps-1,,Ana").unchanged == 2


def test_a_patient_with_an_id_of_an_earlier_version_is_not_added_again(database: Database) -> None:
    """An earlier version stored the blank: the line is broken until the row has its right id."""
    load(database, "PS-1,,Ana")
    with database.transaction() as tx:
        tx.session.execute(text("UPDATE patient_data SET patient_id = 'PS-1 '"))
    report = load(database, "PS-1 ,,Ana")
    assert [bad.problem.split(" that ")[0] for bad in report.bad_lines] == ["patient_id is another spelling of one"]
    with database.transaction() as tx:
        tx.patients.update("PS-1 ", patient_id="PS-1")
    assert load(database, "PS-1 ,,Ana").unchanged == 1


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        *(
            (f"{before}PS-1{after}", "PS-1")
            for before, after in [("", " "), (" ", ""), ("", "\u00a0"), ("\t", ""), ("\ufeff", "")]
        ),
        *(("PS\u200b-1", "PS-1"), ("PS\u20111", "PS-1"), ("ＰＳ-1", "PS-1"), ("ps-1 ", "PS-1"), ("PS  1", "PS 1")),
        *(("Jose\u0301", "José"), ("Jose\u0301", "JOSÉ"), ("PS-1 ", "PS-1\u00a0")),
    ],
)
@pytest.mark.parametrize("update", [Update.NONE, Update.ANY])
def test_a_row_in_another_form_and_a_line_are_one_patient(
    database: Database, stored: str, given: str, update: Update
) -> None:
    """Whichever form an earlier version stored, and whichever the file has: no second patient, until the row has its right id."""
    load(database, "other,,Bo", "PS-2,M2,Ana", "Zoë,,Di")
    with database.transaction() as tx:
        tx.session.execute(
            text("UPDATE patient_data SET patient_id = :stored WHERE patient_id = 'PS-2'"), {"stored": stored}
        )
    before = state(database)
    with patch.object(ids, "_PAGE_IDS", 1), patch.object(patients, "BATCH_LINES", 1):
        report = load(database, "new,,Ana", f"{given},,Ana", "Zoë,,Di", update=update)
    assert [(bad.line, bad.problem.split(" that ")[0]) for bad in report.bad_lines] == [
        (3, "patient_id is another spelling of one")
    ]
    assert (report.imported, report.unchanged) == (1, 1)
    assert state(database) == before | {"new": (None, "Ana")}


def test_a_row_whose_id_has_no_form_stops_no_import(database: Database) -> None:
    """An earlier version stored ids with control characters, and an empty one."""
    for each in ("", "PS-1\x1b[2J", "\x01"):
        load(database, "PS-2,,Ana")
        with database.transaction() as tx:
            tx.session.execute(
                text("UPDATE patient_data SET patient_id = :each WHERE patient_id = 'PS-2'"), {"each": each}
            )
    assert load(database, "PS-1,,Ana").imported == 1


def test_a_broken_line_does_not_take_its_id_in_any_case(database: Database) -> None:
    """A later, correct line in another case is imported."""
    load(database, "P0,M0,")
    assert load(database, "ps-1,M0,", "PS-1,M1,").imported == 1


def test_a_long_file_of_one_case_is_compared_at_its_beginning(database: Database) -> None:
    """After 2,000 lines only a file with both cases, or one that has met another spelling, goes on with the comparison."""
    load(database, "ps-1,,", "ps-2,,", "ps-3,,")
    with patch.object(ids, "COMPARED_LINES", 1), patch.object(patients, "BATCH_LINES", 1):
        assert load(database, "Q-1,,", "PS-1,,").bad == 0
        assert [each.line for each in load(database, "q-2,,", "PS-2,,").bad_lines] == [3]
        assert [each.line for each in load(database, "PS-2,,", "Q-3,,", "PS-3,,").bad_lines] == [2, 4]


# --- a model ---------------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([None, "X", "Y", "Z"])
LINES = st.lists(st.tuples(st.sampled_from(["P", "p", "Q", "R"]), VALUES, VALUES), max_size=10)


def expected(before: State, lines: list[tuple[str, str | None, str | None]], update: Update) -> tuple[State, set[int]]:
    """Return what must be there after an import, and the lines that are broken: one line after the other."""
    there, bad = dict(before), set()
    for number, (key, *given_values) in enumerate(lines, start=2):
        known = there.get(key)
        if known is None:
            others = {each.casefold() for each in there}
            wanted = (given_values[0], given_values[1])
            broken = key.casefold() in others
        elif update is Update.NONE:
            wanted, broken = known, known != tuple(given_values)
        else:
            changed = [given or old for given, old in zip(given_values, known, strict=True)]
            wanted = (changed[0], changed[1])
            replaced = any(old and old != new for old, new in zip(known, wanted, strict=True))
            broken = replaced and update is Update.EMPTY
        mrns = {mrn for other, (mrn, _) in there.items() if other != key and mrn}
        if broken or wanted[0] in mrns:
            bad.add(number)
        else:
            there[key] = wanted
    return there, bad


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, LINES, st.sampled_from(Update), st.sampled_from([1, 2, 2000]))
@example([("P", "X", None), ("Q", "Y", None)], [("P", "Z", None), ("Q", "X", None)], Update.ANY, 2000)
@example([("P", "X", None), ("Q", "Y", None)], [("P", "Z", None), ("R", "X", None)], Update.ANY, 2000)
@example([], [("P", "X", None), ("P", "Y", None), ("Q", "X", None)], Update.ANY, 2000)
def test_an_import_does_what_its_lines_say_one_after_the_other(
    database: Database,
    first: list[tuple[str, str | None, str | None]],
    second: list[tuple[str, str | None, str | None]],
    update: Update,
    batch_lines: int,
) -> None:
    """Whatever is there and whatever the lines are: no field changes that may not, and every other line is broken."""
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM patient_data"))
    written = [[",".join(each or "" for each in line) for line in lines] for lines in (first, second)]
    with patch.object(patients, "BATCH_LINES", batch_lines):
        load(database, *written[0])
        before = state(database)
        assert before == expected({}, first, Update.NONE)[0]
        report = load(database, *written[1], update=update)
    there, bad = expected(before, second, update)
    assert (state(database), {each.line for each in report.bad_lines}) == (there, bad)
    assert report.lines == len(second) == report.imported + report.unchanged + report.updated + report.bad
    assert (report.imported, len(there)) == (len(there) - len(before), report.imported + len(before))
