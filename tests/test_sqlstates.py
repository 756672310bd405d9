"""The table of SQLSTATEs: each entry says what happened and what to do, and leads to no wrong cause."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from voiceassist_db.errors import DatabaseError, DatabaseUnavailableError, TransactionConflictError
from voiceassist_db.sqlstates import CONDITIONS, Condition, condition, described, unopened

MEANT = [(sqlstate, each) for sqlstate, known in CONDITIONS.items() for each in known]


@pytest.mark.parametrize(("sqlstate", "meant"), MEANT, ids=[f"{code} {each.source or ''}" for code, each in MEANT])
def test_each_condition_has_a_cause_and_a_remedy(sqlstate: str, meant: Condition) -> None:
    """With a table and without one the sentence is whole; the code is kept; only a refused login speaks of a password."""
    for table in ("patient_data", ""):
        original = SimpleNamespace(diag=SimpleNamespace(source_function=meant.source, message_primary="Hidden"))
        error = described(original, sqlstate.ljust(5, "0"), table)
        assert type(error) is meant.kind
        cause, _, remedy = str(error).partition(": ")
        assert cause
        assert remedy
        assert "{" not in str(error)
        assert "Hidden" not in str(error)
        assert error.sqlstate == sqlstate.ljust(5, "0")
        assert ("password" in str(error)) == (sqlstate == "28")


def test_an_unknown_code_shows_no_text_of_the_server() -> None:
    """What the table lacks is told by its code, with the table and the place of the details."""
    error = described(
        SimpleNamespace(diag=SimpleNamespace(message_primary="Hidden", context=None)), "XX001", "patient_data"
    )
    assert (type(error), error.sqlstate) == (DatabaseError, "XX001")
    assert str(error) == "a statement on patient_data failed (SQLSTATE XX001): the server's log has its own words"


def test_what_a_function_raises_names_the_function_alone() -> None:
    """The text and the line of RAISE can hold values: of the context only the function's name is taken."""
    context = 'PL/pgSQL function app."Guard it"(uuid) line 3 at RAISE\nSQL statement "INSERT … Hidden"'
    diagnostics = SimpleNamespace(message_primary="Hidden", context=context, source_function="exec_stmt_raise")
    for sqlstate in ("P0001", "UX007"):
        message = str(described(SimpleNamespace(diag=diagnostics), sqlstate, "patient_data"))
        assert message.startswith("the function app.")
        assert "Hidden" not in message


@pytest.mark.parametrize(
    ("text", "part", "sqlstate"),
    [
        ("FATAL:  sorry, too many clients already", "no connection left", "53300"),
        ("FATAL:  remaining connection slots are reserved for roles", "no connection left", "53300"),
        ('FATAL:  too many connections for role "app"', "no connection left", "53300"),
        ("FATAL:  the database system is starting up", "accepts no connections now", "57P03"),
        ("FATAL:  the database system is not yet accepting connections", "accepts no connections now", "57P03"),
        ('FATAL:  password authentication failed for user "app"', "refused the login", None),
        ('FATAL:  no pg_hba.conf entry for host "h", user "u", SSL off', "refused the login", None),
        ('FATAL:  database "clinic" does not exist', "no database of this name", "3D000"),
        ("connection failed: Connection refused", "no server answers", None),
        ("SSL error: certificate verify failed", "could not be encrypted", None),
        ("server closed the connection unexpectedly", "was lost", None),
        ("FATAL:  out of memory", "too little memory", "53200"),
        ("FATAL:  out of shared memory", "table of locks", "53200"),
        ("something new", "cannot be reached", None),
    ],
)
def test_a_connection_that_could_not_be_opened(text: str, part: str, sqlstate: str | None) -> None:
    """Libpq gives no SQLSTATE then; its English texts are told apart, and no login is blamed for a full server."""
    error = unopened(text, "")
    assert part in str(error)
    assert error.sqlstate == sqlstate
    assert isinstance(error, DatabaseUnavailableError) or sqlstate == "53200"


def test_the_function_that_reports_decides() -> None:
    """One code has several causes: the server's function that reports it tells them apart."""
    rights = condition("42501", "aclcheck_error")
    hidden = condition("42501", "check_enable_rls")
    assert rights is not None
    assert hidden is not None
    assert "BYPASSRLS" in hidden.remedy
    assert "provision" in rights.remedy
    assert condition("55000", "somewhere else") is None
    lock = condition("55P03")
    assert lock is not None
    assert lock.kind is TransactionConflictError
