"""Spellings that look alike are one value to a search, and a token tells nothing without its key."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voiceassist_db import Database, Patient, blind_index, normalisers
from voiceassist_db.errors import DuplicateError, ValueFormatError
from voiceassist_db.keys import Key
from voiceassist_db.spelling import as_seen
from voiceassist_db.verification import verify

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DIGITS = st.text("0123456789", min_size=9, max_size=9)

TOKENS = [
    ("ssn", "123-45-6789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "123 45 6789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "123456789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", " 123-45-6789\t", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "123\u201345\u20136789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "\uff11\uff12\uff13\uff0d\uff14\uff15\uff0d\uff16\uff17\uff18\uff19", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "123\xa045\xa06789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "123\xad-45-6789", "a2fb4a2e5d7a21b17d1213d493a97fff"),
    ("ssn", "001-02-0003", "66cf5ca508e950592cb9742f3fcf17b9"),
    ("mrn", "mrn-12345", "95d0dbc2f9f96a719463b02ba6fe0c9a"),
    ("mrn", "MRN 12345", "761c367145fc3e9d2027d5268e8ca49f"),
    ("mrn", "M\u2011123", "973e6a713fb4d8f7c50d30deb90f0fce"),
    ("mrn", "00123", "676e45b13f0b910849cbc04891cf6de1"),
    ("mrn", "12E4", "4379f4ddecc9333e9566961e36789d82"),
    ("mrn", "a.b/7", "11c5bfe8cc05fdf21eaadf583f904747"),
    ("mrn", "Stra\xdfe-1", "e0653b00fad58c09917d2bbe395bf148"),
    ("mrn", "1.2.3", "6d27421a8ebfb7369a2970814c64eddd"),
    ("name", "Jos\xe9 N\xfa\xf1ez", "06170f258fca5e9200b53bc1f77e69e2"),
    ("name", "JOSE\u0301 nu\u0301n\u0303ez", "06170f258fca5e9200b53bc1f77e69e2"),
    ("name", "Anne\u2013Marie  O'Neil", "33ed61cc1ce9a7d4caf23c7d252c9cdd"),
    ("name", "Stra\xdfe", "1e0bbf148a4bbabd60a8b41ea462fa1b"),
    ("name", "Zo\xeb\u200b 604", "655abbf82bcb2be7f45447a7887aaa80"),
    ("name", "\u674e \u5c0f\u9f8d", "bd9b9dc3fa99b723c0f3d1f556e365d7"),
    ("exact", "", "d38b42096d80f45f826b44a9d5607de7"),
    ("exact", "As it is", "d7955db174029f5def994eb5094b0a59"),
]
"""Tokens under the key of bytes 0 to 31, as the normalisers of version 0.1.0 made them before they refused anything."""

SIGNS = (
    *("'", "\u2019", "\u2018", "\u201b", "\u02bc", "\u02bb", "\u2032", "`", "\uff07", "\uff40", "\u1fef"),
    *("\u00b4", "\u1ffd", "\u0384", "\u1fbd", "\u1fbf", "\u1ffe"),
)
"""Signs for an apostrophe that may stand side by side in one name; those of the second line are accents that stand alone."""

MORE_SIGNS = (
    *("\u02b9", "\u0374", "\u02bd", "\u02be", "\u02bf", "\u02c8", "\u02ca", "\u02cb", "\u02f4", "\u055a", "\u05f3"),
    *("\u07f4", "\u07f5", "\u2035", "\ua78b", "\ua78c", "\u275b", "\u275c"),
)

NO_SSN = [
    *("12345678.0", "4567891.00", "900110022.0", "123456789.0", "12345678,0", "1.234567E+08", "1.23456789e8", "1E+8"),
    *(
        "a9b0c0d1e1f0g0h2i3",
        "SSN: 900-11-0021",
        "900-11-0021x",
        "+123456789",
        "-123456789",
        "123.45.6789",
        "123/45/6789",
    ),
    *(
        "123_45_6789",
        "1-2-3-4-5-6-7-8-9",
        "12-345-6789",
        "123--45-6789",
        "123-45-6789-",
        "(123) 45 6789",
        "0x123456789",
    ),
    *(
        "123-45-678",
        "123-45-67890",
        "",
        " ",
        "\u0661\u0662\u0663-\u0664\u0665-\u0666\u0667\u0668\u0669",
        "123\x0045\x006789",
    ),
    *("\u00b9\u00b2\u00b3.456789", "123-45-6789\x1b", "123456789,123456789"),
]
NO_MRN = [
    "12345.0",
    "12345.00",
    "12345,0",
    "-1.0",
    "1.2E+05",
    "1.23457E+11",
    "1e+16",
    "1.23457E11",
    "1 2345.0",
    "\uff11.\uff10",
]
NO_MRN += ["", " ", "-", "--", "?", ".", "\u2013", "M\x1b[2J", "M\x00", "M\x9b", "M\x7f"]
NO_NAME = ["", " \u00a0", "\u200b", "Ana\x1b[2J", "Ana\x00", "Ana\x9b", "Ana\x7f"]
BAD = {"ssn": NO_SSN, "mrn": NO_MRN, "name": NO_NAME}


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


@pytest.mark.parametrize(("field", "value", "expected"), TOKENS)
def test_a_token_never_changes(field: str, value: str, expected: str) -> None:
    """What databases hold already is found by the tokens that it has."""
    key = Key(bytes(range(32)))
    assert blind_index.token(key, blind_index.NORMALISERS[field](value)).hex() == expected


@pytest.mark.parametrize("field", BAD)
def test_what_does_not_have_the_form_is_refused_everywhere(database: Database, field: str) -> None:
    """Writing and searching raise ValueError, which holds neither the value nor its digits."""
    for value in BAD[field]:
        bad: Patient = replace(Patient(patient_id="PT-002"), **{field: value})  # type: ignore[arg-type]  # of any field
        with database.transaction() as tx:
            search: dict[str, Callable[[str], object]] = {
                "ssn": tx.patients.find_by_ssn,
                "mrn": tx.patients.find_by_mrn,
                "name": tx.patients.find_by_name,
            }
            for attempt in (
                partial(tx.patients.add, bad),
                partial(tx.patients.add_many, [bad]),
                partial(tx.patients.update, "PT-001", **{field: value}),
                partial(search[field], value),
            ):
                with pytest.raises(ValueError, match=f"^{field} ") as caught:
                    attempt()
                shown = f"{caught.value} {caught.value.__context__}"
                assert len(value) < 4 or value.strip() not in shown
                assert "123456" not in shown.replace("or 123456789", "")
    assert read_all(database) == []


def read_all(database: Database) -> list[Patient]:
    """Return all patients."""
    with database.transaction() as tx:
        return tx.patients.page()


@pytest.mark.parametrize(
    "mrn", ["12E4", "E+5", "1.2.3", "12.5", "3E-12", "A.0", "0", "00123", "12345.0A", "#7", "\u5317\u4eac-7"]
)
def test_a_record_number_with_dots_and_letters_is_one(mrn: str) -> None:
    """Only what a spreadsheet writes is refused."""
    assert blind_index.mrn(mrn)


@given(
    DIGITS,
    st.sampled_from(["", "-", " ", " - ", "\u2013", "\u00a0", "\uff0d", "\t"]),
    st.sampled_from(["", " ", "\u00a0\u200b"]),
)
def test_a_number_with_separators_is_its_digits(digits: str, separator: str, outer: str) -> None:
    """Dashes and blanks between the groups, and around the number, change nothing; nor does the form of a digit."""
    written = f"{outer}{digits[:3]}{separator}{digits[3:5]}{separator}{digits[5:]}{outer}"
    wide = written.translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    assert digits == blind_index.ssn(written) == blind_index.ssn(wide) == blind_index.ssn(digits)


@given(st.text(st.sampled_from("0123456789-. ,eE+xX\u2013\u00a0\u200b\uff11\u0661/:\n"), max_size=16) | TEXT)
def test_an_accepted_number_is_nine_digits_and_separators(text: str) -> None:
    """Nothing that a person would read is dropped: what is left out are hyphens, white space and what shows nothing."""
    try:
        digits = blind_index.ssn(text)
    except ValueError:
        return
    assert len(digits) == 9
    assert set(digits) <= set("0123456789")
    assert digits == "".join(as_seen(text).replace("-", "").split())
    assert blind_index.ssn(digits) == digits


@given(TEXT, TEXT)
@example("Anne\u2013Marie", "anne-marie")
@example("a b", "ab")
def test_two_values_are_one_only_by_the_documented_rule(one: str, other: str) -> None:
    """Record numbers: case and white space; names: case and how many blanks; nothing that is seen is dropped."""
    for normalise, joined in ((blind_index.mrn, ""), (blind_index.name, " ")):
        try:
            same = normalise(one) == normalise(other)
        except ValueError:
            continue
        fold = str.upper if joined == "" else str.casefold
        alike = [as_seen(joined.join(as_seen(fold(as_seen(each))).split())) for each in (one, other)]
        assert same is (alike[0] == alike[1])


@pytest.mark.parametrize(
    ("field", "value", "former"),
    [("ssn", "12345678.0", "123456780"), ("ssn", "SSN: 900-11-0021", "900110021"), ("mrn", "12345.0", "12345.0")],
)
def test_a_stored_value_without_the_form_is_readable_and_named(
    database: Database, field: str, value: str, former: str
) -> None:
    """Of an earlier version's row: it can be read and corrected; no search takes it for the number that it was indexed by."""
    row = Patient(patient_id="PT-001", name="Ana")
    with database.transaction() as tx, patch_normaliser(field, lambda _: former):
        tx.patients.add_many([row, Patient(patient_id="PT-002", ssn="123-45-6789", mrn="MRN-2", name="Bo")])
        tx.patients.update("PT-001", **{field: value})
    with database.transaction() as tx:
        assert getattr(tx.patients.get("PT-001"), field) == value
        if field == "ssn":
            with pytest.raises(ValueFormatError, match=f"{row.id}.*ssn must be|{row.id}.*ssn is a number") as caught:
                tx.patients.find_by_ssn(former)
            assert (caught.value.field, caught.value.row_id) == (field, str(row.id))
            assert value not in str(caught.value)
    (failure,) = next(each for each in verify(database.engine, database.keys) if each.table == "patient_data").failures
    assert (failure.row_id, failure.field) == (str(row.id), field)
    assert "cannot be searched" in failure.problem
    with database.transaction() as tx:
        tx.patients.update("PT-001", **{field: "012-34-5678"})
    assert [each.failed for each in verify(database.engine, database.keys)] == [0, 0]


