"""Searched text, built from the form by which it must be found: so no code of the product says what that form is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from tests.roundtrip.values import TEXTS, Sample


def searched(normaliser: str, number: int, chance: random.Random) -> Sample:
    """Return searched text with its form, of which there is one for each number; its spelling is by chance."""
    form = _forms(normaliser, number)
    return Sample(f"by {normaliser}", spelled := _spelled(normaliser, form, chance), spelled, form)


def respelled(normaliser: str, form: str, chance: random.Random) -> str:
    """Return another spelling of a form, by which the value must be found."""
    return _spelled(normaliser, form, chance)


_NAMES: Final = (
    "josé núñez",
    "zoë",
    "o'hara-ñandú",
    "ann lee",
    "李 小龍",
    "søren ångström",
    "мария",
    "strauss",
    "%s :x",
)
_EXACT: Final = tuple(each for values in TEXTS.values() for each in values)


def _forms(normaliser: str, number: int) -> str:
    match normaliser:
        case "ssn":
            return f"{(number * 7_919 + 100_000_000) % 10**9:09d}"
        case "mrn":
            return f"{('MRN-', 'ÄB-', 'X', '字', '0')[number % 5]}{number:06d}"
        case "name":
            return f"{_NAMES[number % len(_NAMES)]} {number}"
        case "exact":
            return f"{_EXACT[number]}" if number < len(_EXACT) else f"{_EXACT[number % 30]}{number}"
    raise AssertionError(normaliser)


def _spelled(normaliser: str, form: str, chance: random.Random) -> str:
    match normaliser:
        case "ssn":
            first, second, third = form[:3], form[3:5], form[5:]
            dash = chance.choice(("", "-", " ", " - ", "\u2013", "\u2011"))
            spelled = f"{first}{dash}{second}{dash}{third}"
            return chance.choice((spelled, f" {spelled}\n", f"\u200b{spelled}", _wide(spelled)))
        case "mrn":
            spelled = chance.choice((form, form.lower(), form.replace("-", "\u2010"), _wide(form)))
            return chance.choice((spelled, f" {spelled} ", spelled[:2] + "\u200d\u00a0" + spelled[2:]))
        case "name":
            spelled = chance.choice((form, form.upper(), form.title(), form.replace("-", "\u2014")))
            return chance.choice((spelled, f"\t{spelled} ", spelled.replace(" ", "\u00a0 "), "\u200e" + spelled))
    return form


def _wide(text: str) -> str:
    """Return text in the wide forms that East Asian keyboards write."""
    return "".join(chr(ord(each) + 0xFEE0) if each.isascii() and each.isalnum() else each for each in text)


def unsearchable(normaliser: str) -> Iterator[tuple[str, Any]]:
    """Yield what has no form to be searched by."""
    given: dict[str, tuple[Any, ...]] = {
        "ssn": ("", "12345678", "1234567890", "123-45-678a", "900.00.0001", "123456789.0", "１２３"),
        "mrn": ("", " ", "-", "12345.0", "1.2E+05", "a\x01"),
        "name": ("", " ", "\u200b", "a\x07b"),
        "exact": (),
    }
    yield from ((f"no {normaliser}", each) for each in given[normaliser])
    yield from ((f"no {normaliser}", each) for each in ("\ud800", "a\x00", 5, b"a"))
