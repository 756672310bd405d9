"""Names and ids that others chose are shown, and cannot act on a terminal or pass for another line."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from voiceassist_db.escaping import escaped, escaped_sql

ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is not seen, or moves what is."""


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("\u202eslennac", r"\u202eslennac"),
        ("a\u200bb\u2066c\ufeff", r"a\u200bb\u2066c\ufeff"),
        ("no\xa0break so\xadft", r"no\xa0break so\xadft"),
        ("filler\u3164 \U000e0041", r"filler\u3164 \U000e0041"),
        ("\udcff", r"\udcff"),
        ("José Núñez 日本 [bold]→…", "José Núñez 日本 [bold]→…"),
    ],
)
def test_what_cannot_be_seen_is_escaped(given_text: str, shown: str) -> None:
    """Sequences of a terminal, line breaks, overrides and invisible characters show themselves; letters stay."""
    assert escaped(given_text) == shown


@given(st.text(st.characters()))
def test_every_character_is_seen(text: str) -> None:
    """Nothing that is left acts on a terminal, whatever the text; showing it again changes nothing."""
    shown = escaped(text)
    assert not [character for character in shown if unicodedata.category(character) in ACTING]
    assert escaped(shown) == shown


def test_a_line_break_may_be_kept() -> None:
    """A message of several lines keeps them, and nothing else."""
    assert escaped("a\x1b\nb\r\n", keep="\n") == "a\\x1b\nb\\r\n"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_name_in_sql_is_seen_and_stays_what_it_is(name: str) -> None:
    """A statement with a name of any characters can be printed, and names the same thing; it is not changed twice."""
    quoted = '"' + name.replace('"', '""') + '"'
    shown = escaped_sql(f"ALTER ROLE {quoted} SET a = 0;")
    assert escaped(shown) == shown == escaped_sql(shown)
    written = shown.removeprefix("ALTER ROLE ").removesuffix(" SET a = 0;")
    assert _named(written) == name


def _named(identifier: str) -> str:
    """Return the name that PostgreSQL reads in a quoted identifier."""
    inside = identifier.removeprefix("U&")[1:-1].replace('""', '"')
    if identifier.startswith("U&"):
        inside = re.sub(r"\\(\\|\+([0-9a-f]{6}))", lambda found: chr(int(found[2], 16)) if found[2] else "\\", inside)
    return inside


@pytest.mark.parametrize("name", ["\x1b[31m\n", 'it\'s "x"\u202e', "a\\b\x07\\", "plain", "\U000e0041\t'"])
def test_literals_and_names_are_what_the_server_reads(engine: Engine, name: str) -> None:
    """What is printed gives the same string, the same column, and the same name in a string, as PostgreSQL reads them."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        written = connection.scalar(
            text(
                "SELECT pg_catalog.format('SELECT %L AS %I, %L', CAST(:name AS pg_catalog.text), CAST(:name AS pg_catalog.text), "
                "pg_catalog.quote_ident(:name))"
            ),
            {"name": name},
        )
        shown = escaped_sql(written)
        assert escaped(shown) == shown == escaped_sql(shown)
        cursor = driver.execute(shown.encode())
        assert name == cursor.description[0][0]
        value, identifier = cursor.fetchone()
        assert name == value
        assert name == identifier.removeprefix('"').removesuffix('"').replace('""', '"')