@contextmanager
def patch_normaliser(field: str, former: Callable[[str], str]) -> Iterator[None]:
    """Write as an earlier version did, whose normaliser gave this form to a value that has none."""

    def either(value: str) -> str:
        try:
            return blind_index.NORMALISERS[field](value)
        except ValueError:
            return former(value)

    with patch.dict(normalisers._forms, {field: either}):
        yield


@pytest.mark.parametrize("normalise", [blind_index.ssn, blind_index.mrn, blind_index.name])
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


NAMES = ("O*Brien", "*Abd", "Jose*", "D*Arcy O*Brien", "*a*", "a*b*c*d")


@pytest.mark.parametrize("written", NAMES)
def test_a_search_has_the_token_of_each_apostrophe(written: str) -> None:
    """Whichever sign was stored, and whichever is asked for. A value that was stored before is found by its token."""
    names = [written.replace("*", sign) for sign in (*SIGNS, *MORE_SIGNS)]
    forms = {blind_index.name(each) for each in names}
    assert len({blind_index.unified(form) for form in forms}) == 1
    for form in forms:
        assert forms <= blind_index.spellings(form)


def test_two_apostrophes_of_one_name_may_differ() -> None:
    """As a name has them that was written by two programs."""
    forms = {blind_index.name(f"D{one}Arcy O{other}Brien") for one in SIGNS for other in SIGNS}
    assert forms <= blind_index.spellings("d'arcy o'brien")
    assert {blind_index.unified(each) for each in forms} == {"d'arcy o'brien"}


def test_other_signs_are_no_apostrophes() -> None:
    """Neither an accent on its letter, nor a quotation mark, a comma or a letter of other alphabets."""
    for other in ("o\u0301brien", 'o"brien', "o,brien", "o\u201abrien", "o\u05d9brien", "o brien", "obrien", "o-brien"):
        form = blind_index.name(other)
        assert form not in blind_index.spellings("o'brien")
        assert blind_index.unified(form) == form
