"""Spellings that look alike are one value to a search, and a token tells nothing without its key."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db import Database, Patient, blind_index
from voiceassist_db.errors import DuplicateError
from voiceassist_db.keys import Key

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("hidden", "\u200b\u00ad\ufeff\u200e\u2060\u180e\ufe0f\u034f\U000e0100")
def test_invisible_characters_do_not_make_another_number(database: Database, hidden: str) -> None:
    """A record number that is drawn like another one cannot be added beside it."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", mrn="MRN-12345"))
    with pytest.raises(DuplicateError), database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-002", mrn=f"MRN-12{hidden}345"))
    with pytest.raises(ValueError, match="empty"):
        blind_index.mrn(hidden)


@pytest.mark.parametrize("dash", "\u2010\u2011\u2012\u2013\u2014\uff0d")
def test_every_dash_is_a_hyphen(dash: str) -> None:
    """What word processors make of a hyphen is still one."""
    assert blind_index.mrn(f"mrn{dash}1") == "MRN-1"
    assert blind_index.name(f"Anne{dash}Marie") == "anne-marie"


@pytest.mark.parametrize("normalise", [blind_index.mrn, blind_index.name])
@given(text=TEXT)
def test_a_normal_form_is_its_own(normalise: object, text: str) -> None:
    """Normalising twice is normalising once, whatever the characters do when they change case."""
    assert callable(normalise)
    try:
        once = normalise(text)
    except ValueError:
        return
    assert once == normalise(once)


def test_every_character_that_is_not_seen_is_known() -> None:
    """The lists that are written out cover what this Python's Unicode calls a format character or a dash."""
    characters = {category: [] for category in ("Cf", "Pd")}  # type: dict[str, list[str]]
    for character in map(chr, range(sys.maxunicode + 1)):
        if (category := unicodedata.category(character)) in characters:
            characters[category].append(character)
    assert [each for each in characters["Cf"] if blind_index.name(f"a{each}b") != "ab"] == []
    assert [each for each in characters["Pd"] if "-" not in blind_index.name(f"a{each}b")] == []


def test_tokens_differ_by_key_and_are_short() -> None:
    """The same value has unrelated tokens in two columns, of 16 bytes each."""
    key = Key.generate()
    tokens = {blind_index.token(key.derive(column), "same") for column in ("a.b", "a.c")}
    assert len(tokens) == 2
    assert {len(each) for each in tokens} == {16}
