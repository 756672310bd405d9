"""Which spellings are one value to a search, by name: ours, the application's, and parts of values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db import normalisers
from voiceassist_db.blind_index import token
from voiceassist_db.errors import ConfigurationError
from voiceassist_db.keys import Key
from voiceassist_db.models import blind_index_column
from voiceassist_db.normalisers import form_of, register_normaliser
from voiceassist_db.values import RefusedValueError

FORMS: list[tuple[str, Any, str]] = [
    ("phone", "+1 (202) 555-0100", "+12025550100"),
    ("phone", " +49.30/1234 567 ", "+49301234567"),
    ("phone", "+44 (0)20 7946 0000", "+442079460000"),
    ("phone", "\uff0b1\u00a0202\u2011555\u20110100\u200b", "+12025550100"),
    ("email", "  Ann.Lee+Tag@Example.ORG\t", "ann.lee+tag@example.org"),
    ("email", "o'hara@example.org", "o'hara@example.org"),
    ("email", "JO\u0308RG@B\u00dcCHER.example", "j\u00f6rg@b\u00fccher.example"),
    ("postcode", "sw1a 1aa", "SW1A1AA"),
    ("postcode", "12345-6789", "123456789"),
    ("postcode", "\uff11\uff12\uff13\u2013\uff14", "1234"),
    ("date", date(1990, 4, 7), "1990-04-07"),
    ("date", date(1, 1, 1), "0001-01-01"),
    ("date:month", date(1990, 4, 7), "1990-04"),
    ("date:year", date(1990, 4, 7), "1990"),
    ("integer", -42, "-42"),
    ("integer", 10**40, "1" + "0" * 40),
    ("name:3", " Garc\u00eda  M\u00e1rquez", "gar"),
    ("name:3", "O\u2019Hara", "o'h"),
    ("name:3", "O\u02bbHara", "o'h"),
    ("name:3", "Li", "li"),
    ("postcode:3", "021 39", "021"),
    ("exact:2", "As it is", "As"),
]
REFUSED: dict[str, list[str]] = {
    "phone": [
        *("", "2025550100", "0049301234567", "(202) 555-0100", "+0 202 555 0100", "+1", "+123456", "+1234567890123456"),
        *("+1 202 555 0100 x5", "+1 202 555 0100, +1", "tel:+12025550100", "+1 202 FLOWERS", "++12025550100"),
        *("+1202555\x000100", "+1\u0662\u0660\u0662555", "1.2E+10"),
    ],
    "email": [
        *("", "@", "ann", "ann@", "@x.org", "a@b@c", "a b@example.org", "Ann <ann@example.org>", "a@x.", "a@.x"),
        *("a@x..y", "a@example.org, b@example.org", "a@example.org;", '"a b"@example.org', "a@\x00x", "a@[10.0.0.1]"),
    ],
    "postcode": ["", "-", "12", "12345678901", "2139.0", "1.2E+04", "12_345", "12/3", "\u0661\u0662\u0663", "123\x00"],
}
"""What has no form."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test have its own names."""
    monkeypatch.setattr(normalisers, "_registered", {})
    monkeypatch.setattr(normalisers, "_forms", {})


@pytest.mark.parametrize(("spec", "value", "expected"), FORMS)
def test_a_form_never_changes(spec: str, value: Any, expected: str) -> None:
    """What databases hold already is found by the tokens that it has."""
    assert form_of(spec)(value) == expected
    if normalisers.is_ours(spec) and isinstance(value, str):
        assert form_of(spec)(expected) == expected


@pytest.mark.parametrize("spec", REFUSED)
def test_what_has_no_form_is_refused_without_its_value(spec: str) -> None:
    """Also by a part of it."""
    for value in REFUSED[spec]:
        for each in (spec, f"{spec}:3"):
            with pytest.raises(ValueError, match="must|spreadsheet") as caught:
                form_of(each)(value)
            assert len(value) < 5 or value not in str(caught.value)


@given(st.sampled_from(["phone", "email", "postcode", "name", "mrn", "ssn"]), st.text(max_size=30))
def test_a_form_is_its_own(spec: str, text: str) -> None:
    """Normalising twice is normalising once."""
    try:
        form = form_of(spec)(text)
    except ValueError:
        return
    assert form_of(spec)(form) == form


