"""By which other ids a line's patient may be in the database already.

Owns the comparison of ids that differ in case, or in what an earlier version stored. The form of an id is ``spelling``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, text

from voiceassist_db import spelling
from voiceassist_db.execution import execute

COMPARED_LINES: Final = 2000
"""Lines at the beginning of a file whose ids are looked for in the other case: each costs a second look-up."""

_PAGE_IDS: Final = 10_000
_ODD = text(
    """
    SELECT patient_id FROM patient_data
    WHERE patient_id OPERATOR(pg_catalog.~) '[^ -~]|^ | $|  ' AND patient_id OPERATOR(pg_catalog.>) CAST(:after AS pg_catalog.text)
    ORDER BY patient_id LIMIT :limit
    """
)
"""Ids that may have another form than their own: with a character that is no printable one of ASCII, or with blanks."""


class Spellings:
    """Says which other ids to look for, batch by batch.

    Case makes two ids in the database, but in a file it is mostly a slip. A file with one case, all through, that found no other
    at its beginning goes on without the comparison.
    """

    def __init__(self) -> None:
        self._lines = 0
        self._styles: set[str] = set()
        self._has_found = False

    def to_ask(self, ids: Iterable[tuple[str, str]]) -> set[str]:
        """Return the other ids to look for.

        Args:
            ids: The id and the file's spelling of it, of each line of a batch.
        """
        pairs = list(ids)
        self._styles.update(style for form, _ in pairs if (style := _style(form)))
        compares_case = self._has_found or len(self._styles) > 1 or self._lines < COMPARED_LINES
        self._lines += len(pairs)
        if not compares_case:
            return {spelled for form, spelled in pairs if form != spelled}
        return {other for form, spelled in pairs for other in others(form, spelled)}

    def found(self, ids: Iterable[str]) -> None:
        """Learn which of them are in the database."""
        self._has_found = self._has_found or any(True for _ in ids)


def others(form: str, spelled: str) -> set[str]:
    """Return other ids of the same patient: the file's spelling, which an earlier version stored, and one in the other case."""
    upper = form.upper()
    return {spelled, upper if upper != form else form.lower()} - {form}


def _style(form: str) -> str | None:
    """Return how an id uses case; None where it has no letters that know any."""
    if form.isupper():
        return "upper"
    if form.islower():
        return "lower"
    return "mixed" if form.upper() != form else None


def forms_stored_otherwise(connection: Connection) -> frozenset[str]:
    """Return the forms, case-folded, of the ids that an earlier version stored in another form.

    It looks at every id once, because no look-up by a form finds such an id. Memory is needed for those only that it returns.
    """
    found: set[str] = set()
    after = ""  # an empty id has no form
    while ids := [
        row[0] for row in execute(connection, _ODD, {"after": after, "limit": _PAGE_IDS}, table="patient_data")
    ]:
        after = ids[-1]
        for each in ids:
            try:
                form = spelling.patient_id(each)
            except ValueError:
                continue
            if form != each:
                found.add(form.casefold())
    return frozenset(found)
