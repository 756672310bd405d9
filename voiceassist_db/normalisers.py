"""The normalisers of blind indexes by name: which spellings of a value are the same to a search.

Owns the names, ours and the application's, what a declaration may say, and the forms of values that patients' fields do not have. A form must
never change: the tokens in a database are made of it. Knows no key and no table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Final

from voiceassist_db.blind_index import NORMALISERS, SPREADSHEET_NUMBER, is_spreadsheet_number, unified
from voiceassist_db.errors import ConfigurationError
from voiceassist_db.spelling import as_seen
from voiceassist_db.values import RefusedValueError, is_unicode

Form = Callable[[Any], str]

ENTRY_POINTS: Final = "voiceassist_db.normalisers"
"""Group of entry points by which an installed application offers its normalisers to our commands."""

PATTERN: Final = r"[a-z][a-z0-9_]*(?::(?:[1-9][0-9]?|month|year))?"
"""A normaliser as a declaration names it: ``name``; or with a part of its form, ``name:3`` or ``date:month``."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_PARTS: Final = {"year": len("2026"), "month": len("2026-01")}
"""Characters of a date's form that a part of it has."""

_PHONE_SEPARATORS: Final = re.compile(r"[\s().\-/]+")
_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}")
"""E.164 (ITU-T, 2010): at most 15 digits behind the plus. No country has numbers of fewer than 7 with its code."""

_EMAIL: Final = re.compile(r"[^\s@<>(),:;\"\[\]\\]+@[^\s@<>(),:;\"\[\]\\.]+(?:\.[^\s@<>(),:;\"\[\]\\.]+)*")
_POSTCODE: Final = re.compile(r"[A-Z0-9]{3,10}")


def phone(value: str) -> str:
    """Return a telephone number as E.164 writes it: ``+``, country code and number, without blanks, dots, hyphens, slashes and brackets.

    ``(0)`` behind the country code is left out: one does not dial it from abroad. There is no default country.

    Raises:
        ValueError: It does not begin with ``+``, or is no such number. The message does not hold the value.
    """
    text = (value if value.isascii() else as_seen(value)).strip()
    form = _PHONE_SEPARATORS.sub("", text.replace("(0)", "", 1))
    if not form.startswith("+"):
        raise RefusedValueError("must begin with + and the country code: +1 202 555 0100")
    if not _PHONE.fullmatch(form):
        raise RefusedValueError("must be a telephone number of 7 to 15 digits behind its +, and nothing else")
    return form


def email(value: str) -> str:
    """Return an e-mail address case-folded, without outer blanks and invisible characters.

    Dots and ``+tags`` before the ``@`` are kept: only the owner of a domain knows what they mean.

    Raises:
        ValueError: It is no single address. The message does not hold the value.
    """
    form = value.strip().casefold() if value.isascii() else as_seen(as_seen(as_seen(value).casefold()).strip())
    if not form.isprintable() or not _EMAIL.fullmatch(form):
        raise RefusedValueError("must be one e-mail address and nothing else: name@example.org")
    return form


def postcode(value: str) -> str:
    """Return a postal code in upper case, without blanks and hyphens.

    Raises:
        ValueError: It has other characters than letters A to Z and digits, fewer than 3 of them or more than 10, or is a number as a
            spreadsheet writes it. The message does not hold the value.
    """
    text = "".join((value if value.isascii() else as_seen(value)).upper().split())
    if is_spreadsheet_number(text):
        raise RefusedValueError(SPREADSHEET_NUMBER)
    form = text.replace("-", "")
    if not _POSTCODE.fullmatch(form):
        raise RefusedValueError("must be a postal code of 3 to 10 letters and digits")
    return form


@dataclass(frozen=True, slots=True)
class _Normaliser:
    """One of ours: its function, and the kind of the values that it takes."""

    form: Form
    kind: str = "text"


_OURS: Final[Mapping[str, _Normaliser]] = MappingProxyType(
    {name: _Normaliser(form) for name, form in NORMALISERS.items()}
    | {"phone": _Normaliser(phone), "email": _Normaliser(email), "postcode": _Normaliser(postcode)}
    | {"date": _Normaliser(date.isoformat, "date"), "integer": _Normaliser(str, "integer")}
)

_registered: dict[str, Callable[[Any], str]] = {}
_forms: dict[str, Form] = {}