@given(st.text("0123456789", min_size=6, max_size=13), st.text("0123456789", min_size=6, max_size=13), st.data())
def test_two_numbers_are_one_only_if_their_digits_are(one: str, other: str, data: st.DataObject) -> None:
    """Separators tell no numbers apart, and nothing else makes them one."""

    def spelled(digits: str) -> str:
        return "+1" + "".join(digit + data.draw(st.sampled_from(["", " ", "-", ".", "/"])) for digit in digits)

    form = form_of("phone")
    assert form(spelled(one)) == form(spelled(one))
    assert (form(spelled(one)) == form(spelled(other))) is (one == other)


def test_tokens_of_a_part_are_no_tokens_of_the_whole() -> None:
    """Each index has a key of its own, so that nobody can compare a name of three letters with the first three of others."""
    key = Key(bytes(range(32)))
    infos = ["patients.name", "patients.name:name:3", "patients.name:name:4"]
    assert len({token(key.derive(info), "lee") for info in infos}) == 3


# --- the application's own -------------------------------------------------------------------------------------------


def clinic(value: str) -> str:
    """A normaliser of an application's."""
    digits = value.removeprefix("CL-")
    if not digits.isdigit():
        raise ValueError(f"no number of the clinic: {value}")
    return digits.lstrip("0")


def test_an_application_names_its_own() -> None:
    """A declaration can name it once it is registered, and parts of it; it can be registered again by the same module."""
    with pytest.raises(ValueError, match="no normaliser 'mrn_of_clinic'"):
        blind_index_column("mrn_of_clinic")
    register_normaliser("mrn_of_clinic", clinic)
    register_normaliser("mrn_of_clinic", clinic)
    assert form_of("mrn_of_clinic")("CL-0012") == "12"
    assert form_of("mrn_of_clinic:1")("CL-0012") == "1"
    blind_index_column("mrn_of_clinic:1")


def other(value: str) -> str:
    """Another one."""
    return value


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("name", "is a normaliser of voiceassist-db"),
        ("mrn_of_clinic", r"another function already: tests\.test_normalisers\.clinic"),
        ("Mrn", "no name of a normaliser"),
        ("mrn:3", "no name of a normaliser"),
        ("1x", "no name of a normaliser"),
        ("x\n", "no name of a normaliser"),
        ("", "no name of a normaliser"),
    ],
)
def test_a_name_is_one_function(name: str, problem: str) -> None:
    """Tokens of two functions under one name would find nothing."""
    register_normaliser("mrn_of_clinic", clinic)
    with pytest.raises(ValueError, match=problem):
        register_normaliser(name, other)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (clinic, r"is refused by the normaliser own \(ValueError\)"),
        (lambda value: value.nothing, r"is refused by the normaliser own \(AttributeError\)"),
        (lambda value: {}[value], r"is refused by the normaliser own \(KeyError\)"),
        (lambda value: None, "must return a str that is not empty"),
        (lambda value: "", "must return a str that is not empty"),
        (lambda value: f"{value}\ud800", "must return a str that is not empty and has no lone surrogate"),
        (lambda value: b"x", "must return a str that is not empty"),
    ],
)
def test_its_errors_show_no_value(function: Callable[[Any], Any], problem: str) -> None:
    """Neither its message nor an exception behind it."""
    register_normaliser("own", function)
    with pytest.raises(RefusedValueError, match=problem) as caught:
        form_of("own")("SECRET")
    assert caught.value.__context__ is None
    assert "SECRET" not in str(caught.value)


def test_a_process_without_it_says_what_is_missing() -> None:
    """By its name, and both ways to have it."""
    with pytest.raises(ConfigurationError, match=r"'mrn_of_clinic'.*register_normaliser.*entry point mrn_of_clinic"):
        form_of("mrn_of_clinic:4")
    assert not normalisers.is_known("mrn_of_clinic")


def test_an_installed_application_offers_it_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """So our commands have it, which import nothing of the application's."""
    offered = {
        "of_clinic": EntryPoint("of_clinic", f"{__name__}:clinic", normalisers.ENTRY_POINTS),
        "broken": EntryPoint("broken", f"{__name__}:nothing", normalisers.ENTRY_POINTS),
    }
    found = lambda *, group, name: [offered[name]] if group == normalisers.ENTRY_POINTS and name in offered else []  # noqa: E731
    monkeypatch.setattr(normalisers, "entry_points", found)
    assert __name__ in sys.modules
    assert form_of("of_clinic")("CL-7") == "7"
    with pytest.raises(ConfigurationError, match="broken = .*cannot be loaded: AttributeError"):
        form_of("broken")
    with pytest.raises(ConfigurationError, match="does not have"):
        form_of("absent")