def register_normaliser(name: str, function: Callable[[Any], str]) -> None:
    """Let declarations name a normaliser of the application's own: ``blind_index_column("mrn_of_clinic")``.

    Register it in each process that writes or searches such a field, before the table is declared. Our commands find it as an entry point of
    the group ``voiceassist_db.normalisers``.

    Args:
        name: Its name, of ``a`` to ``z``, digits and ``_``. The database keeps it.
        function: Returns the form of a value, which is a ``str``, a ``date`` or an ``int`` as the field is. Equal forms are one value to a
            search. It raises ValueError for a value that has no form, and always gives the same form of a value.

    Raises:
        ValueError: The name is malformed, is one of ours, or is another function's.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a normaliser: use a to z, digits and _, and begin with a letter")
    if name in _OURS:
        raise ValueError(f"{name} is a normaliser of voiceassist-db: choose another name")
    known = _registered.get(name)
    if known is not None and _place(known) != _place(function):
        raise ValueError(f"the normaliser {name} is another function already: {'.'.join(_place(known))}")
    _registered[name] = function
    for spec in [each for each in _forms if each.partition(":")[0] == name]:
        del _forms[spec]


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Return where a function is defined: a module that is loaded again registers it again."""
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def form_of(spec: str) -> Form:
    """Return the function that gives the form of a value.

    Args:
        spec: The normaliser as a declaration names it.

    The function raises ValueError where a value has no form; the message does not hold the value.

    Raises:
        ConfigurationError: This process has no such normaliser.
    """
    found = _forms.get(spec)
    return _made(spec) if found is None else found


def part_of(spec: str) -> int:
    """Return how many characters of the form a normaliser compares; 0 where it compares all."""
    part = spec.partition(":")[2]
    return _PARTS.get(part) or int(part or 0)


def is_ours(spec: str) -> bool:
    """Say whether a normaliser is one of ours, for which a form is its own form."""
    return spec in _OURS


def is_known(spec: str) -> bool:
    """Say whether this process has a normaliser."""
    name = spec.partition(":")[0]
    return name in _OURS or _own(name) is not None


def names() -> list[str]:
    """Return the names of all normalisers that this process has."""
    return sorted({*_OURS, *_registered})


def problem_with(spec: str, kind: str) -> str | None:
    """Return why a normaliser cannot compare values of a kind; None where it can, or is not known here."""
    name, _, part = spec.partition(":")
    ours = _OURS.get(name)
    if ours is not None and ours.kind != kind:
        return f"the normaliser {name} is for values of kind {ours.kind}, and not for {kind}"
    if part in _PARTS and name != "date":
        return f"{spec}: only the normaliser date has the part {part}"
    if part.isdigit() and kind != "text":
        return f"{spec}: only text has first characters; of dates there are date:month and date:year"
    return None


def missing(spec: str) -> str:
    """Return what to say where this process lacks a normaliser."""
    name = spec.partition(":")[0]
    return (
        f"the normaliser {name!r}, which this process does not have: import the module that calls register_normaliser({name!r}, …) "
        f"before, or install the application with an entry point {name} in the group {ENTRY_POINTS}"
    )


def _made(spec: str) -> Form:
    name = spec.partition(":")[0]
    if (ours := _OURS.get(name)) is not None:
        whole = ours.form
    elif (own := _own(name)) is not None:
        whole = _guarded(name, own)
    else:
        raise ConfigurationError(f"a blind index is made by {missing(spec)}")
    length = part_of(spec)
    if length and name == "name":  # its signs for an apostrophe are one, for nobody knows which of them a part has
        form: Form = lambda value: unified(whole(value))[:length]  # noqa: E731
    elif length:
        form = lambda value: whole(value)[:length]  # noqa: E731
    else:
        form = whole
    return _forms.setdefault(spec, form)


def _own(name: str) -> Callable[[Any], str] | None:
    """Return a normaliser of the application's: registered, or offered by an entry point."""
    if name not in _registered:
        for each in entry_points(group=ENTRY_POINTS, name=name):
            try:
                register_normaliser(name, each.load())
            except Exception as error:
                raise ConfigurationError(
                    f"the entry point {each.name} = {each.value} of the group {ENTRY_POINTS} cannot be loaded: {type(error).__name__}: {error}"
                ) from error
    return _registered.get(name)


def _guarded(name: str, function: Callable[[Any], str]) -> Form:
    """Return a function of the application's whose errors do not hold the value."""

    def form(value: Any) -> str:
        try:
            made = function(value)
        except Exception as error:  # noqa: BLE001  # whatever it is, it may quote the value
            problem = f"is refused by the normaliser {name} ({type(error).__name__})"
        else:
            if type(made) is str and made and is_unicode(made):
                return made
            problem = f"gets no text from the normaliser {name}, which must return a str that is not empty and has no lone surrogate"
        raise RefusedValueError(problem)

    return form
